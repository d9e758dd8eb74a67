"""How to make and to drive the optimizers of other libraries, each by its name there."""

import copy
import importlib.util
import inspect
import pickle
import random
import sys
from functools import cache
from types import ModuleType

import numpy as np
import torch

LEVEL = 0.5
STEPS = 6

# Optimizers that take the gradient within a step, or move the weights before there is one
TWO_STEPS = ("SAM", "BSAM", "FriendlySAM", "LookSAM", "WSAM", "GSAM")
REFUSED = {f"pytorch_optimizer.{name}": "takes gradients within a step" for name in TWO_STEPS}
REFUSED |= {f"pytorch_optimizer.{name}": "fused_backward" for name in ("LOMO", "AdaLOMO")}
REFUSED |= {f"pytorch_optimizer.{name}": "an argument 'norm_type' of its own" for name in ("SCION", "SCIONLight")}
REFUSED |= {"pytorch_optimizer.SafeFP16Optimizer": "Optimizer.__init__ has made"}  # holds copies of the parameters

# Optimizers around another one: their own class cannot clip, an object can
AROUND = ("GSAM", "Lookahead", "Magma", "OrthoGrad", "PCGrad", "TRAC", "ScheduleFreeWrapper")
REFUSED_AS_CLASS = {f"pytorch_optimizer.{name}": "are those of the" for name in AROUND if name not in TWO_STEPS}

NOT_RUN = {
    "pytorch_optimizer.DeMo": "needs einops and a process group",
    "pytorch_optimizer.DistributedMuon": "needs a process group",
    "transformers.optimization.LayerWiseDummyOptimizer": "stands for optimizers in hooks and moves nothing",
}
NOT_RUN |= {f"timm.bnb{name}": "needs bitsandbytes" for name in ("adam", "adamw", "ademamix", "lion", "sgd")}
NOT_RUN |= {f"timm.bnb{name}8bit": "needs bitsandbytes" for name in ("adam", "adamw", "ademamix", "lion", "sgd")}
NOT_RUN |= {f"timm.fused{name}": "needs apex" for name in ("adam", "adamw", "lamb", "novograd", "sgd")}

MUONS = ("AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon")
OF_MODEL = ("LOMO", "AdaLOMO", "AdamMini")
OF_MATRICES = ("SpectralSphere", "torch.optim.Muon")


class Net(torch.nn.Module):
    """Two layers, so that there are matrices and vectors."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.first, self.second = torch.nn.Linear(6, 4), torch.nn.Linear(4, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.5
        self.inputs = torch.randn(8, 6, generator=generator)
        self.targets = torch.randn(8, 3, generator=generator)

    def loss(self, step):
        """A loss whose gradient is short in every other step."""
        out = self.second(torch.tanh(self.first(self.inputs)))
        return (out - self.targets).square().mean() * (20.0, 0.01)[step % 2]

    def matrices(self):
        return [p for p in self.parameters() if p.ndim == 2]

    def vectors(self):
        return [p for p in self.parameters() if p.ndim == 1]


def names():
    """The optimizers of every library that is installed."""
    found = []
    for library in ("torch.optim", "pytorch_optimizer", "schedulefree", "transformers.optimization"):
        try:
            module = importlib.import_module(library)
        except ImportError:
            continue
        for name, value in sorted(vars(module).items()):
            is_optimizer = inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
            if is_optimizer and value is not torch.optim.Optimizer and library.split(".")[0] == value.__module__.split(".")[0]:
                found.append(f"{library}.{name}")
    if importlib.util.find_spec("timm"):
        for name in timm_optim().list_optimizers():
            found += [f"timm.{name}"] if f"timm.{name}" in NOT_RUN else [f"timm.{name}", f"timm.lookahead_{name}"]
    return found


@cache
def timm_optim():
    """Import timm's optimizers without its models, which need a torchvision of the same build as torch."""
    package, models = ModuleType("timm"), ModuleType("timm.models")
    package.__path__ = importlib.util.find_spec("timm").submodule_search_locations
    models.group_parameters = None  # what timm.optim imports from there; it splits models into layers
    sys.modules.update({"timm": package, "timm.models": models})
    return importlib.import_module("timm.optim")


def recipe(name, model):
    """The class, the arguments and the keyword arguments of an optimizer for this model."""
    library, _, short = name.rpartition(".")
    if library == "timm":
        factory = timm_optim()
        around = short.startswith("lookahead_")
        info = factory.get_optimizer_info(short.removeprefix("lookahead_"))
        options = {"lr": 0.01, "weight_decay": 0.0} | ({"momentum": 0.9} if info.has_momentum else {}) | (info.defaults or {})
        if around:
            return factory.Lookahead, [info.opt_class(model.parameters(), **options)], {}
        return info.opt_class, [list(model.parameters())], options
    cls = getattr(importlib.import_module(library), short)
    if library == "transformers.optimization":
        return cls, [list(model.parameters())], {"scale_parameter": False, "relative_step": False, "lr": 0.01}
    if library != "pytorch_optimizer":
        options = {"lr": 0.01, "max_iter": 3} if short == "LBFGS" else {}
        return cls, [model.matrices() if name in OF_MATRICES else list(model.parameters())], options
    sgd = lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)  # noqa: E731
    if short in MUONS:
        return cls, [[{"params": model.matrices(), "use_muon": True}, {"params": model.vectors(), "use_muon": False}]], {}
    if short in OF_MODEL:
        return cls, [model], {}
    if short == "GSAM":
        scheduler = importlib.import_module("pytorch_optimizer.lr_scheduler").ProportionScheduler
        rates = torch.optim.lr_scheduler.ConstantLR(torch.optim.SGD(model.parameters()))
        return cls, [model.parameters(), sgd(), model, scheduler(rates, 0.1, 0.1)], {}
    if short in AROUND or short == "SafeFP16Optimizer":
        return cls, [sgd()], {}
    if short == "WSAM":
        return cls, [model, model.parameters(), torch.optim.SGD], {"lr": 0.1}
    if short == "BSAM":
        return cls, [model.parameters(), 8], {}
    if short in TWO_STEPS:
        return cls, [model.parameters(), torch.optim.SGD], {"lr": 0.1}
    if short == "AliG":
        return cls, [model.parameters()], {"max_lr": 0.1}
    if short == "Ranger21":
        return cls, [model.parameters(), 10], {}
    return cls, [model.matrices() if short in OF_MATRICES else model.parameters()], {}


def made(name, model):
    """The plain optimizer; timm's by its factory."""
    library, _, short = name.rpartition(".")
    if library == "timm":
        return timm_optim().create_optimizer_v2(model, short, lr=0.01, momentum=0.9)
    cls, arguments, options = recipe(name, model)
    return cls(*arguments, **options)


def clip_by_hand(optimizer):
    """Scale the gradients of an optimizer as the formula says, with the norm in float64."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.cat([g.detach().to_dense().double().flatten() for g in grads]).norm().item()
    with torch.no_grad():
        for g in grads:
            g.mul_(min(1.0, LEVEL / norm))


def drive(model, optimizer, steps, *, by_hand=False):
    """Take steps, with the gradient clipped by hand in front of each if asked for."""
    names = {c.__name__ for c in type(optimizer).__mro__}
    second_order = bool({"AdaHessian", "Adahessian", "SophiaH"} & names) or getattr(optimizer, "is_second_order", False)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in steps:
        torch.manual_seed(step)
        random.seed(step)
        np.random.seed(step)

        def closure(step=step):
            optimizer.zero_grad()
            loss = model.loss(step)
            loss.backward(create_graph=second_order)
            if "SparseAdam" in names:
                for p in model.parameters():
                    p.grad = p.grad.to_sparse()
            if by_hand:
                clip_by_hand(optimizer)
            return loss

        if any(name == "LBFGS" or name.endswith("ScheduleFreeClosure") for name in names):
            optimizer.step(closure)
        else:
            loss = closure().detach()
            optimizer.step(*[lambda loss=loss: loss.item()] * ("AliG" in names))


def deepcopied(name, model, optimizer, make):
    return copy.deepcopy((model, optimizer))


def pickled(name, model, optimizer, make):
    return pickle.loads(pickle.dumps((model, optimizer)))


def resumed(name, model, optimizer, make):
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model = Net()
    optimizer = make(name, model)
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    return model, optimizer


def weights(name, make, between=None, **options):
    """The weights after some steps, with ``between`` in their middle; the type of the error if there is one."""
    model = Net()
    try:
        optimizer = make(name, model)
        drive(model, optimizer, range(STEPS // 2), **options)
        if between is not None:
            model, optimizer = between(name, model, optimizer, make)
        drive(model, optimizer, range(STEPS // 2, STEPS), **options)
    except Exception as error:
        return type(error), str(error)
    return [p.detach() for p in model.parameters()], optimizer
