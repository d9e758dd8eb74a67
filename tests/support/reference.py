"""The slow oracle: every clipping type and the optimizers under it, in plain Python floats.

Written from the published formulas, line by line, for reading and not for speed. It imports nothing of the
library, so that agreement with the library means something. One ``ReferenceClipper`` is one clip set.

    length = p-norm of a block        alpha = threshold / length        g <- g * min(1, alpha)

References:
    norm: Razvan Pascanu, Tomas Mikolov, Yoshua Bengio. On the difficulty of training recurrent neural
        networks. 2013. https://arxiv.org/abs/1211.5063
    auto: Prem Seetharaman, Gordon Wichern, Bryan Pardo, Jonathan Le Roux. AutoClip: Adaptive Gradient
        Clipping for Source Separation Networks. 2020. https://arxiv.org/abs/2007.14469
    adaptive: Andrew Brock, Soham De, Samuel L. Smith, Karen Simonyan. High-Performance Large-Scale Image
        Recognition Without Normalization. 2021. https://arxiv.org/abs/2102.06171
    zclip: Abhay Kumar, Louis Owen, Nilabhra Roy Chowdhury, Fabian Güra. ZClip: Adaptive Spike Mitigation for
        LLM Pre-Training. 2025. https://arxiv.org/abs/2504.02507
    adagc: Guoxia Wang, Shuai Li, Congliang Chen, Jinle Zeng, Jiabin Yang, Dianhai Yu, Yanjun Ma, Li Shen.
        AdaGC: Enhancing LLM Pretraining Stability via Adaptive Gradient Clipping. 2025.
        https://arxiv.org/abs/2502.11034
    SGD, Adam, AdamW: https://docs.pytorch.org/docs/stable/optim.html
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

Weights = Sequence[Sequence[float]]
Gradients = Sequence[Sequence[float] | None]
Shapes = Sequence[Sequence[int]]
Block = list[tuple[int, int]]  # (tensor, place in the flat tensor) of each entry


def p_norm(values: Sequence[float], p: float = 2.0) -> float:
    """(sum |v|^p)^(1/p), the largest |v| for p = inf; NaN and inf in, NaN and inf out."""
    if not p >= 1:
        raise ValueError(f"p must be at least 1, got {p}")
    moduli = [abs(value) for value in values]
    if any(math.isnan(modulus) for modulus in moduli):
        return math.nan
    largest = max(moduli, default=0.0)
    if p == math.inf or largest in (0.0, math.inf):
        return largest
    return largest * math.pow(math.fsum((modulus / largest) ** p for modulus in moduli), 1 / p)


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between order statistics: numpy's default percentile, q from 0 to 1."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation (n - 1) of at least two values."""
    mean = math.fsum(values) / len(values)
    return mean, p_norm([value - mean for value in values]) / math.sqrt(len(values) - 1)


def clipping_probability(alpha: float, beta: float, power: int) -> float:
    """0 where nothing is too long (alpha >= 1), else beta**(alpha**power)."""
    return beta ** (alpha**power) if alpha < 1 else 0.0


class ZClip:
    """Running mean and variance of the clipped norms; z > level is clipped to z* = level**2 / z.

    The order is that of the authors' package zclip 1.0.0 (class ZClip, clip_option="adaptive_scaling"): z and
    the threshold come from the statistics of the steps before; then the mean moves; then the variance moves,
    by the distance to the mean that has just moved. The norms of the warm-up enter unclipped and with equal
    weights, the variance over n; the step that completes the warm-up is not clipped either. Two things of the
    package are no part of this: the further limit max_grad_norm, and the 1e-6 it adds to the std in z alone,
    which makes the result depend on the unit of the gradient.
    """

    AVERAGING, WARM_UP = 0.97, 25

    def __init__(self, warm_up: int | None = None) -> None:
        self.warm_up = self.WARM_UP if warm_up is None else max(1, warm_up)
        self.first_norms: list[float] = []
        self.mean = self.variance = math.nan

    def threshold(self, norm: float, level: float) -> float:
        """The threshold for this norm, infinite where it is not to be clipped; then the statistics move."""
        if len(self.first_norms) < self.warm_up:
            self.first_norms.append(norm)
            if len(self.first_norms) == self.warm_up:
                self.mean = math.fsum(self.first_norms) / self.warm_up
                deviations = [first - self.mean for first in self.first_norms]
                self.variance = math.fsum(deviation * deviation for deviation in deviations) / self.warm_up
            return math.inf
        std = math.sqrt(self.variance)
        z = (norm - self.mean) / std if std > 0 else math.copysign(math.inf, norm - self.mean)
        threshold = self.mean + level * level / z * std if z > level else math.inf
        clipped = min(norm, threshold)
        self.mean = self.AVERAGING * self.mean + (1 - self.AVERAGING) * clipped
        deviation = clipped - self.mean
        self.variance = self.AVERAGING * self.variance + (1 - self.AVERAGING) * deviation * deviation
        return threshold


class AdaGC:
    """A running average gamma of each tensor's clipped norms.

    The method: h = min(lambda_rel * gamma[t-1] / ||g[t]||, 1); g[t] <- h * g[t]; and with this clipped
    gradient gamma[t] = beta * gamma[t-1] + (1 - beta) * ||g[t]||. In the warm-up h = min(lambda_abs / ||whole
    gradient||, 1) and gamma[t] = min(gamma[t-1], ||g[t]||), again of the gradient already clipped. The
    warm-up is steps 1 to 100, as in the authors' code (github.com/lishuai-97/AdaGC, class AdaGC; it also adds
    1e-6 to the denominators of h, which is left out here). A tensor whose first gradient comes after the
    warm-up starts its average at that very norm, as there.
    """

    AVERAGING, WARM_UP, GLOBAL_LEVEL = 0.99, 100, 1.0

    def __init__(self, warm_up: int | None = None, level: float = GLOBAL_LEVEL) -> None:
        self.warm_up, self.global_level = self.WARM_UP if warm_up is None else warm_up, level
        self.gamma: dict[int, float] = {}

    def threshold(self, tensor: int, norm: float, whole_norm: float, step: int, level: float) -> float:
        """The threshold for this tensor's norm in this step, counted from 1; then its average moves."""
        if step <= self.warm_up:
            threshold = norm * (self.global_level / whole_norm)  # alpha is that of the whole gradient
            self.gamma[tensor] = min(self.gamma.get(tensor, math.inf), norm, threshold)
            return threshold
        gamma = self.gamma.get(tensor, norm)
        threshold = level * gamma
        self.gamma[tensor] = self.AVERAGING * gamma + (1 - self.AVERAGING) * min(norm, threshold)
        return threshold


class Row(NamedTuple):
    """One clipping type: what is measured, which threshold, the power of alpha in the draw (0: no draw)."""

    measure: str
    threshold: str
    power: int
    level: float


CLIPPING_TYPES = {
    "none": Row("global", "none", 0, math.nan),
    "norm": Row("global", "constant", 0, 1.0),
    "layer_wise": Row("layer", "constant", 0, 0.3),
    "coord_wise": Row("coordinate", "constant", 0, 0.1),
    "auto": Row("global", "quantile", 0, 0.75),
    "linear_rand_norm": Row("global", "constant", 1, 1.0),
    "quadratic_rand_norm": Row("global", "constant", 2, 1.0),
    "linear_rand_auto": Row("global", "quantile", 1, 0.75),
    "quadratic_rand_auto": Row("global", "quantile", 2, 0.75),
    "layer_wise_auto": Row("layer", "quantile", 0, 0.9),
    "zscore": Row("global", "zscore", 0, 2.0),
    "layer_wise_zscore": Row("layer", "zscore", 0, 2.0),
    "adaptive": Row("unit", "weights", 0, 0.01),
    "zclip": Row("global", "zclip", 0, 2.5),
    "adagc": Row("layer", "adagc", 0, 1.04),
}


class ReferenceClipper:
    """Clips one set of tensors, step after step, and remembers what its type needs.

    A step whose whole length is 0 or not finite leaves everything as it is: gradients, memory, counts, draws.
    A block whose own length is 0 (a missing gradient, zeros) leaves its own memory as it is.

    With ``action="skip"`` a step with a block that its type would clip is left out: ``skipped`` says so, the gradients
    are handed back as they are, and all coefficients are 0; adagc has no level in its warm-up then. No block is left
    longer than ``cap``; what a type remembers does not know of it. Types with a memory do not clip before they have
    seen ``warm_up`` norms of a block.

    After ``clip``, of that step:
        length: the p-norm of the whole gradient before clipping.
        lengths, thresholds, coefficients: of the blocks, in order. Blocks are: global, one; layer, one per
            tensor, also where the gradient is missing (length 0); unit and coordinate, those of the gradients
            that are there. A threshold is infinite where there is none: length 0, the warm-up of zclip, too
            little history, z not above level.
        clipped: whether any coefficient is below 1.
    Of all steps so far: steps, clipped_steps, skipped_steps, grad_norms (the last ``window`` whole lengths before clipping,
    oldest first).
    """

    def __init__(
        self,
        clipping_type: str,
        level: float | None = None,
        *,
        beta: float = 0.85,
        window: int = 1000,
        norm_type: float = 2.0,
        action: str = "clip",
        cap: float | None = None,
        warm_up: int | None = None,
    ) -> None:
        self.row = CLIPPING_TYPES[clipping_type]
        self.level = self.row.level if level is None else level
        self.beta, self.window, self.norm_type = beta, window, norm_type
        self.action, self.cap, self.warm_up = action, math.inf if cap is None else cap, warm_up or 0
        self.histories: dict[int, list[float]] = {}
        self.seen: dict[int, int] = {}
        self.zclip: defaultdict[int, ZClip] = defaultdict(lambda: ZClip(warm_up))  # one a block
        self.adagc = AdaGC(warm_up, math.inf) if action == "skip" else AdaGC(warm_up)
        self.grad_norms: list[float] = []
        self.steps = self.clipped_steps = self.skipped_steps = 0
        self.length = 0.0
        self.lengths: list[float] = []
        self.thresholds: list[float] = []
        self.coefficients: list[float] = []
        self.clipped = self.skipped = False

    def clip(
        self,
        gradients: Gradients,
        weights: Weights | None = None,
        uniform: float | None = None,
        shapes: Shapes | None = None,
    ) -> list[list[float] | None]:
        """The clipped gradients; weights and shapes serve the unit measure, uniform the random types."""
        present = {tensor: list(flat) for tensor, flat in enumerate(gradients) if flat is not None}
        blocks = self._blocks(gradients, shapes)
        self.length = p_norm([value for flat in present.values() for value in flat], self.norm_type)
        self.lengths = [p_norm([present[i][j] for i, j in block], self.norm_type) for block in blocks]
        self.thresholds = [math.inf] * len(blocks)
        self.coefficients = [1.0] * len(blocks)
        self.clipped = self.skipped = False
        if self.length == 0 or not math.isfinite(self.length):
            return [present.get(tensor) for tensor in range(len(gradients))]

        self.steps += 1
        self.grad_norms = [*self.grad_norms, self.length][-self.window :]
        for number, (block, length) in enumerate(zip(blocks, self.lengths, strict=True)):
            if length == 0:
                continue
            threshold = self._threshold(number, block, length, weights)
            alpha = threshold / length
            own = alpha if alpha < 1 and self._decides(alpha, uniform) else 1.0
            if own < 1 and self.action == "skip":
                self.skipped, own = True, 1.0
            self.thresholds[number] = min(threshold, self.cap)
            self.coefficients[number] = min(own, self.cap / length)
        if self.skipped:
            self.coefficients = [0.0] * len(blocks)
        else:
            for block, coefficient in zip(blocks, self.coefficients, strict=True):
                for i, j in block:
                    present[i][j] *= coefficient
        self.clipped = any(coefficient < 1 for coefficient in self.coefficients)
        self.clipped_steps += self.clipped
        self.skipped_steps += self.skipped
        return [present.get(tensor) for tensor in range(len(gradients))]

    def _blocks(self, gradients: Gradients, shapes: Shapes | None) -> list[Block]:
        """The places of every block's entries."""
        tensors: list[Block] = [[(i, j) for j in range(len(flat or ()))] for i, flat in enumerate(gradients)]
        if self.row.measure == "layer":
            return tensors
        if self.row.measure == "global":
            return [[place for tensor in tensors for place in tensor]]
        if self.row.measure == "coordinate":
            return [[place] for tensor in tensors for place in tensor]
        # Brock et al.: rows of a matrix, filters of a convolution (dimension 0), a whole vector or scalar.
        if shapes is None:
            raise ValueError("the unit measure needs shapes")
        blocks: list[Block] = []
        for tensor, shape in zip(tensors, shapes, strict=True):
            size = len(tensor) // shape[0] if len(shape) > 1 and shape[0] > 0 else len(tensor)
            blocks += [tensor[start : start + size] for start in range(0, len(tensor), size or 1)]
        return blocks

    def _threshold(self, number: int, block: Block, length: float, weights: Weights | None) -> float:
        """The threshold of one block with length > 0; what its type remembers moves on."""
        kind = self.row.threshold
        if kind == "none":
            return math.inf
        if kind == "constant":
            return self.level
        if kind == "weights":
            if weights is None:
                raise ValueError("the unit measure needs weights")
            return self.level * max(p_norm([weights[i][j] for i, j in block], self.norm_type), 1e-3)
        if kind == "zclip":
            return self.zclip[number].threshold(length, self.level)
        if kind == "adagc":
            return self.adagc.threshold(number, length, self.length, self.steps, self.level)
        before, seen = self.histories.get(number, []), self.seen.get(number, 0)
        self.histories[number] = [*before, length][-self.window :]
        self.seen[number] = seen + 1
        if seen < self.warm_up:
            return math.inf
        if kind == "quantile":  # the present one included, as in AutoClip
            return quantile(self.histories[number], self.level)
        if len(before) < 2:
            return math.inf
        mean, std = mean_and_std(before)  # the present one excluded
        return mean + self.level * std

    def _decides(self, alpha: float, uniform: float | None) -> bool:
        """Whether a block that is too long is clipped this time."""
        if self.row.power == 0:
            return True
        if uniform is None:
            raise ValueError("the random types need a uniform draw")
        return uniform < clipping_probability(alpha, self.beta, self.row.power)


Params = list[list[float]]
State = dict[int, dict[str, Any]]  # by the place of the parameter; starts empty


def reference_sgd_step(
    params: Params,
    grads: Gradients,
    state: State,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    """One step of SGD as torch.optim documents it, in place; None leaves its parameter alone."""
    for number, (theta, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is None:
            continue
        g = [-value if maximize else value for value in grad]
        if weight_decay != 0:
            g = [value + weight_decay * w for value, w in zip(g, theta, strict=True)]
        if momentum != 0:
            kept = state.setdefault(number, {})
            if "b" in kept:
                pairs = zip(kept["b"], g, strict=True)
                kept["b"] = [momentum * b + (1 - dampening) * value for b, value in pairs]
            else:  # the first gradient is not dampened
                kept["b"] = g
            g = [value + momentum * b for value, b in zip(g, kept["b"], strict=True)] if nesterov else kept["b"]
        theta[:] = [w - lr * value for w, value in zip(theta, g, strict=True)]


def reference_adam_step(
    params: Params,
    grads: Gradients,
    state: State,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    *,
    decoupled: bool,
    amsgrad: bool = False,
    maximize: bool = False,
) -> None:
    """One step of Adam, of AdamW if decoupled, as torch.optim documents them, in place; None as above."""
    beta1, beta2 = betas
    for number, (theta, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is None:
            continue
        zeros = [0.0] * len(theta)
        kept = state.setdefault(number, {"t": 0, "m": zeros, "v": zeros, "v_max": zeros})
        g = [-value if maximize else value for value in grad]
        if decoupled:
            theta[:] = [w * (1 - lr * weight_decay) for w in theta]
        elif weight_decay != 0:
            g = [value + weight_decay * w for value, w in zip(g, theta, strict=True)]
        kept["t"] += 1
        kept["m"] = [beta1 * m + (1 - beta1) * value for m, value in zip(kept["m"], g, strict=True)]
        kept["v"] = [beta2 * v + (1 - beta2) * value * value for v, value in zip(kept["v"], g, strict=True)]
        kept["v_max"] = [max(largest, v) for largest, v in zip(kept["v_max"], kept["v"], strict=True)]
        m_hat = [m / (1 - beta1 ** kept["t"]) for m in kept["m"]]
        v_hat = [v / (1 - beta2 ** kept["t"]) for v in kept["v_max" if amsgrad else "v"]]
        theta[:] = [w - lr * m / (math.sqrt(v) + eps) for w, m, v in zip(theta, m_hat, v_hat, strict=True)]
