"""Per-example rows Jᵀs: factored (a, s) where a layer allows, dense elsewhere.

A gradient is the row whose column is ∂ℓ/∂f; the factor Z of the GGN has the rows of S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor
from torch.func import vjp, vmap  # pyright: ignore[reportPrivateImportUsage]

from curvfluence.data import Examples, require_finite
from curvfluence.errors import InputError
from curvfluence.layers import Coverage, LinearLayer, capture
from curvfluence.parameters import Parameters
from curvfluence.problem import Problem

Columns: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (output, target) -> [B, K, C]

CHUNK = 4096  # examples a pass
DENSE_ROWS = 2**27  # numbers in a pass's dense rows


@dataclass(frozen=True, eq=False)
class Rows:
    """C rows for each of N examples.

    Linear layer l: the row's weight part is s ⊗ a, with a [N, i] and s [N, C, o]. Parameters
    without such a rule: dense [N, C, R], in the order of `rest`.
    """

    parameters: Parameters
    layers: tuple[LinearLayer, ...]
    a: tuple[Tensor, ...]
    s: tuple[Tensor, ...]
    rest: tuple[str, ...]
    dense: Tensor

    @property
    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """(a, s) of each layer."""
        return list(zip(self.a, self.s, strict=True))

    def to_dense(self) -> Tensor:
        """[N, C, P]."""
        n, c = self.dense.shape[:2]
        rows = self.dense.new_empty(n, c, self.parameters.count)
        slices = self.parameters.slices
        for layer, a_ni, s_nco in zip(self.layers, self.a, self.s, strict=True):
            rows[..., slices[layer.weight]] = (s_nco[..., None] * a_ni[:, None, None, :]).flatten(2)
            if layer.bias is not None:
                rows[..., slices[layer.bias]] = s_nco
        start = 0
        for name in self.rest:
            place = slices[name]
            width = place.stop - place.start
            rows[..., place] = self.dense[..., start : start + width]
            start += width
        return rows

    def inner(self, x_qp: Tensor) -> Tensor:
        """⟨x_q, row_nc⟩, [Q, N, C]: one GEMM of 2 Q N o i operations a layer.

        Against the rows of a layer, formed a slice at a time, where its inputs are fewer than the
        queries (and C = 1); otherwise X a first, then its product with s, and no row is formed.
        """
        q = len(x_qp)
        n, c = self.dense.shape[:2]
        total = x_qp.new_zeros(q, n, c)
        slices = self.parameters.slices
        for layer, a_ni, s_nco in zip(self.layers, self.a, self.s, strict=True):
            x_qw = x_qp[:, slices[layer.weight]]
            if c == 1 and layer.in_features <= q:
                total[..., 0] += _against_rows(x_qw, a_ni, s_nco[:, 0])
            else:
                xa_qon = (x_qw.reshape(-1, layer.in_features) @ a_ni.T).reshape(q, -1, n)
                total += torch.einsum("qon,nco->qnc", xa_qon, s_nco)
            if layer.bias is not None:
                bias_qnc = x_qp[:, slices[layer.bias]] @ s_nco.reshape(n * c, -1).T
                total += bias_qnc.reshape(q, n, c)
        if self.rest:
            x_qr = torch.cat([x_qp[:, slices[name]] for name in self.rest], dim=1)
            total += (x_qr @ self.dense.reshape(n * c, -1).T).reshape(q, n, c)
        return total

    def weighted_sum(self, weights_mn: Tensor) -> Tensor:
        """Σ_n weights_mn row_n for single-column rows, [m, P]: the gradients of groups."""
        m = len(weights_mn)
        total = weights_mn.new_empty(m, self.parameters.count)
        slices = self.parameters.slices
        for layer, a_ni, s_nco in zip(self.layers, self.a, self.s, strict=True):
            s_no = s_nco[:, 0, :]
            pulled_mon = weights_mn[:, None, :] * s_no.T
            total[:, slices[layer.weight]] = (pulled_mon.flatten(0, 1) @ a_ni).reshape(m, -1)
            if layer.bias is not None:
                total[:, slices[layer.bias]] = weights_mn @ s_no
        start = 0
        for name in self.rest:
            place = slices[name]
            width = place.stop - place.start
            total[:, place] = weights_mn @ self.dense[:, 0, start : start + width]
            start += width
        return total


def _against_rows(x_qw: Tensor, a_ni: Tensor, s_no: Tensor) -> Tensor:
    """⟨x_q, s_n ⊗ a_n⟩, [Q, N], forming the rows a slice at a time."""
    step = max(1, 2**24 // x_qw.shape[1])
    parts = [
        x_qw @ (s_no[k : k + step, :, None] * a_ni[k : k + step, None, :]).flatten(1).T
        for k in range(0, len(a_ni), step)
    ]
    return torch.cat(parts, dim=1)


def rows_in_chunks(
    problem: Problem,
    covered: Coverage,
    examples: Examples,
    columns: Columns,
    *,
    what: str,
    chunk: int = CHUNK,
) -> Iterator[tuple[int, Rows]]:
    """(start, rows) of successive chunks of examples, in order.

    Errors: `NonFiniteError` names the first example whose output or row is not finite.
    """
    rest = tuple(name for name in problem.parameters.names if name in covered.others)
    width = sum(problem.theta[name].numel() for name in rest)
    columns_each = problem.loss.columns(problem.n_outputs)
    chunk = max(1, min(chunk, DENSE_ROWS // max(1, width * columns_each)))
    for start, x, y in examples.chunks(chunk):
        seen = capture(problem, covered.layers, x)
        output = seen.output.detach()
        require_finite(output, f"model output for {what}", start)
        columns_bkc = columns(output, y)
        require_finite(columns_bkc, f"output gradient of {what}", start)
        s = seen.pullback(columns_bkc) if covered.layers else {}
        dense = _dense_rows(problem, rest, x, columns_bkc)
        for rows in (*s.values(), dense):
            require_finite(rows, f"gradient of {what}", start)
        yield (
            start,
            Rows(
                parameters=problem.parameters,
                layers=covered.layers,
                a=tuple(seen.inputs[layer.name] for layer in covered.layers),
                s=tuple(s[layer.name] for layer in covered.layers),
                rest=rest,
                dense=dense,
            ),
        )


def _dense_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Tensor, columns_bkc: Tensor
) -> Tensor:
    """Jᵀs for parameters without a rule, [B, C, R], by vmap over examples and columns; one example
    at a time for a model that vmap cannot take (RNNs, data-dependent control flow)."""
    b, _, c = columns_bkc.shape
    if not rest:
        return columns_bkc.new_empty(b, c, 0)
    width = sum(problem.theta[name].numel() for name in rest)
    rows = _vmapped_rows(problem, rest, inputs, columns_bkc) if _vmaps(problem, rest) else None
    if rows is None:
        rows = _looped_rows(problem, rest, inputs, columns_bkc)
    assert rows.shape == (b, c, width)
    return rows


def _vmaps(problem: Problem, rest: tuple[str, ...]) -> bool:
    """Whether vmap takes the model, and rightly: tried on two examples against plain autograd."""
    inputs = problem.train.inputs[:2]
    columns = torch.ones(len(inputs), problem.n_outputs, 1).to(problem.decay)
    wanted = _looped_rows(problem, rest, inputs, columns)
    try:
        found = _vmapped_rows(problem, rest, inputs, columns)
    except Exception:
        return False
    tolerance = 1e3 * torch.finfo(wanted.dtype).eps * float(wanted.norm())
    return found.shape == wanted.shape and float((found - wanted).norm()) <= tolerance


def _looped_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Tensor, columns_bkc: Tensor
) -> Tensor:
    """Jᵀs by autograd, one example and column at a time."""
    rows: list[Tensor] = []
    for k, columns_kc in enumerate(columns_bkc):
        theta = {name: problem.theta[name].detach().requires_grad_(True) for name in rest}
        with torch.enable_grad():
            output = problem.forward(inputs[k : k + 1], {**problem.theta, **theta})[0]
        for column in columns_kc.T:
            found: tuple[Tensor | None, ...] = (
                torch.autograd.grad(
                    output, list(theta.values()), column, retain_graph=True, allow_unused=True
                )
                if output.requires_grad
                else (None,) * len(theta)
            )
            flat = [
                (torch.zeros_like(value) if g is None else g).flatten()
                for g, value in zip(found, theta.values(), strict=True)
            ]
            rows.append(torch.cat(flat).detach())
    return torch.stack(rows).reshape(*columns_bkc.shape[::2], -1)


def _vmapped_rows(
    problem: Problem, rest: tuple[str, ...], inputs: Tensor, columns_bkc: Tensor
) -> Tensor:
    b, _, c = columns_bkc.shape

    def one(x: Tensor, columns_kc: Tensor) -> Tensor:
        def output(*values: Tensor) -> Tensor:
            theta = {**problem.theta, **dict(zip(rest, values, strict=True))}
            return problem.forward(x[None], theta)[0]

        pull = vjp(output, *(problem.theta[name] for name in rest))[1]
        pulled: tuple[Tensor, ...] = vmap(pull)(columns_kc.T)
        return torch.cat([value.reshape(c, -1) for value in pulled], dim=1)

    width = sum(problem.theta[name].numel() for name in rest)
    # vmapped activations and rows: keep one slice near 64 MiB of rows
    step = max(1, 2**24 // max(1, c * width))
    parts = [vmap(one)(inputs[k : k + step], columns_bkc[k : k + step]) for k in range(0, b, step)]
    return torch.cat(parts).detach()


def _concatenate(parts: list[Rows]) -> Rows:
    first = parts[0]
    return Rows(
        parameters=first.parameters,
        layers=first.layers,
        a=tuple(torch.cat([p.a[k] for p in parts]) for k in range(len(first.layers))),
        s=tuple(torch.cat([p.s[k] for p in parts]) for k in range(len(first.layers))),
        rest=first.rest,
        dense=torch.cat([p.dense for p in parts]),
    )


def training_gradients(problem: Problem, covered: Coverage) -> Rows:
    """g_n = ∇ℓ_n of every training example, factored."""

    def columns(output: Tensor, target: Tensor) -> Tensor:
        return problem.loss.gradient(output, target)[:, :, None]

    found = rows_in_chunks(problem, covered, problem.train, columns, what="training set")
    rows = _concatenate([rows for _, rows in found])
    _require_agreement(problem, rows)
    return rows


def _require_agreement(problem: Problem, rows: Rows) -> None:
    """The sum of all rows against one ordinary backward pass over the training set.

    The probe of `coverage` sees a few examples; a use of a weight that none of them shows would be
    left out of the rows.
    """
    summed = rows.weighted_sum(torch.ones(1, len(rows.dense)).to(rows.dense))[0]
    theta = {name: value.detach().requires_grad_(True) for name, value in problem.theta.items()}
    wanted = torch.zeros_like(summed)
    for _, x, y in problem.train.chunks(CHUNK):
        with torch.enable_grad():
            output = problem.forward(x, theta)
        pull = problem.loss.gradient(output.detach(), y)
        if not output.requires_grad:
            continue
        found = cast(
            "tuple[Tensor | None, ...]",
            torch.autograd.grad(output, list(theta.values()), pull, allow_unused=True),
        )
        filled = [
            torch.zeros_like(v) if g is None else g
            for g, v in zip(found, theta.values(), strict=True)
        ]
        wanted += problem.parameters.flatten(dict(zip(theta, filled, strict=True)))
    # Rounding of a sum goes with the size of its terms, not with that of the sum.
    size = sum(float((a.norm(dim=1) * s[:, 0].norm(dim=1)).sum()) for a, s in rows.factors)
    size += float(rows.dense.norm(dim=-1).sum()) + float(wanted.norm())
    if float((summed - wanted).norm()) <= 1e3 * torch.finfo(summed.dtype).eps * size:
        return
    slices = problem.parameters.slices
    worst = max(slices, key=lambda name: float((summed - wanted)[slices[name]].norm()))
    raise InputError(
        f"the per-example gradients of {worst} do not add up to the gradient over the training "
        "set: its weight is used in a way that depends on the data. Give it a module of its own"
    )


def query_gradients(problem: Problem, covered: Coverage) -> Rows:
    """g_q = ∇m_q of every query, factored."""

    def columns(output: Tensor, target: Tensor) -> Tensor:
        return problem.measurement.gradient(output, target)[:, :, None]

    found = rows_in_chunks(problem, covered, problem.queries, columns, what="queries")
    return _concatenate([rows for _, rows in found])
