"""Models that FSDP2 holds in parts (`torch.distributed.fsdp.fully_shard`): the modules that they
were, and their tensors whole."""

from __future__ import annotations

import sys
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

FSDP = "torch.distributed.fsdp"
STATE_KEY = "__composable_api_state_key"  # of torch's own attributes on such a module


class _Gone:
    """In the place of what shards a module, where its copy is made."""


def sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on it. Imports nothing: who called it has."""
    kind = getattr(sys.modules.get(FSDP), "FSDPModule", None)
    return kind is not None and isinstance(module, kind)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of one that is held in parts by a message between all processes that have
    one, which must ask for it together."""
    gathered = getattr(tensor, "full_tensor", None)
    return tensor if gathered is None else gathered()


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy of a model, in which modules that are sharded are of the class that they were
    before, without what gathers and scatters their parameters."""
    parts = [module for module in model.modules() if sharded(module)]
    for module in parts:
        kind = _class_of(module)
        memo[id(module)] = kind.__new__(kind)  # their own refuse to be copied
        for state in _states(module):
            memo[id(state)] = _Gone()
    for module in parts:
        kept = {k: v for k, v in vars(module).items() if not k.startswith(STATE_KEY)}
        vars(memo[id(module)]).update(deepcopy(kept, memo))
    for module in parts:
        for hooks in _hooks(memo[id(module)]):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), _Gone):
                    del hooks[key]
    return deepcopy(model, memo)


def said_of_sharding(model: nn.Module) -> tuple[str, ...]:
    """What a sharded model did in training that its whole copy does not."""
    low = {
        str(kind).removeprefix("torch.")
        for module in model.modules()
        if sharded(module)
        for state in _states(module)
        if (kind := getattr(getattr(state, "_mp_policy", None), "param_dtype", None)) is not None
    }
    return tuple(f"FSDP's parameters in {kind} (give autocast for that)" for kind in sorted(low))


def _class_of(module: nn.Module) -> type[nn.Module]:
    fsdp: Any = sys.modules[FSDP]
    return next(kind for kind in type(module).__bases__ if kind is not fsdp.FSDPModule)


def _hooks(module: nn.Module) -> list[dict[Any, Any]]:
    return [value for key, value in vars(module).items() if key.endswith("_hooks") and value]


def _states(module: nn.Module) -> list[object]:
    """FSDP's own objects, whose methods are the module's hooks."""
    bound = (getattr(h, "__self__", None) for hooks in _hooks(module) for h in hooks.values())
    return [one for one in bound if type(one).__module__.startswith(FSDP)]
