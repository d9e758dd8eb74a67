"""Test clipping against heavy-tailed noise on small problems from the literature, whose answers are known.

``python -m experiments toy`` writes, for each problem, its runs and curves (csv), its config with a table of expected and
measured numbers (json), and a picture (png).

quadratic: SGD and clipped SGD on ||x||^2 / 2 under four noises. adagrad: AdaGrad with and without clipping on x^2 / 2 under noise
without a variance. regression: five methods on mean |Ax - y|^1.75 with heavy-tailed features. published: the same with the
settings of its authors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..common.command import TUNING_SEED, Plan, check_integer, command, parser_of
from ..common.journal import Journal, Result
from . import adagrad as toy_adagrad
from . import published as toy_published
from . import quadratic as toy_quadratic
from . import regression as toy_regression
from .problems import NOTES, Problem, adagrad, published, quadratic, regression

QUICK = {"quick": True}
FEW = {"epochs": 1, "seeds": 5}
PROBLEMS: dict[str, Callable[[int, bool], Problem]] = {  # by seed, and whether to make it smaller and shorter
    "quadratic": lambda seed, quick: quadratic(
        toy_quadratic.Config(seed=seed, **({"steps": 12_500, "measured_steps": 10_000, "parts": 1} if quick else {}))
    ),
    "adagrad": lambda seed, quick: adagrad(toy_adagrad.Config(seed=seed, **({"steps": 1250} if quick else {}))),
    "regression": lambda seed, quick: regression(toy_regression.Config(seed=seed, **(FEW if quick else {}))),
    "published": lambda seed, quick: published(toy_published.Config(seed=seed, **(FEW if quick else {}))),
}


def plan(seed: int = 0, only: str | None = None, quick: bool = False) -> Plan:
    """Return the plan for all problems or ``only`` one; ``quick`` makes them smaller and shorter."""
    check_integer("seed", seed, 0)
    problems = {name: PROBLEMS[name](seed, quick) for name in ([only] if only else PROBLEMS)}
    seeds = problems["regression"].settings["seeds"] if "regression" in problems else 0
    if TUNING_SEED in range(seed, seed + seeds):
        raise ValueError(
            f"seed must not make the seeds include {TUNING_SEED}, which is kept for choosing the learning rates, got {seed}"
        )

    def run_all(journal: Journal) -> None:
        for problem in problems.values():
            problem.run(journal)

    def write(results: Sequence[Result], folder: Path) -> str:
        """Write the problems whose parts are complete."""
        tables = []
        for name, problem in problems.items():
            mine = [result for result in results if result["problem"] == name]
            if len(mine) == problem.parts:
                tables += [problem.write(mine, folder), NOTES[name]]
        return "\n\n".join(tables) or "No problem was finished."

    settings = {name: problem.settings for name, problem in problems.items()}
    steps = sum(problem.steps for problem in problems.values())
    name = f"toy_{only}" if only else "toy"
    return Plan(name=name, settings=settings, steps=steps, train=run_all, write=write, choices=("only",))


def main(arguments: Sequence[str]) -> int:
    """Run the problems, write toy_*.csv, .json and .png, print the tables; return 130 after an interruption, else 0."""
    parser = parser_of("toy", __doc__)
    parser.add_argument("--only", choices=PROBLEMS, help="run one problem (default: all)")
    parser.add_argument("--seed", type=int, help="the first seed (default: 0)")
    return command(parser, plan, QUICK, arguments)
