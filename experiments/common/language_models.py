"""Two small character-level language models and their loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

BATCH = 32
VALIDATION_WINDOWS = 512
LARGEST_NORM = 0.25  # the level of clipping type norm


class LSTM(nn.Module):
    """One LSTM layer: characters (batch, length) -> logits of the next ones (batch, length, alphabet)."""

    def __init__(self, alphabet: int, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.logits = nn.Linear(width, alphabet)

    def forward(self, characters: Tensor) -> Tensor:
        logits: Tensor = self.logits(self.lstm(self.embedding(characters))[0])
        return logits


class Transformer(nn.Module):
    """Two causal layers of self-attention, of the same shapes as :class:`LSTM`."""

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


def next_character_loss(model: nn.Module, windows: tuple[Tensor, Tensor], device: str | torch.device = "cpu") -> Tensor:
    """Return the cross-entropy of the next characters, in nats a character."""
    characters, following = windows
    return cross_entropy(model(characters.to(device)).flatten(0, 1), following.to(device).flatten())
