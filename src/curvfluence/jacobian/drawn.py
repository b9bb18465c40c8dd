"""Gradients of a few training examples, which stand for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.jacobian.gradients import gradients_of, own_gradients
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Outer
from curvfluence.problem.problem import Problem
from curvfluence.runtime import ranks

DRAWN = 96  # of which no half is more than solutions meet without being formed (`FEW_ROWS`)
SURE = 1.1  # of those that stand for no more than themselves each was all but bound to be drawn


@dataclass(frozen=True, eq=False)
class Drawn:
    """v_n ∇ℓ_n of n training examples, and how many each of them `counts` for [n], in float64: one
    over the chance that it was drawn with, so that sums of what they have times `counts` are those
    over all examples, in expectation (Horvitz & Thompson 1952)."""

    rows: Rows
    counts: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def half(self, which: int) -> Drawn:
        """One of two parts, each of which stands for all: the first or the second of a random half
        of those that stand for others as well, twice; and all that stand for themselves, which
        sums may be made of. Where all do, halves of them."""
        others = (self.counts > SURE).nonzero()[:, 0]
        others = others if len(others) else torch.arange(len(self)).to(self.counts.device)
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
        counts = torch.ones_like(self.counts)
        counts[others] = 0
        mine = others[order[which::2].to(others.device)]
        counts[mine] = 2 * self.counts[mine]
        at = counts.nonzero()[:, 0]
        return Drawn(self.rows[at], counts[at])

    def weighted(self, term: Outer) -> Outer:
        """Their rows of a layer times √counts, whose squares add up to those of all examples."""
        return replace(term, s=term.s * self.counts.sqrt().to(term.s)[:, None, None])

    def typical(self, term: Outer) -> float:
        """√E ‖row_n‖² of a layer, over all examples."""
        squares_n = term.exact_norms().square().sum(1)
        return float(((squares_n @ self.counts) / self.counts.sum()).sqrt())

    def norms(self, values_qn: Tensor) -> Tensor:
        """√Σ_n values², [Q], over all examples."""
        return (values_qn.double().square() @ self.counts).sqrt()


def drawn_gradients(problem: Problem, layout: Layout) -> Drawn | None:
    """Of up to 96 examples, the same ones at every call, the largest first; None where fewer than
    four are not 0. Half of what each is drawn by is its size ‖v_n ∇ℓ_n‖, so that one which scores
    are made of is not missed, and half is alike for all that are not 0, so that small ones are
    seen.

    Cost: a pass for gradients, which the scores then read where they are kept (`remember`), and a
    pass over those that are drawn.
    """
    sizes = gradient_sizes(problem, layout)
    some = sizes > 0
    if int(some.sum()) < 4:
        return None
    likely = torch.where(some, sizes / sizes[some].mean() + 1, 0.0)
    keys = keys_by(likely, torch.Generator().manual_seed(0))
    best = keys.topk(min(DRAWN + 1, int(some.sum())))
    chosen, counts = best.indices[:DRAWN], torch.ones(min(DRAWN, len(best.indices))).double()
    if len(best.indices) > DRAWN:
        counts /= -torch.expm1(likely[chosen] * best.values[-1])
    order = sizes[chosen].argsort(descending=True)
    few = problem.train.take(chosen[order].to(problem.device))
    return Drawn(gradients_of(problem, layout, few), counts[order].to(problem.device))


def keys_by(sizes: Tensor, generator: torch.Generator) -> Tensor:
    """Of which the k largest are a sample of k without replacement, by size (Efraimidis & Spirakis
    2006); −∞ of a size of 0. Given the key that comes after them, each was drawn with a chance of
    1 − exp(size · key) (Cohen & Kaplan 2007, §4)."""
    return torch.rand(len(sizes), generator=generator, dtype=torch.float64).log() / sizes


def gradient_sizes(problem: Problem, layout: Layout) -> Tensor:
    """‖v_n ∇ℓ_n‖ of all examples [N], on the CPU in float64. Cost: a pass for gradients, which
    processes that work together share out."""
    own: dict[int, Tensor] = {}
    with ranks.alike():
        for start, parts in own_gradients(problem, layout, again=True):
            own[start] = torch.cat([rows.exact_norms()[:, 0].cpu() for rows in parts])
    team = ranks.here()
    found = own if team is None else team.merged(own)
    return torch.cat([found[start] for start in sorted(found)])
