"""Optimizers of any make: odd bases, own arguments, closures they evaluate themselves, and what is refused."""

import copy
import math
import pickle
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from torch_clipped import Clipped, ClippedSGD, ClippingWarning, GradientClipper, clip_optimizer

T = TypeVar("T")


class AbstractBase(ABC, Optimizer):
    """A base class as pytorch_optimizer has it: ABC stands before Optimizer."""

    @abstractmethod
    def kind(self):
        pass


class GenericBase(Generic[T], Optimizer):
    pass


class Descent:
    """Gradient descent with an argument that looks like one of clipping."""

    def __init__(self, params, lr=0.1, clip_threshold=1.0, beta=0.5):
        super().__init__(params, {"lr": lr, "clip_threshold": clip_threshold, "beta": beta})

    def kind(self):
        return "descent"

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])
        return loss


class AbstractDescent(Descent, AbstractBase):
    pass


class GenericDescent(Descent, GenericBase[int]):
    pass


class PlainDescent(Descent, Optimizer):
    pass


class ClippedAbstractDescent(Clipped, AbstractDescent):
    """With gradient clipping."""


CLASSES = [AbstractDescent, GenericDescent, PlainDescent]


def parameter(*grad):
    p = nn.Parameter(torch.zeros(len(grad)))
    p.grad = torch.tensor(grad)
    return p


@pytest.mark.parametrize("cls", CLASSES)
def test_optimizer_of_any_bases_is_clipped_and_stays_what_it_is(cls):
    p = parameter(3.0, 4.0)
    optimizer = cls([p])
    assert clip_optimizer(optimizer, "norm", 1.0) is optimizer
    optimizer.step()
    assert p.tolist() == pytest.approx([-0.06, -0.08])
    assert isinstance(optimizer, cls)
    assert isinstance(optimizer, Clipped)
    assert type(optimizer).__name__ == f"Clipped{cls.__name__}"
    assert optimizer.kind() == "descent"


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copy_of_an_optimizer_of_any_bases_clips(cls, copied):
    optimizer = clip_optimizer(cls([parameter(3.0, 4.0)]), "norm", 1.0)
    optimizer.step()
    other = copied(optimizer)
    assert type(other) is type(optimizer)
    (p,) = other.param_groups[0]["params"]
    p.grad = torch.tensor([30.0, 40.0])
    other.step()
    assert p.grad.tolist() == pytest.approx([0.6, 0.8])
    assert other.clipping_stats()["steps"] == 2


def test_class_derived_from_a_clipped_one_of_any_bases_clips():
    clipped = type(clip_optimizer(AbstractDescent([parameter(3.0)])))
    derived = type("Derived", (clipped,), {"__doc__": "One more.", "kind": lambda self: super(derived, self).kind() + "!"})
    p = parameter(3.0, 4.0)
    optimizer = derived([p], clipping_level=1.0)
    optimizer.step()
    assert p.grad.tolist() == pytest.approx([0.6, 0.8])
    assert optimizer.kind() == "descent!"


def test_mixin_over_an_abstract_base_clips():
    p = parameter(3.0, 4.0)
    ClippedAbstractDescent([p], clipping_level=1.0).step()
    assert p.grad.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("make", [lambda p: clip_optimizer(AbstractDescent(p)), ClippedAbstractDescent])
def test_own_arguments_that_look_like_clipping_are_the_optimizers(make):
    optimizer = make([parameter(3.0, 4.0)])
    optimizer.add_param_group({"params": [parameter(1.0)], "clip_threshold": 2.0, "beta": 0.25})
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)) if type(optimizer).__module__ else optimizer):
        for group in other.param_groups:
            group["params"][0].grad = torch.ones_like(group["params"][0])
        other.load_state_dict(copy.deepcopy(other.state_dict()))
        other.step()
        assert [group["clip_threshold"] for group in other.param_groups] == [1.0, 2.0]
        assert [group["beta"] for group in other.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize("make", [lambda p: clip_optimizer(AbstractDescent(p)), ClippedAbstractDescent, ClippedSGD])
def test_misspelt_argument_that_is_written_into_a_group_later_is_found(make):
    optimizer = make([parameter(3.0, 4.0)])
    optimizer.step()
    for key in ("clipping_levle", "clip_level", "max_norm"):
        optimizer.param_groups[0][key] = 1.0
        with pytest.raises(TypeError, match=f"parameter group 0 has no argument '{key}'; did you mean 'clipping_level'"):
            optimizer.step()
        del optimizer.param_groups[0][key]
        optimizer.step()


class WithNormType(PlainDescent):
    def __init__(self, params, norm_type="spectral"):
        Optimizer.__init__(self, params, {"lr": 0.1, "norm_type": norm_type})


def test_optimizer_with_an_argument_of_a_clipping_arguments_name_is_refused_untouched():
    optimizer = WithNormType([parameter(3.0)])
    keys = {**optimizer.param_groups[0]}
    with pytest.raises(TypeError, match=r"WithNormType has an argument 'norm_type' of its own.*GradientClipper"):
        clip_optimizer(optimizer)
    assert type(optimizer) is WithNormType
    assert optimizer.param_groups[0].keys() == keys.keys()
    with pytest.raises(TypeError, match="'norm_type' of its own"):
        type("Mixed", (Clipped, WithNormType), {"__doc__": "Refused."})


class TwoSteps(PlainDescent):
    def first_step(self):
        pass

    def second_step(self):
        pass


class FusedBackward(PlainDescent):
    def fused_backward(self, loss, lr):
        pass


@pytest.mark.parametrize(("cls", "way"), [(TwoSteps, r"TwoSteps\(params, ClippedSGD"), (FusedBackward, "fused_backward")])
def test_optimizer_that_is_driven_by_other_methods_is_refused_with_the_way_that_works(cls, way):
    optimizer = cls([parameter(3.0)])
    with pytest.raises(TypeError, match=way):
        clip_optimizer(optimizer)
    assert type(optimizer) is cls
    with pytest.raises(TypeError, match=way):
        type("Mixed", (Clipped, cls), {"__doc__": "Refused."})


class Around(Optimizer):
    """A wrapper that shows the groups of the optimizer inside."""

    def __init__(self, inside):
        self.inside = inside

    @property
    def param_groups(self):
        return self.inside.param_groups

    def step(self, closure=None):
        return self.inside.step(closure)


def test_mixin_over_a_wrapper_is_refused():
    mixed = type("Mixed", (Clipped, Around), {"__doc__": "Refused."})
    with pytest.raises(TypeError, match=r"one that torch\.optim\.Optimizer\.__init__ has made"):
        mixed(torch.optim.SGD([parameter(3.0)]))


class TwiceEvaluated(PlainDescent):
    """Evaluates an optional closure twice, and takes the mean of the gradients."""

    @torch.no_grad()
    def step(self, closure=None):
        (p,) = self.param_groups[0]["params"]
        with torch.enable_grad():
            closure()
        first = p.grad.clone()
        p.sub_(first)
        with torch.enable_grad():
            loss = closure()
        p.add_(first).sub_((first + p.grad) / 2)
        self.state[p]["taken"] = self.state[p].get("taken", 0) + 1
        return loss


def closure_of(p, grads, calls):
    def closure():
        p.grad = torch.tensor(grads[len(calls)])
        calls.append(1)
        return torch.tensor(float(len(calls)))

    return closure


def test_closure_that_an_optimizer_evaluates_twice_is_clipped_each_time():
    p, calls = parameter(0.0, 0.0), []
    optimizer = clip_optimizer(TwiceEvaluated([p]), "norm", 1.0)
    assert optimizer.step(closure_of(p, [[3.0, 4.0], [0.0, 9.0]], calls)) == 2
    assert len(calls) == 2
    assert p.tolist() == pytest.approx([-0.3, -0.9])
    assert optimizer.clipping_stats()["steps"] == 2


@pytest.mark.parametrize("bad", [0, 1])
def test_step_whose_evaluation_is_not_finite_is_taken_back_whole(bad):
    p, calls = parameter(0.0, 0.0), []
    optimizer = clip_optimizer(TwiceEvaluated([p]), "norm", 1.0)
    optimizer.step(closure_of(p, [[3.0, 4.0], [0.0, 9.0]], calls))
    before, state = p.tolist(), copy.deepcopy(optimizer.state[p])
    grads = [[3.0, 4.0], [3.0, 4.0]]
    grads[bad] = [math.nan, 1.0]
    with pytest.warns(ClippingWarning, match="not finite"):
        optimizer.step(closure_of(p, grads, []))
    assert p.tolist() == before
    assert dict(optimizer.state[p]) == state
    assert optimizer.clipping_stats()["skipped_steps"] == 1


def test_arguments_just_written_win_over_those_of_a_checkpoint():
    clipped = ClippedSGD([parameter(3.0, 4.0)], clipping_level=0.5)
    clipped.step()
    plain = torch.optim.SGD([parameter(3.0, 4.0)])
    plain.load_state_dict(clipped.state_dict())
    with pytest.warns(
        ClippingWarning, match=r"clipping_type='norm', clipping_level=0\.5.*clipping_type='zclip', clipping_level=3\.0"
    ):
        clip_optimizer(plain, "zclip", 3.0)
    assert (plain.param_groups[0]["clipping_type"], plain.param_groups[0]["clipping_level"]) == ("zclip", 3.0)
    again = torch.optim.SGD([parameter(3.0, 4.0)])
    again.load_state_dict(clipped.state_dict())
    clip_optimizer(again, "norm", 0.5)
    assert again.clipping_stats()["steps"] == 1


def test_gradient_clipper_is_the_way_around_a_refusal():
    p = parameter(3.0, 4.0)
    GradientClipper([p], "norm", 1.0).step()
    WithNormType([p]).step()
    assert p.tolist() == pytest.approx([-0.06, -0.08])


class LineSearch(torch.optim.Optimizer):
    """Evaluates the closure with gradients once, and then without, as searches along a line do."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        (p,), lr = self.param_groups[0]["params"], self.param_groups[0]["lr"]
        start, slope = p.clone(), p.grad.square().sum()
        for _ in range(20):
            p.copy_(start - lr * p.grad)
            if closure() <= loss - 0.1 * lr * slope:
                break
            lr /= 2
        return loss


def test_a_line_search_evaluates_the_loss_alone_and_only_gradients_are_counted():
    def run(make):
        weight, calls = torch.nn.Parameter(torch.tensor([1.0, 2.0])), []
        optimizer = make(LineSearch([weight]))

        def closure():
            calls.append(torch.is_grad_enabled())
            if torch.is_grad_enabled():
                optimizer.zero_grad()
            loss = (weight**4).sum()
            if loss.requires_grad:
                loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        return weight.detach(), calls, optimizer

    weight, calls, _ = run(lambda optimizer: optimizer)
    found, own_calls, optimizer = run(lambda optimizer: clip_optimizer(optimizer, "norm", float("inf")))
    assert torch.equal(found, weight)
    assert own_calls == calls
    assert optimizer.clipping_stats()["steps"] == len(optimizer.grad_norms()) == 3


class BackwardItself(torch.optim.SGD):
    def step(self, closure=None):
        closure().backward()
        return super().step()


class IgnoresClosure(torch.optim.SGD):
    def step(self, closure=None):
        return super().step()


class UpdatesFirst(torch.optim.SGD):
    def step(self, closure=None):
        super().step()
        return closure()


@pytest.mark.parametrize("cls", [BackwardItself, IgnoresClosure, UpdatesFirst])
def test_a_step_that_would_use_gradients_that_are_not_clipped_is_taken_back_and_refused(cls):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = clip_optimizer(cls([weight], lr=0.1), "norm", 1.0)
    if cls is not BackwardItself:
        weight.grad = torch.tensor([3.0, 4.0])
    with pytest.raises(RuntimeError, match="GradientClipper"):
        optimizer.step(lambda: (weight * torch.tensor([3.0, 4.0])).sum())
    assert not weight.any()


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam])
def test_mixin_behind_the_optimizer_is_refused(base):
    with pytest.raises(TypeError, match=rf"write class Wrong\(Clipped, {base.__name__}\), Clipped first"):

        class Wrong(base, Clipped):
            """Never clips."""


class NoClosure(torch.optim.SGD):
    def step(self):
        torch.optim.SGD.step(self)
        return "done"


class KeywordClosure(torch.optim.SGD):
    def step(self, *, closure=None):
        return torch.optim.SGD.step(self, closure)


class MoreArguments(torch.optim.SGD):
    def step(self, closure=None, scale=1.0, *, extra=None):
        self.given = scale, extra
        return torch.optim.SGD.step(self, closure)


class TakesLoss(torch.optim.SGD):
    def step(self, loss=None):
        self.given = loss
        return torch.optim.SGD.step(self)


@pytest.mark.parametrize("clipping_type", ["norm", "none"])
def test_arguments_of_a_step_are_handed_on(clipping_type):
    def made(cls):
        weight = torch.nn.Parameter(torch.zeros(2))
        weight.grad = torch.tensor([3.0, 4.0])
        return weight, clip_optimizer(cls([weight], lr=1.0), clipping_type)

    length = 1.0 if clipping_type == "norm" else 5.0
    weight, optimizer = made(NoClosure)
    assert optimizer.step() == "done"
    assert weight.norm().item() == pytest.approx(length)
    weight, optimizer = made(MoreArguments)
    optimizer.step(None, 2.0, extra="more")
    assert optimizer.given == (2.0, "more")
    assert weight.norm().item() == pytest.approx(length)
    weight, optimizer = made(TakesLoss)
    optimizer.step(torch.tensor(2.0))
    assert optimizer.given == 2.0
    assert weight.norm().item() == pytest.approx(length)
    weight, optimizer = made(KeywordClosure)

    def closure():
        weight.grad = torch.tensor([6.0, 8.0])
        return 7.0

    assert optimizer.step(closure=closure) == 7.0
    assert weight.norm().item() == pytest.approx(min(length * 2, 10.0) if clipping_type == "none" else 1.0)
