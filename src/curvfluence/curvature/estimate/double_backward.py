"""Which module keeps a model from being differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.runtime import attention, generators

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
REFUSALS = (RuntimeError, NotImplementedError)


def refused(problem: Problem, error: Exception) -> InputError:
    """What to raise for `error`, which a second derivative of the model met: names the innermost
    module that meets it by itself, and the rungs that serve."""
    where = _culprit(problem)
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InputError(
        f"{where or 'this model'} cannot be differentiated twice ({said}): use a rung that needs "
        "first derivatives only: the GGN (as Matrix() or SampleSpace()), BlockGGN, EKFAC, KFAC or "
        "Diagonal"
    )


def _culprit(problem: Problem) -> str | None:
    """The first innermost module whose own call cannot be differentiated twice; None where each
    can, so that the fault lies in how they are put together."""
    seen = _calls(problem)
    named = dict(problem.structure.modules.named_modules())
    for name in sorted(seen, key=lambda name: -name.count(".") if name else 1):
        if not _takes_two(named[name], seen[name]):
            return f"{name or 'the model'} ({type(named[name]).__name__})"
    return None


def _calls(problem: Problem) -> dict[str, Arguments]:
    """What each module is given in a pass over two examples; hooks are taken off again."""
    seen: dict[str, Arguments] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen.setdefault(name, (args, kwargs))

        return hook

    handles: list[RemovableHandle] = []
    try:
        for name, module in problem.structure.modules.named_modules():
            handles.append(module.register_forward_pre_hook(keep(name), with_kwargs=True))
        with torch.no_grad(), generators.preserved():
            problem.forward(problem.train.take(slice(0, 2)).inputs.clone())
    except Exception:  # of naming the module; what it is called for is raised in any case
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _takes_two(module: nn.Module, given: Arguments) -> bool:
    """Whether ∂/∂x of ‖∂(Σ outputs²)/∂x‖² can be had, with x the inputs and weights of a call."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        copy = value.detach().clone()
        if copy.is_floating_point():
            leaves.append(copy.requires_grad_(True))
        return copy

    args = tuple(leaf(value) for value in given[0])
    kwargs = {name: leaf(value) for name, value in given[1].items()}
    theta = {name: leaf(value) for name, value in module.named_parameters()}
    with torch.enable_grad(), attention.plain(), generators.preserved():
        try:
            output = torch.func.functional_call(module, theta, args, kwargs)
            outputs = output if isinstance(output, tuple | list) else (output,)
            smooth = [o for o in outputs if isinstance(o, Tensor) and o.requires_grad]
            if not smooth:
                return True
            total = torch.stack([o.square().sum() for o in smooth]).sum()
            first = cast(
                "tuple[Tensor | None, ...]",
                torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True),
            )
            bent = [g.square().sum() for g in first if g is not None and g.requires_grad]
            if bent:
                torch.autograd.grad(torch.stack(bent).sum(), leaves, allow_unused=True)
        except REFUSALS:
            return False
        except Exception:  # of a call that cannot be repeated by itself
            return True
    return True
