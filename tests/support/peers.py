"""Other libraries' clipping, written out from their sources, for tests that run where those libraries cannot be installed.

Each function names the file it was written from; tests/pages/test_migration.py compares it with the library itself where that is
installed.
"""

from types import ModuleType, SimpleNamespace

import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_


def unit_norms(tensor):
    """Of the rows of a matrix and the filters of a convolution; of a vector and a number as a whole."""
    return tensor.norm(dim=tuple(range(1, tensor.dim())), keepdim=True) if tensor.dim() > 1 else tensor.norm()


@torch.no_grad()
def composer_gradient_clipping(model, clipping_type, clipping_threshold, fsdp_enabled):
    """composer/algorithms/gradient_clipping/gradient_clipping.py of mosaicml 0.32.1, without FSDP."""
    if clipping_type == "norm":
        clip_grad_norm_(model.parameters(), clipping_threshold)
    elif clipping_type == "value":
        clip_grad_value_(model.parameters(), clipping_threshold)
    else:
        for p in model.parameters():
            coefficient = clipping_threshold * unit_norms(p) / unit_norms(p.grad)  # no floor under the weights' norm
            p.grad.mul_(coefficient.nan_to_num(nan=1.0).clamp(max=1.0))


@torch.no_grad()
def timm_dispatch_clip_grad(parameters, value, mode="norm", norm_type=2.0):
    """timm/utils/clip_grad.py and timm/utils/agc.py of timm 1.0.31, for norm_type 2."""
    if mode == "norm":
        clip_grad_norm_(parameters, value)
    elif mode == "value":
        clip_grad_value_(parameters, value)
    else:
        for p in parameters:
            longest, length = value * unit_norms(p).clamp(min=1e-3), unit_norms(p.grad)
            p.grad.copy_(torch.where(length < longest, p.grad, p.grad * longest / length.clamp(min=1e-6)))


class KerasSGD:
    """keras/src/optimizers/sgd.py and base_optimizer.py of keras 3.15.1: clipping, and SGD with momentum."""

    def __init__(self, learning_rate, momentum=0.0, clipnorm=None, global_clipnorm=None, clipvalue=None):
        self.learning_rate, self.momentum, self.moments = learning_rate, momentum, {}
        self.clipnorm, self.global_clipnorm, self.clipvalue = clipnorm, global_clipnorm, clipvalue

    def clipped(self, grads):
        if self.clipnorm:
            return [g * self.clipnorm / g.square().sum().sqrt().clamp(min=self.clipnorm) for g in grads]
        if self.global_clipnorm:
            norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
            return [g * self.global_clipnorm * torch.minimum(1 / norm, torch.tensor(1 / self.global_clipnorm)) for g in grads]
        return [g.clamp(-self.clipvalue, self.clipvalue) for g in grads] if self.clipvalue else grads

    def apply(self, grads, variables):
        for g, variable in zip(self.clipped(grads), variables, strict=True):
            moment = self.moments.get(variable.value, 0) * self.momentum - g * self.learning_rate
            self.moments[variable.value] = moment
            variable.value += moment


def percentile_scale(grad, squared_norms, step, percentile):
    """percentile_clipping in bitsandbytes/functional.py of bitsandbytes 0.49.2 (the last release with it, for CUDA only).

    The kernel is kPercentileClipping in csrc/kernels.cu: it writes the squared norm into place step % 100, in step 1 into all.
    """
    squared_norms[slice(None) if step == 1 else step % 100] = grad.square().sum()
    longest, norm = squared_norms.sort().values[percentile].sqrt(), squared_norms[step % 100].sqrt()
    return longest / norm if norm > longest else 1.0


class BitsandbytesAdam(torch.optim.Adam):
    """Adam in 32 bits with percentile_clipping: the scale is multiplied into each tensor's gradient by itself."""

    def __init__(self, params, lr=1e-3, percentile_clipping=100):
        super().__init__(params, lr)
        self.percentile, self.count, self.histories = percentile_clipping, 0, {}

    @torch.no_grad()
    def step(self):
        self.count += 1
        for p in self.param_groups[0]["params"]:
            history = self.histories.setdefault(p, torch.zeros(100, dtype=p.dtype))
            p.grad.mul_(percentile_scale(p.grad, history, self.count, self.percentile))
        super().step()


class PyroClippedAdam(torch.optim.Optimizer):
    """pyro/optim/clipped_adam.py of pyro-ppl 1.9.2, without weight decay and centered variance."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, clip_norm=10.0, lrd=1.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "clip_norm": clip_norm, "lrd": lrd})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["lr"] *= group["lrd"]
            (beta1, beta2), eps = group["betas"], group["eps"]
            for p in group["params"]:
                grad, state = p.grad.clamp_(-group["clip_norm"], group["clip_norm"]), self.state[p]
                state["step"] = state.get("step", 0) + 1
                state["mean"] = beta1 * state.get("mean", 0) + (1 - beta1) * grad
                state["square"] = beta2 * state.get("square", 0) + (1 - beta2) * grad.square()
                rate = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
                p.sub_(rate * state["mean"] / (state["square"].sqrt() + eps))


def module(name, **contents):
    made = ModuleType(name)
    vars(made).update(contents)
    return made


STAND_INS = {  # what is imported: modules to be found under these names
    "composer.functional": {
        "composer": module("composer"),
        "composer.functional": module("composer.functional", apply_gradient_clipping=composer_gradient_clipping),
    },
    "timm.utils": {
        "timm": module("timm"),
        "timm.utils": module("timm.utils", dispatch_clip_grad=timm_dispatch_clip_grad),
    },
    "keras": {"keras": module("keras", optimizers=SimpleNamespace(SGD=KerasSGD))},
    "bitsandbytes": {"bitsandbytes": module("bitsandbytes", optim=SimpleNamespace(Adam=BitsandbytesAdam))},
    "pyro.optim.clipped_adam": {
        "pyro": module("pyro"),
        "pyro.optim": module("pyro.optim"),
        "pyro.optim.clipped_adam": module("pyro.optim.clipped_adam", ClippedAdam=PyroClippedAdam),
    },
}
