"""How fast this machine is at what a rung is made of, measured on the problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

from curvfluence.curvature.operators.decomposed import quickest
from curvfluence.jacobian.columns import Columns
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched
from curvfluence.runtime import device as machine

PROBED = 1024  # examples of a pass that is timed, at most
SHARE = 32  # at most so small a part of all of them, where that is enough
ENOUGH = 64
PROBE_ELEMENTS = 2**23  # numbers in it, at most
FIRST = 4  # examples; twice as many while a pass over them is shorter than
LONG = 0.04  # seconds, of which a clock and what else the machine does are a small part


@dataclass(frozen=True)
class Pass:
    """Seconds of a forward, or of a backward pass: `start` a chunk, and `each` an example."""

    start: float
    each: float

    def seconds(self, examples: float, chunks: float) -> float:
        return chunks * self.start + examples * self.each


@dataclass(frozen=True)
class Rates:
    """Seconds an operation of a matrix product, of an eigendecomposition (n³ each; `eigen` of a
    factor in float64, `symmetric` of a matrix in the problem's dtype) and of a Cholesky factor
    (n³/3), a number of fresh memory, and of a pass over examples."""

    product: float
    eigen: float
    symmetric: float
    cholesky: float
    fresh: float
    forward: Pass
    backward: Pass
    examples: int  # that were timed: as few as take long enough

    @staticmethod
    def measured(problem: Problem) -> Rates:
        machine_rates = _machine(problem.device, problem.dtype, torch.get_num_threads())
        layout = discover(problem)
        bound = probed(problem, layout, 2)

        def run(width: int, examples: int) -> float:
            columns, part = _repeated(width), problem.train[:examples]
            return timed(
                problem.device,
                lambda: list(rows_in_chunks(problem, layout, part, columns, alone=False)),
            )

        most = min(FIRST, bound)
        while (long := run(1, most)) < LONG and most < bound:
            most = min(2 * most, bound)
        few = max(1, most // 4)
        lines = {
            1: line(few, run(1, few), most, long),
            2: line(few, run(2, few), most, run(2, most)),
        }
        backward = Pass(
            max(0.0, lines[2].start - lines[1].start),
            max(0.1 * lines[1].each, lines[2].each - lines[1].each),
        )
        forward = Pass(
            max(0.0, lines[1].start - backward.start),
            max(0.1 * lines[1].each, lines[1].each - backward.each),
        )
        return Rates(*machine_rates, forward, backward, most)


@cache
def _machine(
    device: torch.device, dtype: torch.dtype, threads: int
) -> tuple[float, float, float, float, float]:
    """(product, eigen, symmetric, cholesky, fresh) of `Rates`, measured once a process."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 512, generator=generator).to(device, dtype)
    product = timed(a.device, lambda: a @ a) / (2 * 512**3)
    symmetric = a + a.T
    eigen = timed(a.device, partial(quickest, symmetric.double())) / 512**3
    exact = timed(a.device, partial(quickest, symmetric)) / 512**3
    positive = a @ a.T + 512 * torch.eye(512).to(a)
    cholesky = timed(a.device, partial(torch.linalg.cholesky, positive))
    fresh = timed(a.device, lambda: a.new_zeros(2**24)) / 2**24
    return product, eigen, exact, 3 * cholesky / 512**3, fresh


def _repeated(width: int) -> Columns:
    """∂ℓ/∂f as often as there are columns."""

    def make(loss: Loss, output: torch.Tensor, target: Batched) -> torch.Tensor:
        return loss.gradient(output, target)[:, :, None].expand(-1, -1, width)

    return Columns(width, "a probe", make)


def probed(problem: Problem, layout: Layout, width: int) -> int:
    """How many examples are timed at most."""
    elements = max(1, layout.elements(width))
    most = max(ENOUGH, len(problem.train) // SHARE)
    return min(len(problem.train), most, PROBED, max(8, PROBE_ELEMENTS // elements))


def line(few: int, short: float, many: int, long: float) -> Pass:
    """start + each · n through two timings; all of it per example where there is but one."""
    if many == few:
        return Pass(0.0, long / many)
    each = max((long - short) / (many - few), 0.05 * long / many)
    return Pass(max(0.0, long - each * many), each)


def timed(device: torch.device, run: Callable[[], object], runs: int = 2) -> float:
    """Seconds of the quickest of a few runs."""
    found: list[float] = []
    for _ in range(runs):
        start = machine.clock(device)
        run()
        found.append(machine.clock(device) - start)
    return min(found)
