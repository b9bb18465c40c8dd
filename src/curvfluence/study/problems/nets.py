"""The net of a built-in problem: what a protocol or a sweep can change about it, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

from torch import nn

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
