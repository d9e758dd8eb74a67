"""Compare clipped optimizers with a slow model of the contract, over random sequences of actions.

    python -m tests.support.differential --sequences 1000 --seed 7

prints the first sequence that differs, as short as it can be made, and how often each action and type occurred.
"""

import random
import warnings
from collections import Counter

import numpy as np

from torch_clipped import ClippingWarning

from .run import DifferenceError, Run
from .sequences import random_sequence


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
