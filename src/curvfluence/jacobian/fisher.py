"""Which columns stand for the labels: exact expectation, sampled, or the training labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.jacobian.columns import Columns, MakeColumns, Pulling
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.layer_columns import LayerColumns
from curvfluence.jacobian.layers import Layer
from curvfluence.problem.losses import Loss
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Batched
from curvfluence.runtime import generators

TYPE2_LIMIT = 64  # output columns an example up to which the exact expectation is the default
DEFAULT_DRAWS = 8
FEW_SURPRISES = 50.0
RANKED = 8  # examples that show the rank of a user's loss


class Fisher(ABC):
    """Columns s with (1/N) Σ_n Σ_c (Jᵀs)(Jᵀs)ᵀ the GGN, an estimate of it, or a stand-in for it."""

    name: str
    is_gradient: bool = False  # whether the one column is ∂ℓ/∂f, so that the rows are gradients

    @abstractmethod
    def columns(self, group: int | None = None) -> MakeColumns:
        """(loss, output, target) -> [B, K, C]; each call starts the random draws anew, those of one
        of the ranges that processes share out by themselves."""

    @abstractmethod
    def width(self, problem: Problem) -> int:
        """C."""

    def pulling(self, problem: Problem, make: MakeColumns, what: str) -> Pulling:
        """Those columns for a pass that errors call `what`, as they are pulled back."""
        return Columns(self.width(problem), what, make)

    def width_at(self, problem: Problem, layer: Layer) -> int:
        """What the rank of an example's sum over a layer's rows is at most."""
        return self.width(problem)

    def rank(self, problem: Problem) -> int:
        """What the rank of the sum over all rows is at most: C for each different example."""
        return problem.train.distinct * self.width(problem)

    def surprising_labels(self, problem: Problem) -> float | None:
        """Expected number of drawn labels that differ from the likeliest; None if none is drawn."""
        return None


@dataclass(frozen=True)
class Type2(Fisher):
    """The exact expectation over labels: the columns of S. Makes the ladder a ladder."""

    name = "type2"

    def columns(self, group: int | None = None) -> MakeColumns:
        def factor(loss: Loss, output: Tensor, target: Batched) -> Tensor:
            return loss.factor(output, target)

        return factor

    def width(self, problem: Problem) -> int:
        return problem.loss.columns(problem.n_outputs)

    def rank(self, problem: Problem) -> int:
        if problem.loss.full_rank:
            return super().rank(problem)
        few = problem.train.take(slice(0, RANKED))
        with torch.no_grad(), generators.preserved():
            output = problem.forward(few.inputs.clone())
        return problem.train.distinct * problem.loss.rank(output, few.targets)


@dataclass(frozen=True)
class Type2ByLayer(Type2):
    """The same expectation for sums within each layer, where the outputs are many and those of a
    last layer W h + b: min(h, K − 1) columns instead of K − 1, see `LayerColumns`.

    What rungs that have a block a layer take in the place of `Type2()`; rows across layers do not
    belong together.
    """

    @staticmethod
    def fits(problem: Problem) -> bool:
        """More than `TYPE2_LIMIT` columns, of a loss that has its Hessian in closed form; and all
        uses of the parameters known, every one of which reaches the output by the last layer."""
        if problem.loss.columns(problem.n_outputs) <= TYPE2_LIMIT or not problem.loss.structured:
            return False
        layout = discover(problem)
        ruled = {part.name for part in layout.small}
        known = layout.last is not None and ruled.issuperset(layout.others)
        return known and problem.autocast is None

    def pulling(self, problem: Problem, make: MakeColumns, what: str) -> LayerColumns:
        return LayerColumns(self.width(problem), what)

    def width(self, problem: Problem) -> int:
        return min(self._last(problem).in_features, super().width(problem))

    def width_at(self, problem: Problem, layer: Layer) -> int:
        return super().width(problem) if layer == self._last(problem) else self.width(problem)

    def _last(self, problem: Problem) -> Layer:
        layout = discover(problem)
        assert layout.last is not None
        return layout.layers[layout.last]


@dataclass(frozen=True, eq=False)
class Draws:
    """Columns of labels drawn from the model's distribution, example after example."""

    draws: int
    generator: torch.Generator

    def __call__(self, loss: Loss, output: Tensor, target: Batched) -> Tensor:
        return loss.sample(output, target, draws=self.draws, generator=self.generator)


@dataclass(frozen=True)
class MonteCarlo(Fisher):
    """`draws` labels drawn from the model's own distribution for each example, scaled 1/√draws.

    Unbiased for the GGN, but on a well-fitted model nearly every drawn label is the expected one
    and its column nearly zero: the factor rests on the few surprising labels, N (1 − mean p_max) ×
    draws of them in expectation.
    """

    draws: int = DEFAULT_DRAWS
    seed: int = 0

    def __post_init__(self) -> None:
        kinds.count(self.draws, "draws")
        kinds.count(self.seed, "seed", least=0)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"mc({self.draws})"

    def columns(self, group: int | None = None) -> MakeColumns:
        seed = self.seed
        if group is not None:
            seed = int(np.random.SeedSequence((seed, group)).generate_state(1, np.uint64)[0]) >> 1
        return Draws(self.draws, torch.Generator().manual_seed(seed))

    def width(self, problem: Problem) -> int:
        return self.draws

    def rank(self, problem: Problem) -> int:
        """Equal examples draw labels of their own."""
        return len(problem.train) * self.draws

    def surprising_labels(self, problem: Problem) -> float | None:
        total = 0.0
        for part, output in problem.each_output(problem.train, "training set"):
            surprise = problem.loss_of(part).surprise(output, part.targets)
            if surprise is None:
                return None
            total += float(surprise.double().sum())
        return total * self.draws


@dataclass(frozen=True)
class Empirical(Fisher):
    """The training labels' own gradients: (1/N) Σ g_n g_nᵀ. No estimate of the GGN."""

    name = "empirical"
    is_gradient = True

    def columns(self, group: int | None = None) -> MakeColumns:
        def gradient(loss: Loss, output: Tensor, target: Batched) -> Tensor:
            return loss.label_column(output, target)

        return gradient

    def width(self, problem: Problem) -> int:
        return 1


def fisher_named(name: str, seed: int = 0) -> Fisher:
    """type2, empirical, or mc(k) as a result or a command line writes it (mc1 and mc(1) alike)."""
    if name == Type2.name:
        return Type2()
    if name == Empirical.name:
        return Empirical()
    draws = name.removeprefix("mc").strip("()")
    if name.startswith("mc") and draws.isdigit():
        return MonteCarlo(int(draws), seed=seed)
    raise InputError(f"there is no Fisher type {name!r}; there are type2, empirical and mc(k)")


def default_fisher(problem: Problem, *, by_layer: bool = False) -> Fisher:
    """type2 while an example has at most 64 columns that are carried through the model, mc(8)
    above: K − 1 of them, or with `by_layer` (for sums within a layer) no more than the last layer
    has inputs."""
    exact = type2(problem, by_layer=by_layer)
    return exact if exact.width(problem) <= TYPE2_LIMIT else MonteCarlo()


def type2(problem: Problem, *, by_layer: bool) -> Type2:
    """The exact expectation; with `by_layer` for sums within a layer alone."""
    return Type2ByLayer() if by_layer and Type2ByLayer.fits(problem) else Type2()
