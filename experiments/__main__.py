"""``python -m experiments NAME [options]`` runs one experiment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

EXPERIMENTS = {
    "heavy-tails": "experiments.heavy_tails",
    "benchmark": "experiments.benchmark",
    "endurance": "experiments.endurance",
    "launches": "experiments.launches",
    "spikes": "experiments.spikes",
    "thresholds": "experiments.thresholds",
    "restarts": "experiments.restarts",
    "toy": "experiments.toy",
    "compare": "experiments.compare",
}


def main(arguments: Sequence[str]) -> int:
    """Run the experiment that the first argument names with the other arguments; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Options of an experiment: python -m experiments NAME --help"
    )
    parser.add_argument("name", metavar="NAME", choices=EXPERIMENTS, help=", ".join(EXPERIMENTS))
    name: str = parser.parse_args(arguments[:1]).name
    exit_code: int = import_module(EXPERIMENTS[name]).main(arguments[1:])
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
