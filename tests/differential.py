"""Compare clipped optimizers with a slow model of the contract, over random sequences of actions.

    python tests/differential.py --sequences 1000 --seed 7

prints the first sequence that differs, as short as it can be made, and how often each action and type occurred.
"""

import argparse
import random
import sys
import warnings
from collections import Counter

import numpy as np
import torch
from differential_run import DifferenceError, Run
from differential_sequences import random_sequence

from torch_clipped import ClippingWarning


def difference(sequence, counts=None):
    """What is different in this sequence, or None."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", ClippingWarning)
        try:
            Run(sequence, Counter() if counts is None else counts).run()
        except DifferenceError as found:
            return str(found)
    return None


def shortened(sequence):
    """The same sequence without the actions that the difference does not need."""
    place = 0
    while place < len(sequence.actions):
        fewer = sequence._replace(actions=sequence.actions[:place] + sequence.actions[place + 1 :])
        if difference(fewer) is None:
            place += 1
        else:
            sequence = fewer
    return sequence


def sequence_of(seed):
    return random_sequence(random.Random(seed), seed)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
            print(f"again: python {sys.argv[0]} --sequences 1 --seed {seed}")
            break
    for name, count in sorted(counts.items()):
        print(f"{count:8d}  {name}")
    print(f"{found} sequences differ")
    return int(found > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
