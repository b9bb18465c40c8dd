"""Rows of parameters that no layer explains, by vmap over examples and columns."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from curvfluence.jacobian.layers import Layout
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched, leaves, of_leaves
from curvfluence.runtime import attention, budget
from curvfluence.runtime.autograd import pulled_back

_VMAPPED: WeakKeyDictionary[Problem, dict[tuple[str, ...], bool]] = WeakKeyDictionary()


def rows_without_rule(
    problem: Problem,
    layout: Layout,
    inputs: Batched,
    columns_bkc: Tensor,
    small: dict[str, Tensor],
) -> Tensor:
    """Jᵀs of the parameters of no layer, [B, C, R], in the order of `layout.others`; those of
    `small` are there already."""
    b, _, c = columns_bkc.shape
    unseen = tuple(name for name in layout.others if name not in small)
    by_name = dict(small)
    if unseen:
        widths = [problem.theta[name].numel() for name in unseen]
        rows = _dense_rows(problem, unseen, inputs, columns_bkc)
        by_name.update(zip(unseen, rows.split(widths, dim=2), strict=True))
    parts = [by_name[name] for name in layout.others]
    return torch.cat(parts, dim=2) if parts else columns_bkc.new_empty(b, c, 0)


def _dense_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Batched, columns_bkc: Tensor
) -> Tensor:
    """Jᵀs for parameters without a rule, [B, C, R], by vmap over examples and columns; one example
    at a time for a model that vmap cannot take (RNNs, data-dependent control flow)."""
    b, _, c = columns_bkc.shape
    if not rest:
        return columns_bkc.new_empty(b, c, 0)
    width = sum(problem.theta[name].numel() for name in rest)
    known = _VMAPPED.setdefault(problem, {})
    if rest not in known:
        known[rest] = _vmaps(problem.exact, rest)
    rows = _vmapped_rows(problem, rest, inputs, columns_bkc) if known[rest] else None
    if rows is None:
        rows = _looped_rows(problem, rest, inputs, columns_bkc)
    assert rows.shape == (b, c, width)
    return rows


def _vmaps(problem: Problem, rest: tuple[str, ...]) -> bool:
    """Whether vmap takes the model, and rightly: tried on two examples against plain autograd."""
    inputs = problem.train.take(slice(0, 2)).inputs
    columns = torch.ones(len(inputs), problem.n_outputs, 1).to(problem.decay)
    wanted = _looped_rows(problem, rest, inputs, columns)
    try:
        rows = _vmapped_rows(problem, rest, inputs, columns)
    except Exception:
        return False
    tolerance = 1e3 * torch.finfo(wanted.dtype).eps * float(wanted.norm())
    return rows.shape == wanted.shape and float((rows - wanted).norm()) <= tolerance


def _looped_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Batched, columns_bkc: Tensor
) -> Tensor:
    """Jᵀs by autograd, one example and column at a time."""
    rows: list[Tensor] = []
    for k, columns_kc in enumerate(columns_bkc):
        theta = {name: problem.theta[name].detach().requires_grad_(True) for name in rest}
        with torch.enable_grad():
            output = problem.forward(inputs[k : k + 1], {**problem.theta, **theta})[0]
        for column in columns_kc.T:
            grads: tuple[Tensor | None, ...] = (None,) * len(theta)
            if output.requires_grad:
                with problem.holding(theta):
                    grads = pulled_back(output, list(theta.values()), column)
            flat = [
                (torch.zeros_like(value) if g is None else g).flatten()
                for g, value in zip(grads, theta.values(), strict=True)
            ]
            rows.append(torch.cat(flat).detach())
    return torch.stack(rows).reshape(*columns_bkc.shape[::2], -1)


def _vmapped_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Batched, columns_bkc: Tensor
) -> Tensor:
    b, _, c = columns_bkc.shape

    def one(leaves_of_one: tuple[Tensor, ...], columns_kc: Tensor) -> Tensor:
        x = of_leaves(inputs, [leaf[None] for leaf in leaves_of_one])

        def output(*values: Tensor) -> Tensor:
            theta = {**problem.theta, **dict(zip(rest, values, strict=True))}
            return problem.forward(x, theta)[0]

        pull = vjp(output, *(problem.theta[name] for name in rest))[1]
        pulled: tuple[Tensor, ...] = vmap(pull)(columns_kc.T)
        return torch.cat([value.reshape(c, -1) for value in pulled], dim=1)

    width = sum(problem.theta[name].numel() for name in rest)
    step = max(1, budget.VMAPPED // max(1, c * width))
    parts: list[Tensor] = []
    with attention.plain():  # vmap takes the fused kernels one example at a time
        for k in range(0, b, step):
            some = inputs[k : k + step]
            parts.append(vmap(one)(leaves(some), columns_bkc[k : k + step]))
    return torch.cat(parts).detach()
