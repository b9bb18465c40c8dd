"""The model's tensors when a problem is made: copies, which more training does not change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.parameters import Parameters
from curvfluence.problem.sharded import own_part
from curvfluence.problem.structure import COMPILED, Structure, tensors
from curvfluence.runtime.finite import all_finite


def snapshot(
    structure: Structure,
    parameters: Parameters,
    held: Mapping[str, Tensor],
    weights: Mapping[str, Tensor] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(θ by name, every other parameter and buffer by name): a checkpoint's, else those `held`."""
    named = structure.tensors
    if weights is not None:
        weights = {name.replace(COMPILED, ""): value for name, value in weights.items()}
        kept = set(structure.modules.state_dict(keep_vars=True))
        missing = [name for name in named if name not in weights and name in kept]
        unknown = sorted(set(weights) - set(named) - kept)
        if missing or unknown:
            raise InputError(
                f"weights must hold what the model's state_dict does: missing {missing}, unknown "
                f"{unknown}{_prefixed(missing, unknown)}"
            )
        for name in named:
            if name in weights and weights[name].shape != named[name].shape:
                raise InputError(
                    f"weights[{name!r}] has shape {tuple(weights[name].shape)}, the model's has "
                    f"{tuple(named[name].shape)}"
                )
    _require_apart(parameters.names, held)
    source = {**held, **({} if weights is None else weights)}
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
        if not all_finite(value):
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


def require_apart(model: nn.Module) -> None:
    """No parameter of a model lies in the memory of another of its tensors, one that a module holds
    as a plain attribute among them: training would move it twice, autograd know of one."""
    trained = [name for name, p in tensors(model).items() if p.requires_grad]
    held = {name: own_part(tensor) for name, tensor in tensors(model).items()}
    known = {id(tensor) for tensor in tensors(model).values()}
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and id(value) not in known:
                held[f"{prefix}.{key}" if prefix else key] = value
    _require_apart(trained, held)


def _require_apart(trained: Collection[str], held: Mapping[str, Tensor]) -> None:
    for name in trained:
        x = held[name]
        if any(step == 0 and n > 1 for n, step in zip(x.shape, x.stride(), strict=True)):
            raise InputError(
                f"parameter {name} of shape {tuple(x.shape)} has several entries in one place of "
                "memory (an expanded tensor): make it nn.Parameter(x.contiguous()), or of the "
                "smaller shape"
            )
    known: list[tuple[int, str]] = []  # (end, name) of those that begin before
    for start, end, name in sorted(_spans(held)):
        known = [(stop, other) for stop, other in known if stop > start]
        for _, other in known:
            moved = name in trained or other in trained
            if moved and _overlap(held[other], held[name]):
                raise InputError(
                    f"{other} and {name} lie in the same memory but are two tensors: training "
                    "would move it twice, and influence count it twice. Make them one, as in "
                    "model.b.weight = model.a.weight, or give one of them memory of its own"
                )
        known.append((end, name))


def _spans(held: Mapping[str, Tensor]) -> Iterator[tuple[int, int, str]]:
    """(first byte, behind the last, name) of every tensor that has memory."""
    for name, x in held.items():
        if x.layout == torch.strided and not x.is_meta and x.numel():
            last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
            yield x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size(), name


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors whose spans meet have an element in common."""
    if (a.is_contiguous() and b.is_contiguous()) or a.dtype != b.dtype:
        return a.device == b.device
    first = min(a.data_ptr(), b.data_ptr())
    return a.device == b.device and bool(torch.isin(_places(a, first), _places(b, first)).any())


def _places(x: Tensor, first: int) -> Tensor:
    """Where each element lies, in elements from byte `first` on."""
    places = torch.tensor((x.data_ptr() - first) // x.element_size())
    for n, step in zip(x.shape, x.stride(), strict=True):
        places = places[..., None] + step * torch.arange(n)
    return places.flatten()


def _prefixed(missing: list[str], unknown: list[str]) -> str:
    """What to do where every name is longer by the same beginning, as of a DataParallel model."""
    for name in unknown:
        prefix = next((name.removesuffix(m) for m in missing if name.endswith(f".{m}")), "")
        if prefix and {u.removeprefix(prefix) for u in unknown} <= set(missing):
            return (
                f". They are of a model that wraps this one: take {prefix!r} off their names, "
                f"{{name.removeprefix({prefix!r}): value for name, value in weights.items()}}"
            )
    return ""
