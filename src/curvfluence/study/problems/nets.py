"""The net of a built-in problem: what a protocol or a sweep can change about it, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from curvfluence import kinds
from curvfluence.errors import InputError

ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"gelu": nn.GELU, "tanh": nn.Tanh, "relu": nn.ReLU}
)


@dataclass(frozen=True)
class MLP:
    """Linear layers of `sizes`, from the inputs to the outputs, with an activation between them;
    calling it builds one, initialised as torch does."""

    sizes: tuple[int, ...]
    activation: str = "gelu"
    bias: bool = True

    def __post_init__(self) -> None:
        kinds.flag(self.bias, "bias")
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; seen {self.activation!r}"
            )

    def __call__(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width, following in pairwise(self.sizes):
            layers += [nn.Linear(width, following, bias=self.bias), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    @property
    def hidden(self) -> tuple[int, ...]:
        """The widths between inputs and outputs."""
        return self.sizes[1:-1]

    @property
    def parameters(self) -> int:
        """How many numbers it trains."""
        return sum((i + self.bias) * o for i, o in pairwise(self.sizes))

    def with_hidden(self, *, depth: int | None = None, width: int | None = None) -> MLP:
        """With `depth` hidden layers of `width`, by default as many, and as wide as the first.

        Errors: `InputError` where the net has no hidden layer whose width could be taken.
        """
        if width is None and not self.hidden:
            raise InputError(f"a net of sizes {self.sizes} has no hidden layer: name its width too")
        wide = self.hidden[0] if width is None else width
        deep = len(self.hidden) if depth is None else depth
        return replace(self, sizes=(self.sizes[0], *[wide] * deep, self.sizes[-1]))


@dataclass(frozen=True)
class CNN:
    """Two strided convolutions of 5 × 5 and a linear layer, for images of 28 × 28."""

    channels: tuple[int, int] = (8, 16)
    classes: int = 10

    def __call__(self) -> nn.Sequential:
        first, second = self.channels
        return nn.Sequential(
            nn.Conv2d(1, first, 5, stride=2),
            nn.GELU(),
            nn.Conv2d(first, second, 5, stride=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(second * 16, self.classes),
        )


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    mask: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(length, length).tril().log(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        parts = self.qkv(x).view(n, t, 3, self.heads, width // self.heads).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        weights = (q @ k.mT / (width // self.heads) ** 0.5 + self.mask[:t, :t]).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, width))


class Transformer(nn.Module):
    """Embeddings of symbols and places, blocks of attention and an MLP, a head; norms before."""

    places: Tensor

    def __init__(self, symbols: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.positions = nn.Embedding(length, width)
        self.register_buffer("places", torch.arange(length), persistent=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "before": nn.LayerNorm(width),
                    "attention": Attention(width, heads, length),
                    "between": nn.LayerNorm(width),
                    "mlp": nn.Sequential(
                        nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
                    ),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        h = self.symbols(x) + self.positions(self.places[: x.shape[1]])
        for block in self.blocks:
            h = h + block["attention"](block["before"](h))  # type: ignore[index]
            h = h + block["mlp"](block["between"](h))  # type: ignore[index]
        return self.head(self.norm(h))


@dataclass(frozen=True)
class ByteTransformer:
    """Predicts the next symbol of a text at every place of a window."""

    symbols: int
    length: int
    width: int = 32
    heads: int = 4
    depth: int = 1

    def __call__(self) -> Transformer:
        return Transformer(self.symbols, self.length, self.width, self.heads, self.depth)
