"""Gradients of a few training examples, drawn the more likely the larger they are."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.jacobian.gradients import gradient_rows, gradients_of, own_gradients
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows, concatenate
from curvfluence.problem.problem import Problem
from curvfluence.runtime import ranks

DRAWN = 48  # by the size of their gradients: what scores are mostly made of


def drawn_gradients(problem: Problem, layout: Layout) -> Rows | None:
    """v_n ∇ℓ_n of up to 48 training examples, the same ones at every call, the largest first; None
    where fewer than four are not 0. Each is drawn with a chance that goes with its size, out of all
    of them, so that one which scores are made of is not missed.

    Cost: a pass for gradients, which the scores then read where they are kept (`remember`).
    """
    team = ranks.here()
    if team is not None:
        return _drawn_together(problem, layout, team)
    generator = torch.Generator().manual_seed(0)
    kept: list[Rows] = []
    keys = torch.empty(0, dtype=torch.float64)
    sizes = torch.empty(0, dtype=torch.float64)
    for _, rows in gradient_rows(problem, layout):
        size = rows.exact_norms()[:, 0].cpu()
        key = keys_by(size, generator)
        best = key.topk(min(DRAWN, int((size > 0).sum()))).indices
        kept.append(rows[best.to(problem.device)])
        keys, sizes = torch.cat([keys, key[best]]), torch.cat([sizes, size[best]])
        if len(keys) > DRAWN:
            chosen = keys.topk(DRAWN).indices
            kept = [concatenate(kept)[chosen.to(problem.device)]]
            keys, sizes = keys[chosen], sizes[chosen]
    if len(sizes) < 4:
        return None
    return concatenate(kept)[sizes.argsort(descending=True).to(problem.device)]


def keys_by(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Of which the k largest are a sample of k without replacement, by size (Efraimidis & Spirakis
    2006); −∞ of a size of 0."""
    return torch.rand(len(sizes), generator=generator, dtype=torch.float64).log() / sizes


def _drawn_together(problem: Problem, layout: Layout, team: ranks.Ranks) -> Rows | None:
    """The same drawn from everyone's sizes; each process then makes the rows of all that are."""
    own: dict[int, Tensor] = {}
    with team.alike():
        for start, parts in own_gradients(problem, layout):
            own[start] = torch.cat([rows.exact_norms()[:, 0].cpu() for rows in parts])
    sizes = torch.cat(list(team.merged(own).values()))
    generator = torch.Generator().manual_seed(0)
    keys = keys_by(sizes, generator)
    chosen = keys.topk(min(DRAWN, int((sizes > 0).sum()))).indices
    if len(chosen) < 4:
        return None
    chosen = chosen[sizes[chosen].argsort(descending=True)]
    few = problem.train.take(chosen.to(problem.device))
    return gradients_of(problem, layout, few)
