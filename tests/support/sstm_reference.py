"""The slow oracle of the clipped stochastic similar triangles method, in plain Python floats.

Eduard Gorbunov, Marina Danilova, Alexander Gasnikov. Stochastic Optimization with Heavy-Tailed Noise via Accelerated Gradient
Clipping. 2020. https://arxiv.org/abs/2005.10785 (clipped-SSTM; the exponent nu from https://arxiv.org/abs/2106.05958).

It imports nothing of the library. One object is one vector of weights, which is one block.
"""


class ReferenceSSTM:
    """x, y and z, and one line for each line of the method."""

    def __init__(self, weights, lr, L, nu=1.0, ratio=1.0):  # noqa: N803
        self.a, self.L, self.nu, self.ratio = 1 / lr, L, nu, ratio
        self.k, self.A_k = 0, 0.0
        self.y = list(weights)
        self.z = list(weights)
        self.x = list(weights)  # x_1, for A_0 = 0
        self.prepare()

    def prepare(self):
        """alpha_{k+1}, A_{k+1} and x_{k+1}, before the gradient is taken."""
        self.alpha = (self.k + 1) ** (2 * self.nu / (1 + self.nu)) / (2 * self.a * self.L)
        self.A_next = self.A_k + self.alpha
        if self.A_k > self.ratio * self.A_next:  # bounded: A_k / A_{k+1} = ratio
            self.A_next = self.alpha / (1 - self.ratio)
            self.A_k = self.ratio * self.A_next
        self.x = [(self.A_k * y + self.alpha * z) / self.A_next for y, z in zip(self.y, self.z, strict=True)]

    def threshold(self, level):
        return level / self.alpha

    def step(self, clipped_gradient):
        """z_{k+1} and y_{k+1} from the clipped gradient at x_{k+1}; then x_{k+2}."""
        self.z = [z - self.alpha * g for z, g in zip(self.z, clipped_gradient, strict=True)]
        self.y = [(self.A_k * y + self.alpha * z) / self.A_next for y, z in zip(self.y, self.z, strict=True)]
        self.k, self.A_k = self.k + 1, self.A_next
        self.prepare()


def clip_norm(vectors, threshold):
    """All vectors together no longer than the threshold."""
    length = sum(v * v for vector in vectors for v in vector) ** 0.5
    factor = min(1.0, threshold / length) if length > 0 else 1.0
    return [[factor * v for v in vector] for vector in vectors]


def clip_layers(vectors, threshold):
    """Each vector no longer than the threshold."""
    return [clip_norm([vector], threshold)[0] for vector in vectors]


def clip_coordinates(vectors, threshold):
    """Each entry between plus and minus the threshold."""
    return [[max(-threshold, min(threshold, v)) for v in vector] for vector in vectors]


def clip_randomly(vectors, threshold, power, beta, number):
    """As clip_norm, with probability beta**(alpha**power): where the number, uniform in [0, 1), is below that."""
    length = sum(v * v for vector in vectors for v in vector) ** 0.5
    alpha = threshold / length if length > 0 else 1.0
    return (
        clip_norm(vectors, threshold) if alpha < 1 and number < beta ** (alpha**power) else [list(vector) for vector in vectors]
    )
