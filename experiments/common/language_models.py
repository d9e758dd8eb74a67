"""Small character-level language models and their loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 32
VALIDATION_WINDOWS = 512
LARGEST_NORM = 0.25  # level of clipping type norm


class Recurrent(nn.Module):
    """Model of one recurrent layer: characters (batch, length) -> logits of the next ones (batch, length, alphabet)."""

    layer: type[nn.RNNBase]

    def __init__(self, alphabet: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, 32)
        self.recurrent = self.layer(32, width, batch_first=True)
        self.logits = nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.recurrent(self.embedding(characters))[0])
        return logits


class RNN(Recurrent):
    """Plain recurrent layer with tanh, whose gradients explode (Pascanu et al. 2013)."""

    layer = nn.RNN


class LSTM(Recurrent):
    """Layer with long short-term memory (Hochreiter and Schmidhuber 1997)."""

    layer = nn.LSTM


class Transformer(nn.Module):
    """Model of two causal self-attention layers, with inputs and outputs of the same shapes as :class:`Recurrent`."""

    def __init__(self, alphabet: int, width: int = 64, longest: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, width)
        self.positions = nn.Embedding(longest, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.logits = nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        positions = torch.arange(characters.shape[1], device=characters.device)
        mask = nn.Transformer.generate_square_subsequent_mask(len(positions), device=characters.device)
        hidden = self.layers(self.embedding(characters) + self.positions(positions), mask=mask, is_causal=True)
        logits: Tensor = self.logits(hidden)
        return logits


MODELS: dict[str, type[LSTM] | type[Transformer]] = {"lstm": LSTM, "transformer": Transformer}


@torch.no_grad()
def continuation(model: nn.Module, start: Tensor, length: int, seed: int) -> Tensor:
    """Return characters that a model draws one after another from its own predictions.

    Args:
        model: maps characters (batch, length) to logits of the next ones.
        start: beginning of the text, shape (characters,); the model always sees this number of latest characters.
        length: number of characters to draw.
        seed: seed of the draws.
    """
    generator, text = torch.Generator().manual_seed(seed), start
    for _ in range(length):
        seen = text[-len(start) :][None].to(next(model.parameters()).device)
        odds = model(seen)[0, -1].double().softmax(0).cpu()
        text = torch.cat([text, torch.multinomial(odds, 1, generator=generator)])
    return text[len(start) :]


def next_character_loss(model: nn.Module, windows: tuple[Tensor, Tensor], device: str | torch.device = "cpu") -> Tensor:
    """Return the cross-entropy of the next characters, in nats a character."""
    characters, following = windows
    return cross_entropy(model(characters.to(device)).flatten(0, 1), following.to(device).flatten())
