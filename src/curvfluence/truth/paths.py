"""The three ways of training many models, and which of them an architecture allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.problem.forward import Forward
from curvfluence.problem.parameters import Parameters
from curvfluence.problem.tree import Tree, each
from curvfluence.truth.functional import FunctionalNet, obstacle, probe
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.stack import Stack
from curvfluence.truth.stacked import StackedChain, layers_of

Network: TypeAlias = "StackedChain | FunctionalNet"


class Path(str, Enum):
    """How models are trained together; the numbers agree to rounding."""

    STACKED = "stacked"  # batched products written out, for multilayer perceptrons
    FUNCTIONAL = "functional"  # torch.func.vmap over models
    PROCESSES = "processes"  # one after another, in several processes


@dataclass(frozen=True)
class ChosenPath:
    """A path and why it was taken."""

    path: Path
    reason: str


def choose_path(recipe: Recipe, examples: Examples | None = None) -> ChosenPath:
    """The fastest path that can train the recipe's architecture.

    With `examples` the functional path is tried on two of them before it is chosen; without, the
    choice goes by the kinds of the modules.
    """
    dtype = torch.get_default_dtype() if examples is None else recipe.dtype(examples)
    model = recipe.build(0, dtype)
    if not recipe.optimizer.elementwise:
        kind = recipe.optimizer.kind.__name__
        return ChosenPath(Path.PROCESSES, f"{kind} is not known to step element by element")
    layers = layers_of(model)
    if recipe.calls != Forward() or (examples is not None and isinstance(examples.inputs, Tree)):
        layers = "the model is not called on one tensor"
    if not isinstance(layers, str):
        return ChosenPath(Path.STACKED, "a chain of Linear layers and elementwise activations")
    if examples is None:
        against = obstacle(model)
    else:
        few = examples[:2]
        x, y = (each(rows, Tensor.cpu) for rows in (few.inputs, few.targets))
        against = probe(model, recipe, x, y)
    if against is not None:
        return ChosenPath(Path.PROCESSES, against)
    return ChosenPath(Path.FUNCTIONAL, layers)


def require_path(path: Path, recipe: Recipe, examples: Examples) -> ChosenPath:
    """`path`, or `InputError` where the recipe's architecture does not allow it."""
    if not isinstance(path, Path):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"path must be one of {[str(each) for each in Path]}; seen {path!r}")
    best = choose_path(recipe, examples)
    order = list(Path)
    if order.index(path) < order.index(best.path):
        raise InputError(
            f"the {path.value} path cannot train this: {best.reason}. "
            f"Leave path out, or ask for {best.path.value}"
        )
    return ChosenPath(path, "asked for")


def network_of(
    path: Path,
    recipe: Recipe,
    model: nn.Module,
    theta: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> Network:
    """M models side by side at θ; `theta` and `state` hold [M, *shape] by name."""
    decay = recipe.decay(Parameters.of(model))
    if path is Path.STACKED:
        layers = layers_of(model)
        if isinstance(layers, str):
            raise InputError(f"the stacked path cannot train this: {layers}")
        arranged = StackedChain.arrange(layers, theta)
        return StackedChain(layers, Stack.of(arranged, decay), recipe.loss)
    return FunctionalNet(model, recipe, Stack.of(theta, decay), state)


def theta_of(network: Network) -> dict[str, Tensor]:
    """The trained parameters in the model's own layout, [M, *shape]."""
    theta = dict(network.stack.theta)
    if isinstance(network, StackedChain):
        return StackedChain.arrange(network.layers, theta)
    return theta
