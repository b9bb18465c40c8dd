"""A problem with one thing changed: the cells of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeAlias

import torch

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.study.problems import MLP, StudyProblem
from curvfluence.study.problems.nets import ACTIVATIONS
from curvfluence.study.words import plain

LIMIT = 10_000  # parameters up to which every rung of the ladder is worth its minutes
Value: TypeAlias = int | float | str | bool


@dataclass(frozen=True)
class Variant:
    """What differs from the problem as it is; None leaves it so.

    `depth` counts hidden layers, `width` is that of all of them (by default the problem's own
    first), `activation` and `bias` are those of every layer, `label_noise` the share of training
    labels set to another class. `decay_in_inverse` says whether influence has w in C + diag(w) + λ;
    no training depends on it.
    """

    depth: int | None = None
    width: int | None = None
    activation: str | None = None
    bias: bool | None = None
    epochs: int | None = None
    weight_decay: float | None = None
    label_noise: float | None = None
    decay_in_inverse: bool | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "width", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1; seen {value}")
        for name in ("bias", "decay_in_inverse"):
            if getattr(self, name) is not None:
                kinds.flag(getattr(self, name), name)
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise InputError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; seen {self.activation!r}"
            )
        if self.weight_decay is not None and not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay must be finite and >= 0; seen {self.weight_decay}")
        if self.label_noise is not None and not 0 <= self.label_noise < 1:
            raise InputError(f"label_noise must lie in [0, 1); seen {self.label_noise}")

    @property
    def changes(self) -> dict[str, Value]:
        """What differs, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {plain(v)}" for name, v in self.changes.items()) or "as it is"

    def apply(self, problem: StudyProblem) -> StudyProblem:
        """The changed problem. Errors: `InputError` for a change that it cannot take."""
        recipe = problem.recipe
        net = {name: getattr(self, name) for name in ("depth", "width", "activation", "bias")}
        changes = {name: value for name, value in net.items() if value is not None}
        if changes:
            recipe = replace(recipe, architecture=_changed(problem, changes))
        if self.epochs is not None:
            recipe = replace(recipe, epochs=self.epochs, steps=None)
        if self.weight_decay is not None:
            recipe = replace(recipe, weight_decay=self.weight_decay)
        kept = self.decay_in_inverse
        changed = replace(
            problem,
            recipe=recipe,
            run=problem.run if recipe == problem.recipe else None,
            decay_in_inverse=problem.decay_in_inverse if kept is None else kept,
        )
        return changed if not self.label_noise else _with_noise(changed, self.label_noise)


def net_of(problem: StudyProblem, what: str) -> MLP:
    """The built-in net of a problem. Errors: `InputError` where it has one of its own, whose
    `what` nobody else can change."""
    net = problem.recipe.architecture
    if not isinstance(net, MLP):
        raise InputError(
            f"{what} can be changed in the built-in nets only; {problem.name} has an architecture "
            "of its own"
        )
    return net


def _changed(problem: StudyProblem, changes: Mapping[str, Any]) -> MLP:
    net = net_of(problem, " and ".join(changes))
    sizes = {name: changes[name] for name in ("depth", "width") if name in changes}
    net = net.with_hidden(**sizes) if sizes else net
    net = replace(net, **{name: v for name, v in changes.items() if name not in sizes})
    if net.parameters > LIMIT:
        raise InputError(
            f"{', '.join(f'{name} {plain(v)}' for name, v in changes.items())} make a net of "
            f"{net.parameters:,} parameters; a ladder of dense rungs takes up to {LIMIT:,}"
        )
    return net


def _with_noise(problem: StudyProblem, share: float) -> StudyProblem:
    """Set a share of the training labels to another class, the same ones at each call."""
    targets = problem.train.labels
    if targets is None:
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
