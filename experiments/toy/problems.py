"""Run the three toy problems, and write their files and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.files import write_csv, write_json
from ..common.journal import Journal, Result
from ..common.tables import aligned
from . import adagrad as toy_adagrad
from . import quadratic as toy_quadratic
from . import regression as toy_regression
from .picture import plot_adagrad, plot_quadratic, plot_regression
from .table import table

NOTES = {
    "quadratic": "Quantiles over the last steps of a run, then their median over the runs; 'about v' stands as v +- 10 %.\n"
    "Under normal noise the 99 % point of f is lr / (2 - lr) / 2 * 135.8 = 0.0340 (a chi-square distribution), as large as the\n"
    "largest f that was expected: of so many steps the largest is above that.\n"
    "With heavy tails the runs differ by more than the ranges are wide. Clipping also takes away a part of the variance of\n"
    "heavy-tailed noise, hence the lower medians.",
    "adagrad": "Quantiles over the repeats. The source shows pictures, so the expectation is only that clipping helps.",
    "regression": "Ratios are taken seed by seed. The source shows pictures, so the expectation is only that clipping helps.",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A toy problem.

    Attributes:
        settings: all that its numbers depend on.
        parts: how many results ``run`` keeps.
        steps: of all parts.
        run: keeps the results by ``Journal.done``.
        write: takes all of them and a folder; writes csv, json and png there and returns the table.
    """

    settings: dict[str, Any]
    parts: int
    steps: int
    run: Callable[[Journal], None]
    write: Callable[[Sequence[Result], Path], str]


def quadratic(config: toy_quadratic.Config) -> Problem:
    """Return SGD and clipped SGD on a quadratic, a single part: all its runs are rows of one matrix."""

    def run(journal: Journal) -> None:
        def new() -> Result:
            runs, curves = toy_quadratic.run(config, journal.progress)
            return {"problem": "quadratic", "runs": runs, "curves": curves}

        journal.done("quadratic", config.steps, new)

    def write(results: Sequence[Result], folder: Path) -> str:
        (result,) = results
        write_csv(result["runs"], folder / "toy_quadratic.csv")
        write_csv(result["curves"], folder / "toy_quadratic_curves.csv")
        rows = toy_quadratic.expected(result["runs"])
        write_json({"config": asdict(config), "expected": rows, "note": NOTES["quadratic"]}, folder / "toy_quadratic.json")
        plot_quadratic(folder / "toy_quadratic_curves.csv", folder / "toy_quadratic.json", folder / "toy_quadratic.png")
        return table("quadratic", rows)

    return Problem(settings=asdict(config), parts=1, steps=config.steps, run=run, write=write)


def adagrad(config: toy_adagrad.Config) -> Problem:
    """Return AdaGrad with and without clipping, a single part: it takes seconds."""
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
        cells = [(f"{row['method']}:", f"median of f {row['median']:.3g},", f"p90 {row['p90']:.3g}") for row in result["final"]]
        return "\n".join([table("adagrad", rows), "", *aligned(cells)])

    return Problem(settings=asdict(config), parts=1, steps=steps, run=run, write=write)


def regression(config: toy_regression.Config) -> Problem:
    """Return five methods on a regression, each training a part."""
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
