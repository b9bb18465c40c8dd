"""What a model does in training that it does not do now: asked of the model, not of its classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvfluence.problem.structure import Structure
from curvfluence.problem.tree import Batched, leaves
from curvfluence.runtime import generators

ROWS = 8  # examples that it is tried on
FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


def said_of_training(
    structure: Structure, values: Mapping[str, Tensor], inputs: Batched
) -> tuple[str, ...]:
    """Notes on outputs that are random in training mode, or other than those of the given mode, or
    other than torch's code without gradients gives.

    Two passes in training mode under two seeds, and two as given, over a few examples; buffers are
    copies.
    """
    few = inputs[:ROWS]

    def run(seed: int) -> Tensor:
        with torch.no_grad():
            generators.seed(seed, leaves(few)[0].device)
            return structure({name: value.clone() for name, value in values.items()}, few.clone())

    with generators.preserved():
        now = run(0)
        other = _of_other_code(structure, values, few, now)
        try:
            with structure.training():
                first, second, names = run(0), run(1), _named(structure.modules)
        except Exception as error:  # of a mode that the problem does not need
            return (
                *other,
                "not known: whether training had dropout or batch statistics (in training mode "
                f"the model raised {type(error).__name__})",
            )
    if not torch.equal(first, second):
        return (
            *other,
            f"not modelled: dropout in training ({names}); the objective here is that of the "
            "model as it was given",
        )
    tolerance = 1e4 * torch.finfo(now.dtype).eps * float(now.abs().max())
    if float((first - now).abs().max()) > tolerance:
        return (
            *other,
            "not modelled: in training mode the model gives other outputs (batch statistics, "
            "say); the objective here is that of the model as it was given",
        )
    return other


def _of_other_code(
    structure: Structure, values: Mapping[str, Tensor], few: Batched, now: Tensor
) -> tuple[str, ...]:
    """What to say where the model, called without gradients, gives other outputs: torch has such
    code for these modules alone."""
    if not any(isinstance(module, FUSED) for module in structure.modules.modules()):
        return ()
    with torch.no_grad():
        found = structure.as_found({name: value.clone() for name, value in values.items()}, few)
    if found.shape == now.shape:
        gap, size = float((found - now).abs().max()), float(now.abs().max())
        if gap <= 1e4 * torch.finfo(now.dtype).eps * size:
            return ()
        apart = f"differ by up to {gap:.2g} of {size:.2g}"
    else:
        apart = f"have shape {tuple(found.shape)} in place of {tuple(now.shape)}"
    return (
        "called without gradients, torch takes other code for this model (fused attention at "
        f"padded positions, say), whose outputs {apart}: scores and truth are of the code that "
        "training takes",
    )


def _named(model: nn.Module) -> str:
    """The modules that name a rate of dropout."""
    found: list[str] = []
    for name, module in model.named_modules():
        dropping = isinstance(module, nn.modules.dropout._DropoutNd)  # pyright: ignore[reportPrivateUsage]
        rate = module.p if dropping else getattr(module, "dropout", None)
        if isinstance(rate, float) and rate > 0:
            found.append(f"{name or 'the model'} (p = {rate:g})")
    return ", ".join(found) or "two passes in training mode differ"
