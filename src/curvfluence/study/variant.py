"""A problem with one thing changed: the cells of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.study.problems import StudyProblem, mlp

LIMIT = 7_000  # parameters up to which every rung of the ladder is worth its seconds in a sweep


@dataclass(frozen=True)
class Variant:
    """What differs from the problem as it is; None leaves it so.

    `depth` counts hidden layers, `width` is that of all of them (by default the problem's own
    first), `label_noise` the share of training labels set to another class.
    """

    depth: int | None = None
    width: int | None = None
    epochs: int | None = None
    weight_decay: float | None = None
    label_noise: float | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "width", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; seen {value}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay must be finite and >= 0; seen {self.weight_decay}")
        if self.label_noise is not None and not 0 <= self.label_noise < 1:
            raise InputError(f"label_noise must lie in [0, 1); seen {self.label_noise}")

    @property
    def changes(self) -> dict[str, Any]:
        """What differs, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.changes.items()) or "as it is"

    def apply(self, problem: StudyProblem) -> StudyProblem:
        """The changed problem. Errors: `InputError` for a change that it cannot take."""
        recipe = problem.recipe
        if self.depth is not None or self.width is not None:
            recipe = replace(recipe, architecture=self._architecture(recipe.architecture, problem))
        if self.epochs is not None:
            recipe = replace(recipe, epochs=self.epochs, steps=None)
        if self.weight_decay is not None:
            recipe = replace(recipe, weight_decay=self.weight_decay)
        run = problem.run if recipe == problem.recipe else None
        changed = replace(problem, recipe=recipe, run=run)
        return changed if not self.label_noise else _with_noise(changed, self.label_noise)

    def _architecture(
        self, given: Callable[[], nn.Module], problem: StudyProblem
    ) -> Callable[[], nn.Module]:
        layers = [m for m in problem.recipe.build(0).modules() if isinstance(m, nn.Linear)]
        if not isinstance(given, partial) or given.func is not mlp:
            raise InputError(
                f"depth and width change the built-in nets only; {problem.name} has an "
                "architecture of its own"
            )
        width = layers[0].out_features if self.width is None else self.width
        depth = len(layers) - 1 if self.depth is None else self.depth
        sizes = (layers[0].in_features, *[width] * depth, layers[-1].out_features)
        count = sum((i + 1) * o for i, o in pairwise(sizes))
        if count > LIMIT:
            raise InputError(
                f"depth {depth} and width {width} make a net of {count:,} parameters; a sweep "
                f"takes up to {LIMIT:,}"
            )
        return partial(mlp, sizes)


def _with_noise(problem: StudyProblem, share: float) -> StudyProblem:
    """Set a share of the training labels to another class, the same ones at each call."""
    targets = problem.train.targets
    if targets.is_floating_point():
        raise InputError(f"label_noise needs class labels; {problem.name} is a regression")
    if problem.flipped is not None:
        raise InputError(f"{problem.name} has flipped labels already")
    generator = torch.Generator().manual_seed(0)
    classes = int(targets.max()) + 1
    chosen = torch.randperm(len(targets), generator=generator)[: round(share * len(targets))]
    chosen = chosen.sort().values
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    noisy = targets.clone()
    noisy[chosen] = (targets[chosen] + shift) % classes
    return replace(
        problem,
        train=Examples(problem.train.inputs, noisy, problem.train.weights),
        flipped=chosen,
        flipped_from=targets[chosen],
    )


AXES: tuple[str, ...] = tuple(field.name for field in fields(Variant))
