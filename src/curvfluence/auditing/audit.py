"""Rank training examples by everything that speaks against them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.auditing.duplicates import duplicates
from curvfluence.auditing.result import Audit
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Damping, Relative
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import gradient_batches, query_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.problem.problem import Problem, require_problem
from curvfluence.problem.stream import labels_of
from curvfluence.runtime import generators, journal, precision
from curvfluence.score.best_damping import require_named
from curvfluence.score.fitted import fitted
from curvfluence.score.neighbours import Neighbours, neighbours
from curvfluence.score.self_influence import self_influence

ALL, MOST = 5_000, 2_000  # examples up to which all have their neighbours looked for; how many else


@precision.full()
def audit(
    problem: Problem,
    rung: Rung | Curvature = EKFAC(),  # noqa: B008 - a frozen value
    *,
    damping: Damping = Relative(0.1),  # noqa: B008 - a frozen value
    k: int = 20,
    examined: int | None = None,
    flipped: Sequence[int] | None = None,
) -> Audit:
    """Suspicious labels and harmful examples by five criteria, and duplicates.

    Plain loss; self-influence (1/N) g_nᵀ A g_n, A = (C + diag(w) + λI)⁻¹; their sum, which
    forecasts the loss without the example; the disagreement −Σ cos/Σ|cos| of its `k` neighbours by
    |cos| in the metric A (`neighbours`); and the harm −(1/Q) Σ_q I[q, n] to the queries (with the
    sign by which more is worse). Lists go by disagreement. `examined` is for how many examples
    neighbours are looked for: all of 5,000 or fewer, else the 2,000 of the largest loss and
    self-influence; the others have NaN there and come after them. `flipped` names examples that are
    known to be wrong.

    Nothing is held out here: losses are those of the model's own training examples. Cost: the fit,
    passes over the data, 2 N P operations and a solve for each examined example. Errors: as
    `self_influence`.
    """
    start = time.perf_counter()
    require_problem(problem)
    curvature = fitted(problem, rung, damping, strict=False, solves=len(problem.train))
    chosen = require_named(curvature, damping, "BestOf chooses by queries", "an audit")
    wrong = None if flipped is None else _flipped(flipped, len(problem.train))
    loss: Tensor = journal.whole("losses", lambda: _losses(problem))
    own = self_influence(problem, curvature, damping=chosen).double()
    rows = _examined(loss, own, examined)
    near = neighbours(problem, curvature, rows, damping=chosen, k=k, itself=own)
    disagreement = torch.full_like(loss, torch.nan)
    disagreement[rows] = near.disagreement
    labels = labels_of(problem.train)
    notes = list(curvature.notes_at(chosen))
    if k >= len(loss):
        notes.append(f"there are only {len(loss) - 1} neighbours to an example, fewer than {k}")
    if len(rows) < len(loss):
        notes.append(
            f"neighbours were looked for of {len(rows):,} examples of {len(loss):,}, those of the "
            "largest loss and self-influence; the others come after them"
        )
    return Audit(
        values={
            "loss": loss,
            "self_influence": own,
            "left_out_loss": loss + own,
            "disagreement": disagreement,
            "harm": _harm(problem, curvature, chosen),
        },
        order="disagreement",
        neighbours=near,
        duplicates=duplicates(problem),
        labels=labels,
        suggested=None if labels is None else _suggested(len(loss), labels, near),
        flipped=wrong,
        rung=curvature.name,
        damping=str(chosen),
        unit=problem.loss.unit,
        notes=tuple(notes),
        seconds=time.perf_counter() - start,
    )


def _flipped(flipped: Sequence[int], count: int) -> tuple[int, ...]:
    rows = sorted(set(kinds.counts(flipped, "flipped")))
    if rows and rows[-1] >= count:
        raise InputError(f"flipped names training examples, 0 to {count - 1}; seen {rows[-1]}")
    return tuple(rows)


def _losses(problem: Problem) -> Tensor:
    """ℓ_n of every training example, without its weight, [N]."""
    parts: list[Tensor] = []
    with torch.no_grad(), generators.preserved():
        for part, output in problem.each_output(problem.train, "training set"):
            parts.append(problem.loss.values(output, part.targets).double().cpu())
    return torch.cat(parts)


def _examined(loss: Tensor, own: Tensor, asked: int | None) -> Tensor:
    """Numbers of the examples whose neighbours are looked for, ascending."""
    n = len(loss)
    usual = n if n <= ALL else MOST
    count = usual if asked is None else kinds.count(asked, "examined")
    if count >= n:
        return torch.arange(n)
    ranks = loss.argsort().argsort() + own.argsort().argsort()
    return ranks.argsort(descending=True, stable=True)[:count].sort().values


def _suggested(n: int, labels: Tensor, near: Neighbours) -> Tensor:
    """The class that the neighbours that pull against an example have most of, by |cos|; −1 where
    none does, or none of another class."""
    found = torch.full((n,), -1)
    against = near.cosines.clamp_max(0).abs()
    theirs = labels[near.indices]
    against = against.masked_fill(theirs == labels[near.examples][:, None], 0.0)
    votes = torch.zeros(len(near.examples), int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, theirs, against)
    best = votes.max(1)
    found[near.examples] = torch.where(best.values > 0, best.indices, -1)
    return found


def _harm(problem: Problem, curvature: Curvature, damping: Damping) -> Tensor:
    """−(1/Q) Σ_q I[q, n], [N]; by the sum of the queries' gradients, so nothing is Q × N."""
    layout = discover(problem)
    g_q = query_gradients(problem, layout)
    mean_p = g_q.to_dense()[:, 0].mean(0)
    x_p = curvature.solve(mean_p[None], damping)
    sign = -1.0 if problem.measurement.lower_is_better else 1.0

    def from_example(first: int) -> Iterator[tuple[int, Tensor]]:
        for start, rows in gradient_batches(problem, layout, first=first):
            yield start, _inner(rows, x_p).double().cpu()

    parts = [part for _, part in journal.in_pieces("harm", from_example)]
    return sign * torch.cat(parts) / len(problem.train)


def _inner(rows: tuple[Rows, ...], x_p: Tensor) -> Tensor:
    return torch.cat([each.inner(x_p)[0, :, 0] for each in rows])
