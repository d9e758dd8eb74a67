"""``python -m experiments NAME [options]`` runs one experiment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

EXPERIMENTS = (
    *("heavy-tails", "compare", "thresholds", "spikes", "restarts", "toy"),
    *("benchmark", "launches", "endurance", "distributed"),
)


def main(arguments: Sequence[str]) -> int:
    """Run the experiment named by the first argument with the other arguments; return the exit code."""
    width = max(map(len, EXPERIMENTS))
    lines = [f"  {name.ljust(width)}  {_package(name).__doc__}" for name in EXPERIMENTS]
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        usage="python -m experiments NAME [options]",
        description="Run an experiment. Its options: python -m experiments NAME --help",
        epilog="\n".join(["experiments:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", choices=EXPERIMENTS, help="name of the experiment")
    name: str = parser.parse_args(arguments[:1]).name
    exit_code: int = import_module(f"{_package(name).__name__}.run").main(arguments[1:])
    return exit_code


def _package(name: str) -> ModuleType:
    return import_module(f"experiments.{name.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
