"""Command line of the comparison; see :mod:`support.differential`."""

import argparse
import sys
from collections import Counter

import torch

from . import __doc__ as description
from . import difference, sequence_of, shortened


def main(argv=None):
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first sequence; the next have the next seeds")
    parser.add_argument("--all", action="store_true", help="print every difference, not only the first")
    arguments = parser.parse_args(argv)
    counts, found = Counter(), 0
    for seed in range(arguments.seed, arguments.seed + arguments.sequences):
        if (what := difference(sequence_of(seed), counts)) is None:
            continue
        found += 1
        short = shortened(sequence_of(seed))
        print(f"{what}\nas short as possible:\n{short}\n{difference(short)}\n")
        if not arguments.all:
            print(f"again: python -m tests.support.differential --sequences 1 --seed {seed}")
            break
    for name, count in sorted(counts.items()):
        print(f"{count:8d}  {name}")
    print(f"{found} sequences differ")
    return int(found > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
