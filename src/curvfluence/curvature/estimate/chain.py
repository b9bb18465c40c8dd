"""Chains of Linear layers and elementwise activations, for which second derivatives are GEMMs.

z_l = W_l a_{l-1} + b_l, a_l = φ_l(z_l), f = a_L. With output weights δ held fixed, the Hessian of
h(θ) = δᵀ f(θ) between layers k <= m of one example is

    (Ĥ_m ∂z_m/∂z_k)[p, r] ã_m[q] ã_k[s]  +  [k < m] g_m[p] (∂a_{m-1}/∂z_k)[q, r] ã_k[s]

where g_l = ∂h/∂z_l and Ĥ_l = ∂²h/∂z_l² = φ'_l φ'_lᵀ ∘ (W_{l+1}ᵀ Ĥ_{l+1} W_{l+1}) + diag(φ''_l ∘
W_{l+1}ᵀ g_{l+1}); here ã_l are the inputs of layer l (the pre-activation Hessian recursion of
Botev et al. 2017, §3, kept between layers as well).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from curvfluence.curvature.estimate.accumulate import Sums, accumulate
from curvfluence.curvature.estimate.ggn import assemble, by_pairs
from curvfluence.curvature.estimate.khatri_rao import PairSum, pair_sums
from curvfluence.curvature.places import LayerPart, layer_parts
from curvfluence.errors import counted_from
from curvfluence.jacobian.layers import Layout
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.forward import Forward
from curvfluence.problem.in_chunks import InChunks
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import tensor_of
from curvfluence.runtime import budget

ELEMENTWISE: Final = (
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.SiLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Softsign,
    nn.Mish,
    nn.LogSigmoid,
    nn.Hardtanh,
    nn.ReLU6,
    nn.Tanhshrink,
)


@dataclass(frozen=True)
class Chain:
    """The activation (or None) after each covered Linear layer, in order."""

    activations: tuple[tuple[nn.Module, ...], ...]


def find_chain(problem: Problem, layout: Layout) -> Chain | None:
    """The model as a chain whose Linear layers hold every parameter, or None."""
    modules = _flat(problem.structure.modules)
    plain = problem.structure.forward == Forward() and problem.train.one_tensor
    if modules is None or not plain or not by_pairs(layout):
        return None
    linear = [m for m in modules if type(m) is nn.Linear]
    named = dict(problem.structure.modules.named_modules())
    if [named.get(layer.name) for layer in layout.layers] != linear or not linear:
        return None
    activations: list[list[nn.Module]] = []
    for module in modules:
        if type(module) is nn.Linear:
            activations.append([])
        elif isinstance(module, nn.Flatten):
            if activations or module.start_dim != 1 or module.end_dim != -1:
                return None
        elif type(module) in ELEMENTWISE:
            if not activations:
                return None
            activations[-1].append(module)
        elif not (type(module) is nn.Identity or isinstance(module, nn.Dropout)):
            return None  # (a Dropout in training mode was refused by the problem)
    return Chain(tuple(tuple(a) for a in activations))


def _flat(module: nn.Module) -> list[nn.Module] | None:
    """The modules that run, in order, of nested `nn.Sequential`s without hooks; None otherwise."""
    if module._forward_hooks or module._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
        return None
    if type(module) is not nn.Sequential:
        return [module]
    parts = [_flat(child) for child in module]
    if any(part is None for part in parts):
        return None
    return [leaf for part in parts if part is not None for leaf in part]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer on a chunk: W [o, i], inputs ã [B, ĩ], φ' and φ'' after it [B, o]."""

    weight: Tensor
    inputs: Tensor
    slope: Tensor
    bend: Tensor


def _forward(
    problem: Problem, chain: Chain, parts: tuple[LayerPart, ...], inputs: Tensor
) -> tuple[list[_Layer], Tensor]:
    a = inputs.flatten(1)
    layers: list[_Layer] = []
    for block, activations in zip(parts, chain.activations, strict=True):
        weight = problem.theta[block.layer.weight]
        module = dict(problem.structure.modules.named_modules())[block.layer.name]
        bias = None
        if isinstance(module, nn.Linear) and module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            name = f"{block.layer.name}.bias" if block.layer.name else "bias"
            bias = problem.theta[name] if name in problem.theta else problem.state[name]
        z = torch.nn.functional.linear(a, weight, bias)
        ones = a.new_ones(len(a), 1)
        extended = torch.cat([a, ones], dim=1) if block.with_bias else a
        a, slope, bend = _derivatives(activations, z)
        layers.append(_Layer(weight, extended, slope, bend))
    return layers, a


def _derivatives(activations: tuple[nn.Module, ...], z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ(z), φ'(z), φ''(z), elementwise."""
    if not activations:
        return z, torch.ones_like(z), torch.zeros_like(z)
    with torch.enable_grad():
        at = z.detach().requires_grad_(True)
        value = at.clone()  # an in-place activation needs a tensor of its own
        for activation in activations:
            value = activation(value)
        (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
        bend = None
        if slope.requires_grad:
            (bend,) = torch.autograd.grad(slope.sum(), at, allow_unused=True)
    return value.detach(), slope.detach(), torch.zeros_like(z) if bend is None else bend


def chain_hessian(problem: Problem, layout: Layout, chain: Chain, examples: int = 2048) -> Tensor:
    """∇²((1/N) Σ ℓ_n) in full, [P, P]: GGN and residual part in the same GEMMs.

    Cost: about 2 N P² operations, as the GGN of the same layers, and between layers that are not
    neighbours as much again; memory 2 P² numbers, and a few times `budget.PAIRS` for the layers'
    second derivatives of as many `examples` at a time as fit it.
    """
    parts = layer_parts(problem.parameters, layout, joint_bias=True)
    widest = max(part.shape[0] for part in parts)
    chunk = min(examples, max(1, budget.PAIRS // widest**2))
    pairs = pair_sums([part.shape for part in parts])

    def add_pairs(numbered: tuple[int, Examples], sums: Sums) -> None:
        start, part = numbered
        layers, output = _forward(problem, chain, parts, tensor_of(part.inputs, "inputs"))
        require_finite(output, "model output for training set", start)
        loss, y = problem.loss_of(part), part.targets
        with counted_from(start):
            delta, s_bkc = loss.gradient(output, y), loss.factor(output, y)
        require_finite(delta, "output gradient of training set", start)
        _add_chunk(pairs, sums, layers, delta, s_bkc.transpose(1, 2))

    sums = accumulate(InChunks(problem.train, chunk), add_pairs)
    return assemble(problem, parts, pairs, sums)


Pairs: TypeAlias = dict[tuple[int, int], PairSum]


def _add_chunk(
    pairs: Pairs, sums: Sums, layers: list[_Layer], delta_bk: Tensor, columns_bck: Tensor
) -> None:
    top = len(layers) - 1
    last = layers[top]
    # g, s and Ĥ of each layer, from the top down
    grads = {top: last.slope * delta_bk}
    cols = {top: last.slope[:, None, :] * columns_bck}
    bends = {top: torch.diag_embed(last.bend * delta_bk)}
    for k in range(top - 1, -1, -1):
        weight, layer = layers[k + 1].weight, layers[k]
        back_bo = grads[k + 1] @ weight
        grads[k] = layer.slope * back_bo
        cols[k] = layer.slope[:, None, :] * (cols[k + 1] @ weight)
        pulled = weight.T @ bends[k + 1] @ weight
        outer = layer.slope[:, :, None] * layer.slope[:, None, :]
        bends[k] = outer * pulled + torch.diag_embed(layer.bend * back_bo)
    for m in range(top + 1):
        reach = None  # ∂z_m/∂z_k, [B, o_m, o_k], for k = m, m-1, …
        for k in range(m, -1, -1):
            if k < m:
                step = layers[k + 1].weight * layers[k].slope[:, None, :]
                reach = step if reach is None else reach @ step
            x_bpr = cols[m].transpose(1, 2) @ cols[k]
            x_bpr += bends[m] if reach is None else bends[m] @ reach
            pairs[m, k].add(sums, x_bpr, layers[m].inputs, layers[k].inputs)
        _add_cross(pairs, sums, layers, grads[m], m)


def _add_cross(pairs: Pairs, sums: Sums, layers: list[_Layer], g_bp: Tensor, m: int) -> None:
    """g_m[p] (∂a_{m-1}/∂z_k)[q, r] ã_k[s] for k < m: how layer m's inputs move with layer k."""
    through = None  # ∂a_{m-1}/∂z_k, [B, q, r]
    for k in range(m - 1, -1, -1):
        slope = layers[k].slope
        if k == m - 1:
            pairs[m, k].add_diagonal(sums, g_bp, slope, layers[k].inputs)
            through = torch.diag_embed(slope)
        else:
            assert through is not None
            through = (through @ layers[k + 1].weight) * slope[:, None, :]
            pairs[m, k].add_cross(sums, g_bp, through, layers[k].inputs)
