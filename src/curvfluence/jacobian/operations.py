"""How a weight is used: the operations whose weight gradient is a sum of outer products.

For each, an example's gradient is Σ_t s_t ⊗ a_t over the positions t where the same weights act:
`inputs` gives the a from what went in, `grads` the s from ∂/∂z of what came out. Elementwise
affine operations (normalisation layers) have small gradients of their own instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from curvfluence.jacobian.terms import with_ones


class MatrixOperation(ABC):
    """An operation with weight W: z depends on W through Σ_t s_t ⊗ a_t alone.

    `groups` matrices of `rows` × `columns` (o × i) lie one after the other in the weight's memory,
    each stored as its transpose where `transposed`.
    """

    groups: int
    rows: int
    columns: int
    transposed: bool

    @abstractmethod
    def inputs(self, x: Tensor, ones: bool) -> Tensor:
        """a, [lead..., groups, i]; the leading axes hold the examples first, then positions. With
        `ones`, a 1 stands behind each a."""

    @abstractmethod
    def grads(self, dz: Tensor) -> Tensor:
        """s, [lead..., groups, o], of ∂/∂z (the shape of the output)."""

    def bias_grads(self, dz: Tensor) -> Tensor:
        """∂/∂(z at each position), [lead..., outputs]: what a bias adds up."""
        return self.grads(dz).flatten(-2)

    @property
    def bias_like_rows(self) -> bool:
        """Whether the bias adds to z at the same positions as the weight's rows."""
        return True


@dataclass(frozen=True)
class Linear(MatrixOperation):
    """z = W x (+ b) over the last axis; `transposed` where the weight is stored (i, o)."""

    rows: int
    columns: int
    transposed: bool = False
    groups: int = 1

    def inputs(self, x: Tensor, ones: bool) -> Tensor:
        return (with_ones(x) if ones else x).unsqueeze(-2)

    def grads(self, dz: Tensor) -> Tensor:
        return dz.unsqueeze(-2)


@dataclass(frozen=True)
class Convolution(MatrixOperation):
    """A convolution in n dimensions: a are the patches (Grosse & Martens 2016), s is ∂/∂z."""

    rows: int
    columns: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]  # as F.pad takes it: last axis first, low and high
    transposed: bool = False

    def inputs(self, x: Tensor, ones: bool) -> Tensor:
        return patches(x, self.kernel, self.stride, self.dilation, self.pad, self.groups, ones=ones)

    def grads(self, dz: Tensor) -> Tensor:
        return dz.movedim(1, -1).unflatten(-1, (self.groups, self.rows))


@dataclass(frozen=True)
class TransposedConvolution(MatrixOperation):
    """The adjoint of a convolution: a is the input, s are the patches of ∂/∂z around it.

    The weight is stored (i, o, kernel): a matrix (o · kernel) × i. A bias adds at other positions
    than the rows and stands apart.
    """

    rows: int
    columns: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad: tuple[int, ...]
    transposed: bool = True

    def inputs(self, x: Tensor, ones: bool) -> Tensor:
        a = x.movedim(1, -1).unflatten(-1, (self.groups, self.columns))
        return with_ones(a) if ones else a

    def grads(self, dz: Tensor) -> Tensor:
        return patches(dz, self.kernel, self.stride, self.dilation, self.pad, self.groups)

    def bias_grads(self, dz: Tensor) -> Tensor:
        return dz.movedim(1, -1)

    @property
    def bias_like_rows(self) -> bool:
        return False


@dataclass(frozen=True)
class Lookup(MatrixOperation):
    """An embedding: a is a unit vector at the row that was looked up, kept as its number.

    The weight is stored (vocabulary, d): a matrix d × vocabulary. Rows at `padding` get no
    gradient. With `bag`, rows are summed over the second axis, each times its weight.
    """

    rows: int
    columns: int
    padding: int | None = None
    bag: bool = False
    scale: Tensor | None = None  # of each row of a bag, [B, L]
    groups: int = 1
    transposed: bool = True

    def inputs(self, x: Tensor, ones: bool) -> Tensor:
        return x

    def grads(self, dz: Tensor) -> Tensor:
        return dz

    def positions(self, ids: Tensor, dz: Tensor) -> Tensor:
        """s at each number looked up, [ids..., d]."""
        s = dz.unsqueeze(-2).expand(*ids.shape, dz.shape[-1]) if self.bag else dz
        if self.scale is not None:
            s = s * self.scale.unsqueeze(-1)
        if self.padding is not None:
            s = s * (ids != self.padding).unsqueeze(-1)
        return s


def patches(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pad: tuple[int, ...],
    groups: int,
    *,
    ones: bool = False,
) -> Tensor:
    """The windows of [B, c, *space] padded with zeros, as [B, *positions, groups, (c/groups) ·
    kernel]; with `ones`, a 1 behind each. Gathered by index, several times faster than a strided
    copy; padding is the index of a 0 behind the example."""
    index, positions = _windows(tuple(x.shape[1:]), kernel, stride, dilation, pad, groups, ones)
    flat = x.flatten(1)
    if ones or any(pad):
        flat = torch.cat([flat, flat.new_tensor([[0.0, 1.0]]).expand(len(flat), 2)], dim=1)
    found = flat.index_select(1, index.to(x.device))
    return found.view(len(x), *positions, groups, -1)


@lru_cache(maxsize=64)
def _windows(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    pad: tuple[int, ...],
    groups: int,
    ones: bool,
) -> tuple[Tensor, tuple[int, ...]]:
    """(place of each entry of each window in a flat example, with a 0 and a 1 behind it; sizes of
    the position axes)."""
    n, size = len(kernel), prod(shape)
    x = F.pad(torch.arange(size).view(shape), pad, value=size)
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(1 + axis, (k - 1) * d + 1, s)
    windows = x[(..., *(slice(None, None, d) for d in dilation))]
    # [c, *positions, *kernel] -> [*positions, groups, (c/groups) · kernel]
    windows = windows.permute(*range(1, 1 + n), 0, *range(1 + n, 1 + 2 * n))
    windows = windows.unflatten(n, (groups, -1)).flatten(1 + n)
    if ones:
        windows = torch.cat([windows, torch.full_like(windows[..., :1], size + 1)], dim=-1)
    return windows.flatten(), tuple(windows.shape[:n])


def window_padding(pad: tuple[int, ...]) -> tuple[int, ...]:
    """Symmetric padding of each axis in the order that F.pad takes."""
    return tuple(p for size in reversed(pad) for p in (size, size))


def same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """torch's padding='same' in the order that F.pad takes: the odd one goes to the high end."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple(p for size in reversed(total) for p in (size // 2, size - size // 2))


@dataclass(frozen=True)
class Affine:
    """z = x̂ ∘ w + b: the gradient of w sums ∂/∂z ∘ x̂ over positions, that of b sums ∂/∂z.

    `normalise` makes x̂ of the input; `axis` holds the w: the last ones, or 1 (channels).
    """

    shape: tuple[int, ...]
    normalise: Callable[[Tensor], Tensor]
    channels: bool

    def weight_grads(self, x: Tensor, dz: Tensor) -> Tensor:
        """Per position: [lead..., w]."""
        return self.bias_grads(dz * self.normalise(x))

    def bias_grads(self, dz: Tensor) -> Tensor:
        """[lead..., w], the examples' axis first."""
        if self.channels:
            return dz.movedim(1, -1)
        return dz.flatten(dz.ndim - len(self.shape))


def linear_of(weight: Tensor, *, stored_transposed: bool) -> Linear:
    o, i = weight.shape[::-1] if stored_transposed else weight.shape
    return Linear(int(o), int(i), stored_transposed)


def convolution_of(
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
    groups: int,
) -> Convolution:
    kernel = tuple(weight.shape[2:])
    if isinstance(padding, str):
        pad = same_padding(kernel, dilation) if padding == "same" else (0,) * (2 * len(kernel))
    else:
        pad = window_padding(padding)
    return Convolution(
        rows=weight.shape[0] // groups,
        columns=weight.shape[1] * prod(kernel),
        groups=groups,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pad=pad,
    )


def transposed_of(
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    groups: int,
    dilation: tuple[int, ...],
) -> TransposedConvolution:
    """∂/∂z is padded so that each input position sees its whole window; what `output_padding`
    added at the high end is within that window or beyond all of them."""
    kernel = tuple(weight.shape[2:])
    return TransposedConvolution(
        rows=weight.shape[1] * prod(kernel),
        columns=weight.shape[0] // groups,
        groups=groups,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        # low by the padding; high as far as the last window reaches
        pad=tuple(
            p
            for size, extra in reversed(list(zip(padding, output_padding, strict=True)))
            for p in (size, size - extra)
        ),
    )
