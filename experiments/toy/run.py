"""Clipping against heavy-tailed noise where the answer is known: three small problems from the literature.

``python -m experiments toy`` writes, for each problem, its runs and curves (csv), its config with a table of expected and
measured numbers (json), and a picture (png).

quadratic: SGD and clipped SGD on ||x||^2 / 2 under four noises. adagrad: AdaGrad with and without clipping on x^2 / 2 under noise
without a variance. regression: five methods on mean |Ax - y|^1.75 with heavy-tailed features.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..common.command import INTERRUPTED, check_at_least, out_folder, parser_of, publishing
from ..common.files import write_csv, write_json
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


def quadratic(config: toy_quadratic.Config, folder: Path) -> str:
    """Run, write and draw the quadratic; returns its table."""
    runs, curves = toy_quadratic.run(config)
    write_csv(runs, folder / "toy_quadratic.csv")
    write_csv(curves, folder / "toy_quadratic_curves.csv")
    rows = toy_quadratic.expected(runs)
    write_json({"config": asdict(config), "expected": rows, "note": NOTES["quadratic"]}, folder / "toy_quadratic.json")
    plot_quadratic(folder / "toy_quadratic_curves.csv", folder / "toy_quadratic.json", folder / "toy_quadratic.png")
    return table("quadratic", rows)


def adagrad(config: toy_adagrad.Config, folder: Path) -> str:
    """Run, write and draw AdaGrad; returns its table."""
    final, curves = toy_adagrad.run(config)
    write_csv(final, folder / "toy_adagrad.csv")
    write_csv(curves, folder / "toy_adagrad_curves.csv")
    rows = toy_adagrad.expected(final)
    write_json({"config": asdict(config), "expected": rows, "note": NOTES["adagrad"]}, folder / "toy_adagrad.json")
    plot_adagrad(folder / "toy_adagrad_curves.csv", folder / "toy_adagrad.json", folder / "toy_adagrad.png")
    cells = [(f"{row['method']}:", f"median of f {row['median']:.3g},", f"p90 {row['p90']:.3g}") for row in final]
    return "\n".join([table("adagrad", rows), "", *aligned(cells)])


def regression(config: toy_regression.Config, folder: Path) -> str:
    """Run, write and draw the regression; returns its table."""
    grids, curves = toy_regression.run(config)
    write_csv(grids, folder / "toy_regression.csv")
    write_csv(curves, folder / "toy_regression_curves.csv")
    rows, methods = toy_regression.expected(config, curves), toy_regression.summarize(config, grids, curves)
    content = {"config": asdict(config), "methods": methods, "expected": rows, "note": NOTES["regression"]}
    write_json(content, folder / "toy_regression.json")
    plot_regression(folder / "toy_regression_curves.csv", folder / "toy_regression.json", folder / "toy_regression.png")
    cells = [("", "lr", "final loss (seeds from, to)", ""), *map(toy_regression.cells, methods)]
    return "\n".join([table("regression", rows), "", *aligned(cells)])


PROBLEMS: dict[str, Callable[[int, Path], str]] = {
    "quadratic": lambda seed, folder: quadratic(toy_quadratic.Config(seed=seed), folder),
    "adagrad": lambda seed, folder: adagrad(toy_adagrad.Config(seed=seed), folder),
    "regression": lambda seed, folder: regression(toy_regression.Config(seed=seed), folder),
}


def main(arguments: Sequence[str]) -> int:
    """Run the problems, write toy_*.csv, .json and .png, print the tables; returns 130 after an interruption, else 0."""
    parser = parser_of("toy", __doc__)
    parser.add_argument("--only", choices=PROBLEMS, help="one of the problems (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        check_at_least(options, {"seed": 0})
        folder = out_folder(parser, options, "toy")
    except ValueError as error:
        parser.error(str(error))
    for name in [options.only] if options.only else PROBLEMS:
        try:
            with publishing(folder) as new:
                print(PROBLEMS[name](options.seed, new), NOTES[name], sep="\n\n", end="\n\n")
        except KeyboardInterrupt:
            print(f"Interrupted in {name}.", file=sys.stderr)
            return INTERRUPTED
    return 0
