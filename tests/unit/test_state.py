"""State of clipping in parameter groups: keys and shapes, what is kept, copied, forgotten and refused, and the arrays for it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from torch_clipped._engine import state
from torch_clipped._engine.arguments import Arguments
from torch_clipped._engine.state import (
    StateArrays,
    block_counts,
    check_memory,
    common_device,
    copied,
    forget,
    install,
    is_memory,
    is_real,
    prepared_memory,
)
from torch_clipped.clipping import CLIPPING_TYPES, Clipping, register_clipping
from torch_clipped.thresholds import Constant

KEY = "clipping_memory_"
CPU, META = torch.device("cpu"), torch.device("meta")
COMMON = {"steps": (3,), "set_steps": (3,), "last": (4,), "set_last": (4,), "norms_count": (1,)}
UNUSED = {"lengths": (0, 0), "count": (0,), "average": (0,), "variance": (0,), "seen": (0,)}


def arguments(clipping_type="norm", window=4, norm_type=2.0):
    return Arguments(clipping_type, clipping_window=window, norm_type=norm_type)


def group(*shapes, **memory):
    """A parameter group with parameters of these shapes and this state."""
    return {"params": [torch.zeros(shape) for shape in shapes], "lr": 0.1} | {KEY + name: value for name, value in memory.items()}


def prepared(own, clipping_type="norm", window=4, device=CPU):
    """The state that a group needs, by name without prefix."""
    found = prepared_memory(own, arguments(clipping_type, window), device)
    assert all(key.startswith(KEY) for key in found)
    return {key.removeprefix(KEY): tensor for key, tensor in found.items()}


def shapes_of(memory):
    return {name: tuple(tensor.shape) for name, tensor in memory.items()}


def test_keys_of_the_state_are_told_by_their_prefix():
    assert is_memory("clipping_memory_steps")
    assert not is_memory("clipping_type")
    assert not is_memory("my_clipping_memory_steps")


def test_tensors_without_numbers_are_told_from_those_with():
    assert is_real(torch.zeros(2))
    assert not is_real(torch.zeros(2, device="meta"))
    with FakeTensorMode():
        assert not is_real(torch.zeros(2))


def test_norms_are_combined_on_the_first_device_that_is_not_the_host():
    def on(*devices):
        """Groups of one parameter a device; no such device is needed."""
        return [{"params": [torch.zeros(1).as_subclass(Elsewhere)]} for Elsewhere in map(elsewhere, devices)]

    def elsewhere(name):
        return type("Elsewhere", (torch.Tensor,), {"device": torch.device(name), "is_meta": name == "meta"})

    assert common_device([]) == common_device(on("cpu", "cpu")) == CPU
    assert common_device(on("cpu", "cuda:1", "cuda:0")) == torch.device("cuda:1")
    assert common_device(on("meta", "cuda:0")) == torch.device("cuda:0")  # what has no numbers is no place for norms
    assert common_device(on("meta", "cpu")) == CPU


@pytest.mark.parametrize(
    ("clipping_type", "wanted"),
    [("norm", [1] * 4), ("layer_wise", [1] * 4), ("adaptive", [3, 1, 1, 0]), ("coord_wise", [1] * 4)],
)
def test_blocks_of_each_parameter(clipping_type, wanted):
    params = [torch.zeros(3, 2), torch.zeros(5), torch.zeros(()), torch.zeros(0, 2)]
    assert block_counts(CLIPPING_TYPES[clipping_type], params) == wanted


@pytest.mark.parametrize(
    ("clipping_type", "own"),
    [
        ("none", {}),
        ("norm", {}),
        ("adaptive", {}),
        ("auto", {"lengths": (4, 1), "count": (1,)}),
        ("layer_wise_auto", {"lengths": (4, 2), "count": (2,)}),
        ("layer_wise_zscore", {"lengths": (4, 2), "count": (2,)}),
        ("zclip", {"average": (1,), "variance": (1,), "seen": (1,)}),
        ("adagc", {"average": (2,), "seen": (2,)}),
    ],
)
def test_state_of_each_type_has_all_keys_and_is_as_large_as_its_own_threshold_needs(clipping_type, own):
    memory = prepared(group((3, 2), (5,)), clipping_type)
    assert shapes_of(memory) == UNUSED | COMMON | {"norms": (4, 1)} | own
    for name, tensor in memory.items():
        is_count = name in ("steps", "set_steps", "norms_count", "count", "seen")
        assert tensor.dtype is (torch.int64 if is_count else torch.float64)
        assert tensor.device == CPU
        if name in ("last", "set_last"):
            assert tensor.isnan().all()
        else:
            assert not tensor.any()


@pytest.mark.usefixtures("table")
def test_one_state_a_row_where_units_have_a_history():
    register_clipping("unit_auto", replace(CLIPPING_TYPES["layer_wise_auto"], measure="unit"))
    assert shapes_of(prepared(group((3, 2), (5,)), "unit_auto"))["lengths"] == (4, 4)


def test_preparing_does_not_change_the_group():
    own = group((3,))
    prepared(own)
    assert own.keys() == {"params", "lr"}


def test_state_that_fits_stays_the_same_tensors():
    own = group((3,), (2,))
    first = prepared(own, "layer_wise_auto")
    second = prepared(own | {KEY + name: tensor for name, tensor in first.items()}, "layer_wise_auto")
    assert all(second[name] is first[name] for name in first)


def test_state_on_another_device_or_of_another_type_is_converted():
    steps, last = torch.tensor([3, 2, 1], dtype=torch.int32), torch.tensor([1.0, 2.0, 3.0, 4.0])
    memory = prepared(group((3,), steps=steps, last=last))
    assert (memory["steps"].dtype, memory["steps"].tolist()) == (torch.int64, [3, 2, 1])
    assert (memory["last"].dtype, memory["last"].tolist()) == (torch.float64, [1, 2, 3, 4])
    elsewhere = prepared(group((3,), steps=steps), device=META)
    assert {tensor.device for tensor in elsewhere.values()} == {META}
    assert elsewhere["last"].dtype is torch.float64


def test_state_without_numbers_starts_anew():
    memory = prepared(group((3,), steps=torch.ones(3, dtype=torch.int64, device="meta")))
    assert memory["steps"].tolist() == [0, 0, 0]


def test_state_of_other_blocks_starts_anew():
    memory = prepared(group((3,), (2,), average=torch.ones(3).double(), seen=torch.ones(2).long()), "adagc")
    assert (memory["average"].tolist(), memory["seen"].tolist()) == ([0, 0], [1, 1])


def test_history_without_its_count_or_its_norms_starts_anew():
    lengths, count = torch.full((4, 1), 7.0).double(), torch.tensor([4])
    for missing in ("lengths", "count"):
        have = {name: value for name, value in {"lengths": lengths, "count": count}.items() if name != missing}
        memory = prepared(group((3,), steps=torch.tensor([5, 1, 0]), **have), "auto")
        assert (memory["count"].tolist(), memory["lengths"].any().item()) == ([0], False)
        assert memory["steps"].tolist() == [5, 1, 0]  # has nothing to do with it
    memory = prepared(group((3,), norms=lengths, lengths=lengths, count=count), "auto")
    assert (memory["norms"].any().item(), memory["norms_count"].tolist(), memory["count"].tolist()) == (False, [0], [4])
    both = prepared(group((3,), norms=lengths, norms_count=count, lengths=lengths, count=count), "auto")
    assert (both["norms_count"].tolist(), both["norms"].flatten().tolist()) == ([4], [7] * 4)


@pytest.mark.parametrize(("window", "kept"), [(2, [3, 4]), (3, [2, 3, 4]), (4, [4, 1, 2, 3]), (6, [1, 2, 3, 4, 0, 0])])
def test_history_of_another_window_keeps_its_newest_norms(window, kept):
    """A ring of four that has come round; what fits is left as it is."""
    lengths, count = torch.tensor([[4.0], [1.0], [2.0], [3.0]]).double(), torch.tensor([5])
    memory = prepared(group((3,), lengths=lengths, count=count, norms=lengths * 10, norms_count=count), "auto", window)
    assert memory["lengths"].flatten().tolist() == kept
    assert memory["norms"].flatten().tolist() == [10 * norm for norm in kept]
    assert memory["count"].tolist() == memory["norms_count"].tolist() == [5 if window == 4 else min(window, 4)]


def test_placeholders_of_a_type_without_history_do_not_disturb_one_with():
    first = {KEY + name: tensor for name, tensor in prepared(group((3,)), "norm").items()}
    memory = prepared(group((3,)) | first, "auto", window=9)
    assert shapes_of(memory)["lengths"] == (9, 1)
    assert memory["count"].tolist() == [0]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", [1, 2, 3], "clipping_memory_steps must be a tensor with 1 dimensions, got [1, 2, 3]"),
        ("norms", torch.zeros(4), "clipping_memory_norms must be a tensor with 2 dimensions, got tensor([0., 0., 0., 0.])"),
    ],
)
def test_state_that_is_no_such_tensor_is_named(name, value, message):
    own = group((3,), **{"norms": torch.zeros(4, 1), "norms_count": torch.zeros(1)} | {name: value})
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        prepared(own)
    assert str(error.value) == message


def test_window_without_room_is_named():
    with pytest.raises(ValueError, match=rf"^clipping_window must leave room for so many norms in memory, got {10**15} \(.+\)$"):
        prepared(group((3,)), window=10**15)


@pytest.mark.usefixtures("table")
def test_registered_type_with_state_of_its_own_has_a_placeholder_everywhere():
    class Remembering(Constant):
        def memory(self, blocks, window):
            return {"own": ((blocks, 2), torch.float64)}

    assert "own" not in prepared(group((3,)))
    register_clipping("remembering", Clipping("layer", Remembering(1.0)))
    assert shapes_of(prepared(group((3,))))["own"] == (0, 2)
    assert shapes_of(prepared(group((3,), (2,)), "remembering"))["own"] == (2, 2)


def test_installed_state_replaces_what_was_there():
    own = group((3,), steps=torch.zeros(3), former=torch.ones(1))
    fresh = torch.ones(3)
    install(own, {KEY + "steps": fresh, KEY + "last": fresh})
    assert own.keys() == {"params", "lr", KEY + "steps", KEY + "last"}
    assert own[KEY + "steps"] is fresh


def test_copy_of_a_group_has_state_of_its_own_and_the_same_parameters():
    own = group((3,), steps=torch.tensor([1, 0, 0])) | {"scale": torch.tensor(2.0), KEY + "note": "kept"}
    copy = copied(own)
    own[KEY + "steps"] += 1
    assert copy.keys() == own.keys()
    assert copy[KEY + "steps"].tolist() == [1, 0, 0]
    assert copy["params"] is own["params"]
    assert copy["scale"] is own["scale"]
    assert copy[KEY + "note"] == "kept"


KEPT = {"steps", "set_steps", "last", "set_last"}


@pytest.mark.parametrize(
    ("former", "kept"),
    [
        (("auto", 2.0), {*KEPT, "norms", "norms_count", "lengths", "count"}),
        (("zscore", 2.0), {*KEPT, "norms", "norms_count"}),
        (("auto", 1.0), KEPT),
        (("zscore", 1.0), KEPT),
    ],
)
def test_norms_that_would_be_measured_differently_are_forgotten(former, kept):
    memory = dict.fromkeys((*KEPT, "norms", "norms_count", "lengths", "count"), torch.zeros(1))
    own = group((3,), **memory)
    forget(own, dict(zip(("clipping_type", "norm_type"), former, strict=True)), arguments("auto"))
    assert own.keys() == {"params", "lr", *(KEY + name for name in kept)}


HISTORY = {"lengths": torch.ones(4, 2).double(), "count": torch.tensor([4, 2**62])}
GOOD = {
    **{"steps": torch.tensor([2, 2, 0]), "set_steps": torch.tensor([2, 1, 9])},
    **{"last": torch.tensor([0.0, math.nan, math.inf, 1.0]), "set_last": torch.full((4,), math.nan)},
    **{"norms": torch.zeros(4, 1), "norms_count": torch.tensor([0])},
}


def refused(clipping_type="layer_wise_auto", **memory):
    """The words with which a state of two parameters is refused."""
    own = group((3,), (2, 2), **GOOD, **HISTORY) if clipping_type == "layer_wise_auto" else group((3,), (2, 2), **GOOD)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (whole messages are compared)
        check_memory(own | {KEY + name: value for name, value in memory.items()}, arguments(clipping_type))
    return str(error.value)


def test_state_of_a_run_is_taken():
    check_memory(group((3,), (2, 2), **GOOD, **HISTORY), arguments("layer_wise_auto"))
    check_memory(group((3,), (2, 2), **GOOD), arguments("layer_wise_auto"))
    check_memory({"lr": 0.1, KEY + "steps": torch.tensor([1, 1, 0])}, arguments("none"))
    for clipping_type in CLIPPING_TYPES:
        check_memory(
            group((3,), (2,)) | prepared_memory(group((3,), (2,)), arguments(clipping_type), CPU), arguments(clipping_type)
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_counts_of_any_integer_type_are_taken(dtype):
    check_memory({KEY + "steps": torch.tensor([1, 1, 0], dtype=dtype)}, arguments("none"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be a dense tensor with numbers, got None"),
        (torch.zeros(3, device="meta"), "must be a dense tensor with numbers, got "),
        (torch.zeros(3).to_sparse(), "must be a dense tensor with numbers, got "),
        (torch.zeros(3, requires_grad=True), "must be a tensor of real numbers without a gradient, got "),
        (torch.zeros(3, dtype=torch.complex64), "must be a tensor of real numbers without a gradient, got "),
        (torch.zeros(3, dtype=torch.bool), "must be a tensor of real numbers without a gradient, got "),
        (torch.zeros(2, dtype=torch.int64), "must have shape (3,), got (2,)"),
        (torch.zeros(3), "must hold integers from 0 to 2**62, got [0.0, 0.0, 0.0]"),
        (torch.tensor([0, -1, 0]), "must hold integers from 0 to 2**62, got [0, -1, 0]"),
        (torch.tensor([2**62 + 1, 0, 0]), f"must hold integers from 0 to 2**62, got [{2**62 + 1}, 0, 0]"),
        (torch.tensor([2, 3, 0]), "must count no more clipped steps than steps, got [2, 3, 0]"),
    ],
)
@pytest.mark.parametrize("name", ["steps", "set_steps"])
def test_wrong_counts_are_refused_by_name(name, value, message):
    assert refused(**{name: value}).startswith(f"{KEY}{name} {message}")


@pytest.mark.parametrize("name", ["last", "set_last"])
def test_wrong_last_values_are_refused_by_name(name):
    assert refused(**{name: torch.tensor([0, 0, 0, -1.0])}) == (
        f"{KEY}{name} must hold numbers that are at least 0 or NaN, got [0.0, 0.0, 0.0, -1.0]"
    )
    assert refused(**{name: torch.zeros(3)}) == f"{KEY}{name} must have shape (4,), got (3,)"


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("clipping_type", "name"),
    [
        ("norm", "norms"),
        ("layer_wise_auto", "norms"),
        ("layer_wise_auto", "lengths"),
        ("adagc", "average"),
        ("zclip", "variance"),
    ],
)
def test_wrong_norms_are_refused_by_name(clipping_type, name, bad):
    value = torch.zeros(4, 2) if name == "lengths" else torch.zeros(4, 1) if name == "norms" else torch.zeros(2)
    value.view(-1)[-1] = bad
    assert refused(clipping_type, **{name: value}).startswith(
        f"{KEY}{name} must hold numbers that are finite and at least 0, got "
    )


@pytest.mark.parametrize(("clipping_type", "name"), [("norm", "norms_count"), ("layer_wise_auto", "count"), ("zclip", "seen")])
def test_wrong_counts_of_norms_are_refused_by_name(clipping_type, name):
    value = torch.tensor([0, -1] if name == "count" else [-1])
    assert refused(clipping_type, **{name: value}) == f"{KEY}{name} must hold integers from 0 to 2**62, got {value.tolist()}"


@pytest.mark.parametrize(
    ("clipping_type", "memory", "message"),
    [
        ("layer_wise_auto", {"lengths": torch.ones(4, 3)}, "lengths must have shape (window, 2), got (4, 3)"),
        ("layer_wise_auto", {"lengths": torch.ones(0, 2)}, "lengths must have shape (window, 2), got (0, 2)"),
        ("layer_wise_auto", {"lengths": torch.ones(2)}, "lengths must have shape (window, 2), got (2,)"),
        ("layer_wise_auto", {"count": torch.ones(3).long()}, "count must have shape (2,), got (3,)"),
        ("adagc", {"average": torch.ones(3), "seen": torch.ones(2).long()}, "average must have shape (2,), got (3,)"),
        (
            "zclip",
            {"average": torch.ones(1), "variance": torch.ones(1), "seen": torch.ones(2).long()},
            "seen must have shape (1,), got (2,)",
        ),
    ],
)
def test_state_of_other_blocks_is_refused_by_name(clipping_type, memory, message):
    assert refused(clipping_type, **memory) == KEY + message


@pytest.mark.parametrize(("norms", "count"), [("norms", "norms_count"), ("lengths", "count")])
def test_norms_and_counts_of_different_numbers_of_blocks_are_refused(norms, count):
    own = {KEY + norms: torch.zeros(4, 3), KEY + count: torch.zeros(1).long()}
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        check_memory(own, arguments("norm"))
    assert (
        str(error.value) == f"{KEY}{norms} and {KEY}{count} must have shapes (window, blocks) and (blocks,), got (4, 3) and (1,)"
    )
    with pytest.raises(ValueError, match=r"got \(1,\) and \(1,\)$"):
        check_memory(own | {KEY + norms: torch.zeros(1)}, arguments("norm"))


def test_part_of_a_state_is_taken_because_all_starts_anew():
    check_memory(group((3,), (2, 2), lengths=torch.ones(4, 7)), arguments("layer_wise_auto"))
    check_memory(group((3,), (2, 2), lengths=torch.ones(0, 0), count=torch.ones(0).long()), arguments("layer_wise_auto"))


def owned(steps, **others):
    """A group with a count, and the arrays for it."""
    own, arrays = group((3,), steps=steps, **others), StateArrays()
    return own, arrays, arrays.of(own, "steps")


def test_array_and_tensor_of_the_state_are_one_memory():
    before = torch.tensor([1, 2, 3])
    own, _, array = owned(before)
    assert isinstance(array, np.ndarray)
    array[0] = 7
    assert own[KEY + "steps"].tolist() == [7, 2, 3]
    own[KEY + "steps"][1] = 8
    assert array.tolist() == [7, 8, 3]
    assert before.tolist() == [1, 2, 3]  # the array owns its memory: torch's can be freed


def test_array_on_an_accelerator_is_the_tensor_itself():
    own = group((3,), steps=torch.zeros(3))
    arrays = StateArrays(is_host=False)
    assert arrays.of(own, "steps") is own[KEY + "steps"]
    assert arrays.are_current()


def test_arrays_are_used_again_while_their_tensors_are_there():
    own, arrays, array = owned(torch.zeros(3, dtype=torch.int64), last=torch.zeros(4).double())
    last, tensor = arrays.of(own, "last"), own[KEY + "steps"]
    own[KEY + "last"] = torch.ones(4).double()
    later = StateArrays(before=arrays)
    assert later.of(own, "steps") is array
    assert own[KEY + "steps"] is tensor
    assert later.of(own, "last") is not last
    assert later.of(own, "last").tolist() == [1] * 4


def test_arrays_follow_their_tensors_into_other_groups():
    own, arrays, array = owned(torch.zeros(3, dtype=torch.int64))
    other, later = dict(own), StateArrays(before=arrays)
    assert later.of(other, "steps") is array
    del own[KEY + "steps"]
    assert later.are_current()
    other.pop(KEY + "steps")
    assert not later.are_current()


@pytest.mark.parametrize("is_host", [True, False])
def test_moved_memory_is_noticed(is_host):
    own, arrays = group((3,), steps=torch.zeros(3, dtype=torch.int64)), StateArrays(is_host)
    first = arrays.of(own, "steps")
    assert arrays.are_current()
    own[KEY + "steps"].data = torch.tensor([4, 5, 6])
    assert not arrays.are_current()
    later = StateArrays(is_host, before=arrays)
    found = later.of(own, "steps")
    assert found.tolist() == [4, 5, 6]
    assert (found is first) is (not is_host)  # a tensor is what it was, wherever it lies
    assert later.are_current()


def test_replaced_tensor_is_noticed():
    own, arrays, _ = owned(torch.zeros(3, dtype=torch.int64))
    own[KEY + "steps"] = own[KEY + "steps"].clone()
    assert not arrays.are_current()


def test_tensors_without_numbers_have_no_address_to_look_at():
    own, arrays = group((3,), steps=torch.zeros(3, device="meta")), StateArrays(is_host=False)
    arrays.of(own, "steps")
    assert arrays.are_current()
    with FakeTensorMode():
        fake, arrays = group((3,), steps=torch.zeros(3)), StateArrays(is_host=False)
        arrays.of(fake, "steps")
        assert arrays.are_current()


def test_state_that_was_shared_is_put_back_into_memory_of_its_own():
    own, arrays, array = owned(torch.tensor([1, 2, 3]), last=torch.zeros(4).double())
    last = arrays.of(own, "last"), own[KEY + "last"]
    shared = own[KEY + "steps"].share_memory_()
    arrays.put_back()
    assert own[KEY + "steps"] is not shared
    assert not own[KEY + "steps"].is_shared()
    array[0] = 9
    assert own[KEY + "steps"].tolist() == [9, 2, 3]
    assert own[KEY + "last"] is last[1]
    assert arrays.are_current()
    assert StateArrays(before=arrays).of(own, "steps") is array


def test_what_was_moved_or_replaced_otherwise_is_not_put_back():
    own, arrays, _ = owned(torch.zeros(3, dtype=torch.int64))
    own[KEY + "steps"].data = torch.tensor([4, 5, 6])
    arrays.put_back()
    assert own[KEY + "steps"].tolist() == [4, 5, 6]
    own, arrays, _ = owned(torch.zeros(3, dtype=torch.int64))
    former = own[KEY + "steps"].share_memory_()
    own[KEY + "steps"] = former.clone()
    arrays.put_back()
    assert own[KEY + "steps"] is not former
    assert arrays.are_current() is False


def test_accelerators_do_not_put_back():
    own, arrays = group((3,), steps=torch.zeros(3)), StateArrays(is_host=False)
    arrays.of(own, "steps")
    shared = own[KEY + "steps"].share_memory_()
    arrays.put_back()
    assert own[KEY + "steps"] is shared


def test_state_is_made_outside_of_fake_tensor_mode():
    with FakeTensorMode():
        memory = prepared_memory(group((3,)), arguments("auto"), CPU)
        own = group((3,)) | memory
        array = StateArrays().of(own, "last")
    assert all(is_real(tensor) for tensor in memory.values())
    assert np.isnan(array).all()
    with FakeTensorMode():
        assert is_real(copied(own)[KEY + "steps"])


def test_largest_count_leaves_room_for_more():
    assert state.LARGEST_COUNT == 2**62
