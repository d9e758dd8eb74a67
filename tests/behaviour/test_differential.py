"""Random sequences of steps, edits, loads and moves: a clipped optimizer does what the slow model of the contract does."""

from collections import Counter

from support.differential import difference, sequence_of
from support.differential.sequences import ACTIONS, LOADS, MOVES, POLICIES, TYPES

EVENTS = [
    "history starts anew, of a changed block",
    "zclip after its warm-up",
    "adagc after its warm-up",
    "drawn to be clipped",
    "drawn to be left alone",
    "weights shorter than the floor",
    *(f"not finite, {policy}" for policy in POLICIES),
    *(f"gradient {kind}" for kind in ("usual", "spike", "zeros", "none", "transposed", "stride 0")),
]


def test_optimizer_is_its_slow_model_over_500_random_sequences():
    counts = Counter()
    for seed in range(500):
        found = difference(sequence_of(seed), counts)
        assert found is None, (
            f"{found}\n{sequence_of(seed)}\nshorter: python -m tests.support.differential --sequences 1 --seed {seed}"
        )
    for name in TYPES:
        assert counts[f"type {name} clipped"] >= 20, name
        assert counts[f"type {name} clipped"] < counts[f"type {name}"], name
    for kind in ACTIONS:
        hows = {"load": LOADS, "move": MOVES}.get(kind, [""])
        assert all(counts[f"action {kind} {how}".strip()] >= 10 for how in hows), kind
    assert all(counts[event] >= 10 for event in EVENTS)
    assert counts["step skipped"] >= 100
    assert counts["step error"] >= 20
