"""How a model is called, and what of its answer are the outputs: the one place that does either."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.tree import Batched, Tree, value_of

LOGITS = "logits"  # what models of Hugging Face call their outputs


@dataclass(frozen=True)
class Forward:
    """By default a tensor x is called as model(x), a tuple or list as model(*x), a mapping as
    model(**x); `function(model, inputs)` is called in its place where it is given.

    The outputs are what is returned, where that is a tensor; its `logits`, where it has them; what
    `output` says, a name in it or a function of it, where that is given.
    """

    function: Callable[[nn.Module, Any], Any] | None = None
    output: str | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if self.function is not None and not callable(self.function):
            raise InputError(
                "forward must be a function of (model, inputs) that returns the outputs; seen "
                f"{self.function!r}"
            )
        if not (self.output is None or isinstance(self.output, str) or callable(self.output)):
            raise InputError(
                "output must be the name of the outputs in what the model returns, or a function "
                f"that takes them from it; seen {self.output!r}"
            )

    def __call__(self, model: nn.Module, inputs: Batched) -> Tensor:
        """The model's outputs. Errors: `InputError` where it returns none."""
        return self._outputs(self._returned(model, value_of(inputs)))

    def _returned(self, model: nn.Module, value: Any) -> Any:
        if self.function is not None:
            return self.function(model, value)
        if isinstance(value, Mapping):
            return model(**value)
        if isinstance(value, tuple | list):
            return model(*value)
        return model(value)

    def _outputs(self, returned: Any) -> Tensor:
        if callable(self.output):
            found = self.output(returned)
        elif self.output is not None:
            found = _named(returned, self.output)
            if found is None:
                raise InputError(
                    f"the model's answer has no {self.output!r}; it is {_said(returned)}"
                )
        else:
            found = returned if isinstance(returned, Tensor) else _named(returned, LOGITS)
        if not isinstance(found, Tensor):
            what = "the model" if self.output is None else _called(self.output)
            seen = returned if self.output is None else found
            raise InputError(
                f"{what} must return a tensor of outputs, and returned {_said(seen)}: say which of "
                f"it they are, {_remedy(returned)}"
            )
        return found

    def require_fit(self, model: nn.Module, inputs: Batched) -> None:
        """Refuse inputs that the model's own signature does not take, before it is called.

        Errors: `InputError` with the names of both."""
        if self.function is not None or not isinstance(inputs, Tree):
            return
        value = inputs.value
        if not isinstance(value, Mapping | tuple | list):
            raise InputError(
                f"a {type(value).__name__} is given to a model by forward alone: "
                "Problem(forward=lambda model, inputs: model(inputs)) where it takes it whole"
            )
        signature = inspect.signature(model.forward)
        given: tuple[list[Any], dict[str, Any]]
        if isinstance(value, Mapping):
            given = [], dict(cast("Mapping[str, Any]", value))
        else:
            given = list(cast("list[Any]", value)), {}
        try:
            signature.bind(*given[0], **given[1])
        except TypeError as error:
            kind = f"the keys {', '.join(given[1])}" if given[1] else f"{len(given[0])} inputs"
            whole = len(_needed(signature)) == 1
            how = "model(inputs)" if whole else "model(...)"
            raise InputError(
                f"the model does not take these inputs ({error}): seen {kind}, and its forward "
                f"takes {signature}. Rename or leave out what it does not take, or "
                f"{'give it all of them as one, ' if whole else 'say how it is called by '}"
                f"Problem(forward=lambda model, inputs: {how})"
            ) from error


def _needed(signature: inspect.Signature) -> list[str]:
    """The arguments that must be given."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, one in signature.parameters.items()
        if one.default is inspect.Parameter.empty and one.kind not in several
    ]


def _called(output: str | Callable[[Any], Any]) -> str:
    if isinstance(output, str):
        return f"output={output!r}"
    return f"the function output ({getattr(output, '__name__', type(output).__name__)})"


def _remedy(returned: Any) -> str:
    """How to take outputs from that: one of several, or all side by side."""
    if isinstance(returned, Mapping):
        names = [key for key in cast("Mapping[Any, Any]", returned) if isinstance(key, str)]
        if len(names) > 1:
            parts = ", ".join(f"answer[{name!r}]" for name in names[:2])
            more = ", ..." if len(names) > 2 else ""
            return (
                f"by output={names[0]!r}; or all of them side by side, by output=lambda answer: "
                f"torch.cat([{parts}{more}], -1), with a CustomLoss that takes them apart again"
            )
    return "by output='name' or output=lambda answer: answer[0]"


def _named(returned: Any, name: str) -> Any:
    """What goes by that name in a mapping, a dataclass or a named tuple."""
    if isinstance(returned, Mapping):
        return cast("Mapping[str, Any]", returned).get(name)
    return getattr(returned, name, None) if not isinstance(returned, Tensor) else None


def _said(returned: Any) -> str:
    if isinstance(returned, Mapping):
        keys = ", ".join(map(str, cast("Mapping[Any, Any]", returned)))
        return f"a {type(returned).__name__} of {keys}"  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(returned, tuple | list):
        several = cast("tuple[Any, ...]", returned)
        return f"a {type(several).__name__} of {len(several)}"
    return f"a {type(returned).__name__}"
