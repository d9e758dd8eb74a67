"""Run the four toy problems, and write their files and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.tables import aligned
from . import adagrad as toy_adagrad
from . import published as toy_published
from . import quadratic as toy_quadratic
from . import regression as toy_regression
from .picture import plot_adagrad, plot_published, plot_quadratic, plot_regression
from .table import table

NOTES = {
    "quadratic": "Each run has a seed of its own. Ranges of the 99 % point and the largest f were read off the published\n"
    "pictures by eye ('about v' stands as v +- 10 %). Ranges of the mean of f are those of theory +- 10 %: clipping\n"
    "removes a part of the variance of heavy-tailed noise, and adds a small bias.",
    "adagrad": "Ratios are taken repeat by repeat. The source shows by pictures that clipping helps, and no numbers.",
    "regression": "Ratios are taken seed by seed. The source shows by pictures that clipping helps, and no numbers.",
    "published": "Ratios are taken seed by seed; the seed draws the data, too. Settings are those of the authors' code.",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Toy problem.

    Attributes:
        settings: all settings that the numbers depend on.
        parts: number of results that ``run`` keeps.
        steps: number of steps of all parts together.
        run: runs the parts, each through ``Journal.done``.
        write: takes all results and a folder; writes csv, json and png there and returns the table.
    """

    settings: dict[str, Any]
    parts: int
    steps: int
    run: Callable[[Journal], None]
    write: Callable[[Sequence[Result], Path], str]


def quadratic(config: toy_quadratic.Config) -> Problem:
    """Return SGD and clipped SGD on a quadratic; the runs of a part are rows of one matrix."""

    def run(journal: Journal) -> None:
        for part in range(config.parts):

            def new(part: int = part) -> Result:
                runs, peaks = toy_quadratic.run(config, part, journal.progress)
                return {"problem": "quadratic", "runs": runs, "peaks": peaks}

            journal.done(f"quadratic, part {part}", config.steps, new)

    def write(results: Sequence[Result], folder: Path) -> str:
        runs, peaks = ([row for result in results for row in result[name]] for name in ("runs", "peaks"))
        write_csv(runs, folder / "toy_quadratic.csv")
        write_csv(toy_quadratic.curves(peaks), folder / "toy_quadratic_curves.csv")
        rows = toy_quadratic.expected(config, runs)
        write_json({"config": asdict(config), "expected": rows, "note": NOTES["quadratic"]}, folder / "toy_quadratic.json")
        plot_quadratic(folder / "toy_quadratic_curves.csv", folder / "toy_quadratic.json", folder / "toy_quadratic.png")
        return table("quadratic", rows)

    return Problem(settings=asdict(config), parts=config.parts, steps=config.parts * config.steps, run=run, write=write)


def adagrad(config: toy_adagrad.Config) -> Problem:
    """Return AdaGrad with and without clipping, in a single part because it takes seconds."""
    steps = config.steps * len(toy_adagrad.METHODS)

    def run(journal: Journal) -> None:
        def new() -> Result:
            final, curves = toy_adagrad.run(config)
            return {"problem": "adagrad", "final": final, "curves": curves}

        journal.done("adagrad", steps, new)

    def write(results: Sequence[Result], folder: Path) -> str:
        (result,) = results
        write_csv(result["final"], folder / "toy_adagrad.csv")
        write_csv(result["curves"], folder / "toy_adagrad_curves.csv")
        rows = toy_adagrad.expected(result["final"])
        write_json({"config": asdict(config), "expected": rows, "note": NOTES["adagrad"]}, folder / "toy_adagrad.json")
        plot_adagrad(folder / "toy_adagrad_curves.csv", folder / "toy_adagrad.json", folder / "toy_adagrad.png")
        ends = [row for row in result["curves"] if row["step"] == result["curves"][-1]["step"]]
        cells = [(f"{row['method']}:", f"median of f {row['median']:.3g},", f"p90 {row['p90']:.3g}") for row in ends]
        return "\n".join([table("adagrad", rows), "", *aligned(cells)])

    return Problem(settings=asdict(config), parts=1, steps=steps, run=run, write=write)


def regression(config: toy_regression.Config) -> Problem:
    """Return five methods on a regression; each training is a part."""
    parts = len(toy_regression.METHODS) * (len(toy_regression.HALF_DECADES) + config.seeds)

    def run(journal: Journal) -> None:
        toy_regression.run(config, journal)

    def write(results: Sequence[Result], folder: Path) -> str:
        grids, curves = toy_regression.grids_and_curves(results)
        write_csv(grids, folder / "toy_regression.csv")
        write_csv(curves, folder / "toy_regression_curves.csv")
        rows, methods = toy_regression.expected(config, curves), toy_regression.summarize(config, grids, curves)
        content = {"config": asdict(config), "methods": methods, "expected": rows, "note": NOTES["regression"]}
        write_json(content, folder / "toy_regression.json")
        plot_regression(folder / "toy_regression_curves.csv", folder / "toy_regression.json", folder / "toy_regression.png")
        cells = [("", "lr", "final loss (seeds from, to)", ""), *map(toy_regression.cells, methods)]
        return "\n".join([table("regression", rows), "", *aligned(cells)])

    return Problem(settings=asdict(config), parts=parts, steps=parts * config.steps(), run=run, write=write)


def published(config: toy_published.Config) -> Problem:
    """Return the regression as its authors ran it; a part trains all methods on one draw of the data."""

    def run(journal: Journal) -> None:
        toy_published.run(config, journal)

    def write(results: Sequence[Result], folder: Path) -> str:
        curves = toy_published.curves(results)
        write_csv(curves, folder / "toy_published_curves.csv")
        rows, methods = toy_published.expected(config, curves), toy_published.summarize(config, curves)
        content = {"config": asdict(config), "methods": methods, "expected": rows, "note": NOTES["published"]}
        write_json(content, folder / "toy_published.json")
        plot_published(folder / "toy_published_curves.csv", folder / "toy_published.json", folder / "toy_published.png")
        cells = [("", "", "final test loss (seeds from, to)")]
        for row in methods:
            losses = f"{row['final_loss']:.4g} ({row['lowest']:.4g}, {row['highest']:.4g})"
            cells.append((row["method"], row["settings"], losses))
        return "\n".join([table("published", rows), "", *aligned(cells)])

    steps = config.seeds * toy_published.steps(config)
    return Problem(settings=asdict(config), parts=config.seeds, steps=steps, run=run, write=write)
