"""Tracing a forward pass: which operation used which trainable weight, on what input.

A `TorchFunctionMode` sees every call of torch's public functions. Those whose weight gradient is a
sum of outer products, or elementwise, are kept by the identity of the weight that they were given,
so modules of any class, functional calls, fused and tied weights are seen alike. What is not seen
(a weight in any other expression) shows when gradients are compared, and has no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from curvfluence.jacobian.operations import (
    Affine,
    Linear,
    Lookup,
    MatrixOperation,
    convolution_of,
    linear_of,
    transposed_of,
)
from curvfluence.jacobian.recurrent import CELLS, LAYERS, cell, unrolled


@dataclass(frozen=True)
class Piece:
    """A whole parameter, or some leading rows of it, as an operation was given it."""

    name: str
    offset: int  # in numbers, from the parameter's start
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def count(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Use:
    """One call: what was done, with which weights, on what, and where its output's gradient is."""

    op: MatrixOperation | Affine
    weight: Piece | None
    bias: Piece | None
    input: Tensor
    version: int  # of the input, to notice when it is changed in place afterwards
    edge: GradientEdge | None
    dtype: torch.dtype  # of the output
    source: Tensor | None = None  # the input with its graph, of a Linear layer

    @property
    def kind(self) -> str:
        return type(self.op).__name__

    def to(self, dtype: torch.dtype) -> Use:
        """With its input in `dtype`, where autocast had it in another; indices stay."""
        if not self.input.is_floating_point() or self.input.dtype == self.dtype == dtype:
            return self
        return replace(self, input=self.input.to(dtype), dtype=dtype)


def padding_of(uses: Iterable[Use]) -> dict[str, Tensor]:
    """By parameter, the places in it of rows at a `padding_idx`: constants to torch where they are
    looked up, which may have a gradient by another use of the weight."""
    found: dict[str, Tensor] = {}
    for use in uses:
        if isinstance(use.op, Lookup) and use.op.padding is not None and use.weight is not None:
            first = use.weight.offset + use.op.padding * use.op.rows
            found[use.weight.name] = torch.arange(first, first + use.op.rows)
    return found


class Tracer(TorchFunctionMode):
    """Keeps the uses of `tracked` weights (by name) in the order of the calls.

    With `batch` examples, indices [1, ...] of an embedding, which all examples share (positions),
    are looked up for each of them: what is added to every example is the same, and has a gradient
    of each. Indices [T] may as well be one of each example, or those of all of them in a row: they
    are shared where the weight is among `positions`. What a model then puts an axis of examples in
    front of has it already.
    """

    def __init__(
        self,
        tracked: Mapping[str, Tensor],
        *,
        clone: bool = False,
        batch: int | None = None,
        positions: Set[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.batch, self.positions = batch, positions
        self.spread = False  # whether there was such a lookup
        self.lengths: list[tuple[str, int]] = []  # (weight, T) of lookups [T]
        # what shared indices were looked up to of each example, [B, T, d], and of one, as asked for
        self.each: list[tuple[Tensor, Tensor]] = []
        self.uses: list[Use] = []
        self._names = {id(value): name for name, value in tracked.items()}
        self._tracked = dict(tracked)
        self._clone = clone

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func)
        if rule is None:
            return func(*args, **kwargs)
        return rule(self, func, *args, **kwargs)

    def piece(self, weight: object) -> Piece | None:
        """Which tracked weight this is: itself, leading rows of it, or its transpose."""
        if not isinstance(weight, Tensor):
            return None
        shape = tuple(weight.shape)
        if id(weight) in self._names:
            return Piece(self._names[id(weight)], 0, shape)
        base = weight._base  # pyright: ignore[reportPrivateUsage]
        name = None if base is None else self._names.get(id(base))
        if name is None or base is None or not base.is_contiguous():
            return None
        if shape == tuple(base.shape)[::-1] and weight.stride() == base.stride()[::-1]:
            return Piece(name, 0, tuple(base.shape), transposed=len(shape) > 1)
        if shape[1:] == tuple(base.shape[1:]) and weight.stride() == base.stride():
            return Piece(name, int(weight.storage_offset() - base.storage_offset()), shape)
        return None

    def spreads(self, weight: object, ids: Tensor) -> bool:
        """Whether indices are looked up for each example."""
        if self.batch is None or ids.ndim == 0:
            return False
        if ids.ndim > 1:
            return self.batch > 1 and len(ids) == 1
        piece = self.piece(weight)
        if piece is None:
            return False
        self.lengths.append((piece.name, len(ids)))
        return piece.name in self.positions

    def keep(
        self, op: MatrixOperation | Affine, x: Tensor, output: Tensor, weight: object, bias: object
    ) -> None:
        w, b = self.piece(weight), self.piece(bias)
        if w is None and b is None:
            return
        edge = get_gradient_edge(output) if output.requires_grad else None
        kept = x.detach().clone() if self._clone else x.detach()
        source = x if isinstance(op, Linear) and x.requires_grad else None
        version = kept._version  # pyright: ignore[reportPrivateUsage]
        self.uses.append(Use(op, w, b, kept, version, edge, output.dtype, source))

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place after it was used."""
        return any(use.input._version != use.version for use in self.uses)  # pyright: ignore[reportPrivateUsage]


def _linear(
    tracer: Tracer, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    output = func(input, weight, bias)
    if weight.ndim == 2:
        _keep_linear(tracer, input, output, weight, bias, by_columns=False)
    return output


def _keep_linear(
    tracer: Tracer, x: Tensor, output: Tensor, weight: Tensor, bias: object, *, by_columns: bool
) -> None:
    """`weight` multiplies as (o, i), or with `by_columns` as (i, o)."""
    piece = tracer.piece(weight)
    stored = by_columns != (piece is not None and piece.transposed)
    shape = weight if piece is None or not piece.transposed else weight.T
    op = linear_of(shape, stored_transposed=stored)
    whole = isinstance(bias, Tensor) and bias.shape == (op.rows,)  # none that broadcasts
    tracer.keep(op, x, output, weight, bias if whole else None)


def _addmm(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    output = func(*args, **kwargs)
    plain = kwargs.get("beta", 1) == 1 and kwargs.get("alpha", 1) == 1
    if plain and len(args) == 3:
        bias, x, weight = args
        whole = bias if bias.ndim == 1 else None
        _keep_linear(tracer, x, output, weight, whole, by_columns=True)
    return output


def _matmul(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Any:
    output = func(*args, **kwargs)
    if len(args) == 2 and not kwargs:
        x, weight = args
        fits = isinstance(weight, Tensor) and weight.ndim == 2 and isinstance(x, Tensor)
        if fits and x.ndim > 1 and tracer.piece(x) is None:
            _keep_linear(tracer, x, output, weight, None, by_columns=True)
    return output


def _sizes(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (int(value),) * n
    sizes = tuple(int(v) for v in value)
    return sizes * n if len(sizes) == 1 else sizes


def _convolution(
    tracer: Tracer,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    output = func(input, weight, bias, stride, padding, dilation, groups)
    n = weight.ndim - 2
    pad = padding if isinstance(padding, str) else _sizes(padding, n)
    op = convolution_of(weight, _sizes(stride, n), pad, _sizes(dilation, n), groups)
    tracer.keep(op, input, output, weight, bias)
    return output


def _transposed_convolution(
    tracer: Tracer,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    output = func(input, weight, bias, stride, padding, output_padding, groups, dilation)
    n = weight.ndim - 2
    sizes = [_sizes(value, n) for value in (stride, padding, output_padding, dilation)]
    op = transposed_of(weight, sizes[0], sizes[1], sizes[2], groups, sizes[3])
    tracer.keep(op, input, output, weight, bias)
    return output


def _arguments(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    bound = signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _embedding(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    given = _arguments(F.embedding, args, kwargs)
    ids = given["input"]
    if tracer.spreads(given["weight"], ids):
        given["input"] = ids.expand(tracer.batch, *(ids.shape[1:] if ids.ndim > 1 else ids.shape))
        tracer.spread = True
    output = func(**given)
    if given["input"] is not ids:
        tracer.each.append((output, output.detach()[0 if ids.ndim == 1 else slice(1)]))
    weight, padding = given["weight"], given["padding_idx"]
    if given["max_norm"] is None and not given["scale_grad_by_freq"] and not given["sparse"]:
        padding = None if padding is None else int(padding) % len(weight)
        op = Lookup(rows=weight.shape[1], columns=weight.shape[0], padding=padding)
        tracer.keep(op, given["input"], output, weight, None)
    return output


def _in_front(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Any:
    """What makes [T, d], [1, T, d] or [B, T, d] of shared positions, which are there for each
    example. (The outputs are then compared with those without.)"""
    x = args[0] if args else None
    for each, one in tracer.each:
        if x is each:
            asked, rest = func(one, *args[1:], **kwargs), each.shape[1:]
            if isinstance(asked, Tensor) and asked.shape in (each.shape, (1, *rest), rest):
                return each
    return func(*args, **kwargs)


def _embedding_bag(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    output = func(*args, **kwargs)
    given = _arguments(F.embedding_bag, args, kwargs)
    weight, ids, mode = given["weight"], given["input"], given["mode"]
    plain = given["max_norm"] is None and not given["scale_grad_by_freq"] and not given["sparse"]
    if plain and ids.ndim == 2 and given["offsets"] is None and mode in ("sum", "mean"):
        padding = given["padding_idx"]
        padding = None if padding is None else int(padding) % len(weight)
        scale = given["per_sample_weights"]
        if mode == "mean":
            counted = torch.ones_like(ids) if padding is None else (ids != padding).long()
            scale = counted.to(output.dtype) / counted.sum(1, keepdim=True).clamp_min(1)
        scale = None if scale is None else scale.detach()
        op = Lookup(
            rows=weight.shape[1], columns=weight.shape[0], padding=padding, bag=True, scale=scale
        )
        tracer.keep(op, ids, output, weight, None)
    return output


def _norm(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Any of torch's normalisations: x̂ is the same call without weight and bias."""
    output = func(*args, **kwargs)
    given = _arguments(func, args, kwargs)
    weight, bias = given.get("weight"), given.get("bias")
    bare = {**given, "weight": None, **({"bias": None} if "bias" in given else {})}
    channels = "normalized_shape" not in given
    affine = weight if weight is not None else bias

    def normalise(x: Tensor) -> Tensor:
        return func(**{**bare, "input": x})

    if affine is not None:
        op = Affine(tuple(affine.shape), normalise, channels)
        tracer.keep(op, given["input"], output, weight, bias)
    return output


def _attention(tracer: Tracer, func: Any, *args: Any, **kwargs: Any) -> Any:
    """`nn.MultiheadAttention` with its projections made visible.

    torch's own function is called with identity projections on projected inputs, so masks, weights
    and backends behave as they do in it; forms with added keys stay as they are.
    """
    given = dict(_arguments(F.multi_head_attention_forward, args, kwargs))
    added = ("bias_k", "bias_v", "static_k", "static_v")
    if any(given[name] is not None for name in added) or given["add_zero_attn"]:
        return func(*args, **kwargs)
    query, key, value = given["query"], given["key"], given["value"]
    width = given["embed_dim_to_check"]
    bias = given["in_proj_bias"]
    if given["use_separate_proj_weight"]:
        weights = [given[f"{name}_proj_weight"] for name in "qkv"]
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
        projected = _each(tracer, (query, key, value), weights, biases)
    elif query is key and key is value:
        packed = _linear(tracer, F.linear, query, given["in_proj_weight"], bias)
        projected = list(packed.chunk(3, dim=-1))
    else:
        weights = list(given["in_proj_weight"].chunk(3))
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
        projected = _each(tracer, (query, key, value), weights, biases)
    eye = torch.eye(width, dtype=query.dtype, device=query.device)
    attended, weights = func(
        **{
            **given,
            "query": projected[0],
            "key": projected[1],
            "value": projected[2],
            "use_separate_proj_weight": True,
            "in_proj_weight": None,
            "q_proj_weight": eye,
            "k_proj_weight": eye,
            "v_proj_weight": eye,
            "in_proj_bias": None,
            "out_proj_weight": eye,
            "out_proj_bias": None,
        }
    )
    out = _linear(tracer, F.linear, attended, given["out_proj_weight"], given["out_proj_bias"])
    return out, weights


def _each(
    tracer: Tracer, inputs: Sequence[Tensor], weights: Sequence[Any], biases: Sequence[Any]
) -> list[Tensor]:
    return [
        _linear(tracer, F.linear, x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)
    ]


def _cell(tracer: Tracer, func: Any, *args: Any) -> Any:
    return cell(partial(_linear, tracer, F.linear), func, *args)


def _recurrent(tracer: Tracer, func: Any, *args: Any) -> Any:
    found = unrolled(partial(_linear, tracer, F.linear), func, *args)
    return func(*args) if found is None else found


_Rule = Callable[..., Any]
IN_FRONT = (
    Tensor.__getitem__, Tensor.unsqueeze, torch.unsqueeze, Tensor.squeeze, torch.squeeze,
    Tensor.view, Tensor.reshape, torch.reshape, Tensor.expand, Tensor.expand_as,
    Tensor.broadcast_to, torch.broadcast_to, Tensor.repeat, Tensor.tile, torch.tile,
)  # fmt: skip
_RULES: dict[Any, _Rule] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed_convolution
    ),
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    **dict.fromkeys((F.layer_norm, F.rms_norm, F.group_norm, F.batch_norm), _norm),
    F.multi_head_attention_forward: _attention,
    **dict.fromkeys(IN_FRONT, _in_front),
    **dict.fromkeys(CELLS, _cell),
    **dict.fromkeys(LAYERS, _recurrent),
}
