"""What a model does in training that it does not do now: asked of the model, not of its classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvfluence.problem.structure import Structure
from curvfluence.runtime import generators

ROWS = 8  # examples that it is tried on


def said_of_training(
    structure: Structure, values: Mapping[str, Tensor], inputs: Tensor
) -> tuple[str, ...]:
    """Notes on outputs that are random in training mode, or other than those of the given mode.

    Two passes in training mode under two seeds, and one as given, over a few examples; the copy of
    the modules that runs in training mode is made for this, and buffers are copies.
    """
    training = Structure(structure.modules)
    training.modules.train()
    few = inputs[:ROWS]

    def run(model: Structure, seed: int) -> Tensor:
        with torch.no_grad(), generators.preserved():
            generators.seed(seed, few.device)
            return model({name: value.clone() for name, value in values.items()}, few.clone())

    try:
        first, second = (run(training, seed) for seed in (0, 1))
    except Exception as error:  # of a mode that the problem does not need
        return (
            "not known: whether training had dropout or batch statistics (in training mode the "
            f"model raised {type(error).__name__})",
        )
    if not torch.equal(first, second):
        return (
            f"not modelled: dropout in training ({_named(training.modules)}); the objective here "
            "is that of the model as it was given",
        )
    now = run(structure, 0)
    tolerance = 1e4 * torch.finfo(now.dtype).eps * float(now.abs().max())
    if float((first - now).abs().max()) > tolerance:
        return (
            "not modelled: in training mode the model gives other outputs (batch statistics, "
            "say); the objective here is that of the model as it was given",
        )
    return ()


def _named(model: nn.Module) -> str:
    """The modules that name a rate of dropout."""
    found: list[str] = []
    for name, module in model.named_modules():
        dropping = isinstance(module, nn.modules.dropout._DropoutNd)  # pyright: ignore[reportPrivateUsage]
        rate = module.p if dropping else getattr(module, "dropout", None)
        if isinstance(rate, float) and rate > 0:
            found.append(f"{name or 'the model'} (p = {rate:g})")
    return ", ".join(found) or "two passes in training mode differ"
