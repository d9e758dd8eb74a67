"""Every optimizer of torch, pytorch_optimizer, schedulefree, transformers and timm, clipped in both ways."""

import sys

import pytest
import torch
from support import other_optimizers as others
from support import pages
from support.other_optimizers import LEVEL, Net, recipe

from torch_clipped import Clipped, clip_optimizer

# their warnings are theirs, ours are errors as ever
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.filterwarnings("error::torch_clipped.ClippingWarning")]

NAMES = others.names()
LIBRARIES = ("pytorch_optimizer", "schedulefree", "timm", "transformers.optimization")
RUN = [name for name in NAMES if name not in others.NOT_RUN]


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_is_there(library):
    if not any(name.startswith(f"{library}.") for name in NAMES):
        pytest.skip(f"{library} is not installed")


def clipped(name, model):
    return clip_optimizer(others.made(name, model), "norm", LEVEL)


def mixed(name, model):
    cls, arguments, options = recipe(name, model)
    own_name = f"Mixed_{name.replace('.', '_')}"
    module = sys.modules[__name__]
    if not hasattr(module, own_name):
        setattr(module, own_name, type(own_name, (Clipped, cls), {"__doc__": f"{name} that clips.", "__module__": __name__}))
    return getattr(module, own_name)(*arguments, **options, clipping_level=LEVEL)


BETWEEN = {"goes on": None, "resumed": others.resumed, "deepcopied": others.deepcopied, "pickled": others.pickled}


WAYS = ["clip_optimizer", "mixin"]
# Each two values of name, way and between meet, as in pairwise, which takes long for some hundred names
ROWS = [(name, WAYS[(i + j) % 2], between) for i, name in enumerate(RUN) for j, between in enumerate(BETWEEN)]


@pytest.mark.parametrize(("name", "way", "between"), ROWS)
def test_steps_are_those_of_the_plain_optimizer_with_the_gradient_clipped_by_hand(name, way, between):
    make = clipped if way == "clip_optimizer" else mixed
    around = others.REFUSED_AS_CLASS.get(name) or ("lookahead_" in name and "are those of the")
    reason = others.REFUSED.get(name) or (way == "mixin" and around)
    if reason:
        with pytest.raises(TypeError, match=reason):
            make(name, Net())
        return
    wanted, _ = others.weights(name, others.made, BETWEEN[between], by_hand=True)
    got, end = others.weights(name, make, BETWEEN[between])
    if isinstance(wanted, type):  # what the plain optimizer cannot do either
        assert between != "goes on"
        assert isinstance(got, type)
        return
    assert not isinstance(got, type), end
    for a, b in zip(got, wanted, strict=True):
        # LBFGS divides by differences of gradients, which makes much of a rounding
        rtol, atol = (1e-3, 1e-3) if name.endswith(".LBFGS") else (1e-5, 1e-6)
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
    stats = end.clipping_stats()
    assert 0 < stats["clipped_steps"] < stats["steps"]


@pytest.mark.parametrize("name", sorted(others.NOT_RUN))
def test_optimizer_that_is_not_run_cannot_be_run_here(name):
    if name not in NAMES:
        pytest.skip(f"{name.rpartition('.')[0]} is not installed")
    got, _ = others.weights(name, others.made)
    assert isinstance(got, type) or all(map(torch.equal, got, Net().parameters()))


def test_guide_says_how_many_there_are():
    words = " ".join(pages.page("docs/other_ways.md").split())
    counts = {library: [name for name in NAMES if name.startswith(f"{library}.")] for library in LIBRARIES}
    if found := counts["pytorch_optimizer"]:
        refused = [name for name in found if name in others.REFUSED]
        clip = [name for name in found if name in RUN and name not in refused]
        assert (
            f"the {len(found)} classes of pytorch_optimizer 4.1 `clip_optimizer` clips {len(clip)} and refuses {len(refused)};"
            in words
        )
    if found := counts["schedulefree"]:
        assert f"all {len(found)} of schedulefree 1.4" in words
    if found := counts["timm"]:
        assert f"the {len([name for name in found if name in RUN and 'lookahead_' not in name])} names of timm" in words
