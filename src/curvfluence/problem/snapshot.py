"""The model's tensors when a problem is made: copies, which more training does not change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.parameters import Parameters


def snapshot(
    model: nn.Module, parameters: Parameters, weights: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(θ by name, every other parameter and buffer by name), of the model or of a checkpoint."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    if weights is not None:
        kept = set(model.state_dict(keep_vars=True))
        missing = [name for name in named if name not in weights and name in kept]
        unknown = sorted(set(weights) - set(named) - kept)
        if missing or unknown:
            raise InputError(
                f"weights must hold what the model's state_dict does: missing {missing}, unknown "
                f"{unknown}"
            )
        for name in named:
            if name in weights and weights[name].shape != named[name].shape:
                raise InputError(
                    f"weights[{name!r}] has shape {tuple(weights[name].shape)}, the model's has "
                    f"{tuple(named[name].shape)}"
                )
    given = {} if weights is None else {n: w for n, w in weights.items() if n in named}
    source = {**named, **given}
    copied = {name: source[name].detach().clone() for name in named}
    theta = {name: copied.pop(name) for name in parameters.names}
    for name, value in theta.items():
        if value.is_meta:
            raise InputError(
                f"parameter {name} is on the meta device and has no values: load the model's "
                "weights first"
            )
        if not value.numel():
            raise InputError(
                f"parameter {name} has shape {tuple(value.shape)}, no entries: take its module "
                "out, or freeze it with requires_grad_(False)"
            )
        if not bool(value.isfinite().all()):
            raise InputError(f"parameter {name} holds a NaN or infinity")
    dtype = next(iter(theta.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"the parameters must be float32 or float64; seen {dtype}. For a bfloat16 model: "
            "model.float(), with autocast=torch.bfloat16"
        )
    copied = {n: v.to(dtype) if v.is_floating_point() else v for n, v in copied.items()}
    kinds = {(value.device, value.dtype) for value in theta.values()}
    if len(kinds) > 1:
        raise InputError(
            f"the parameters must share one device and dtype; seen {sorted(map(str, kinds))}"
        )
    return theta, copied
