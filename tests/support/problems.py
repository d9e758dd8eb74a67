"""Gradients of known sizes, and steps taken with them."""

import math

import torch


class Problem:
    """Parameters of several shapes, and reproducible gradients for them."""

    shapes = ((3, 4), (5,), (), (2, 3, 2, 2))

    def parameters(self, dtype=torch.float32, shapes=shapes):
        """The same start on every call."""
        generator = torch.Generator().manual_seed(7)
        return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]

    def gradients(self, step, norm=None, dtype=torch.float32, shapes=shapes):
        """Gradients of step ``step``: of heavy-tailed lengths, or all together of length ``norm``."""
        generator = torch.Generator().manual_seed(1000 + step)
        grads = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        factor = math.exp(1.5 * torch.randn((), generator=generator, dtype=torch.float64).item())
        if norm is not None:
            factor = norm / self.length(grads)
        return [(g * factor).to(dtype) for g in grads]

    @staticmethod
    def length(tensors):
        """Euclidean length of all tensors together, in float64."""
        return torch.cat([t.detach().double().flatten() for t in tensors]).norm().item()

    @staticmethod
    def step(optimizer, grads):
        """Step with ``grads``; the clipped gradients."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(params, grads, strict=True):
            p.grad = None if g is None else g.clone()
        optimizer.step()
        return [p.grad for p in params]

    @staticmethod
    def scaled_step(scaler, optimizer, grads, *, unscale):
        """Step with ``grads`` by a gradient scaler, which is told to unscale by hand or not."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        scaler.scale(sum((p * g).sum() for p, g in zip(params, grads, strict=True))).backward()
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()

    @staticmethod
    def copies(tensors):
        return [t.detach().clone() for t in tensors]
