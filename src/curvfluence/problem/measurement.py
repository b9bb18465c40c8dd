"""What is measured of a query: m(f, y), with its gradient and which way is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.problem.data import require_finite
from curvfluence.problem.losses import Loss, residual
from curvfluence.problem.own_code import own_code, require_differentiable, require_one_each
from curvfluence.problem.tree import Batched, value_of

BEYOND = 100.0  # times what a user's measurement is anywhere, that no change of it can be


def _require_labels(name: str, n_outputs: int, target: Tensor | None) -> None:
    if n_outputs < 2 or (target is not None and (target.ndim != 1 or target.is_floating_point())):
        seen = "" if target is None else f", targets of shape {tuple(target.shape)} {target.dtype}"
        raise InputError(
            f"measurement {name!r} needs class labels and at least 2 outputs; seen {n_outputs} "
            f"outputs{seen}"
        )


class Measurement(ABC):
    """A number m_q per query. `lower_is_better` decides which influences are help."""

    name: str
    unit: str
    lower_is_better: bool
    trees: ClassVar[bool] = False  # whether targets may be a container of tensors
    bound: ClassVar[str] = "the largest value of any label at the query's outputs"  # what reach is

    def check(self, n_outputs: int, target: Any) -> None:
        """Raise `InputError` where the queries' targets do not fit."""
        return None

    @abstractmethod
    def values(self, output: Tensor, target: Any) -> Tensor:
        """m per query, [Q]."""

    def reach(self, output: Tensor, target: Any, labels: Any) -> Tensor | None:
        """What no change of m can exceed while the outputs are about these, [Q]: the largest |m| of
        any label; `labels` are the training set's. None where that is not known."""
        return None

    def least_reach(self, n_outputs: int) -> float:
        """What `reach` is at least, whatever the outputs."""
        return 0.0

    def gradient(self, output: Tensor, target: Any) -> Tensor:
        """∂m/∂f per query, [Q, K]; by autograd unless a closed form is better."""
        with torch.enable_grad():
            f = output.detach().requires_grad_(True)
            name = f"measurement {self.name!r}"
            values = require_one_each(self.values(f, target), f, name)
            require_finite(values.detach(), f"value of {name}")
            return torch.autograd.grad(require_differentiable(values, name).sum(), f)[0]


@dataclass(frozen=True, eq=False)
class LossMeasurement(Measurement):
    """m = ℓ: the query's loss, as in training. The default."""

    loss: Loss
    name = "loss"

    @property
    def trees(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.loss.trees

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", self.loss.unit)
        object.__setattr__(self, "lower_is_better", self.loss.lower_is_better)

    def values(self, output: Tensor, target: Any) -> Tensor:
        return self.loss.values(output, target)

    def gradient(self, output: Tensor, target: Any) -> Tensor:
        return self.loss.gradient(output, target)

    def reach(self, output: Tensor, target: Any, labels: Any) -> Tensor | None:
        return self.loss.worst(output, target, labels)

    def least_reach(self, n_outputs: int) -> float:
        return self.loss.least_worst(n_outputs)


@dataclass(frozen=True)
class Margin(Measurement):
    """m = f_y − log Σ_{c≠y} exp f_c, the log-odds of the true class; higher is better. In nats."""

    name = "margin"
    unit = "nats"
    lower_is_better = False

    def check(self, n_outputs: int, target: Tensor) -> None:
        _require_labels(self.name, n_outputs, target)

    def reach(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """|f_c − log Σ_{k≠c} exp f_k| is at most the spread of f and log(K − 1)."""
        return output.amax(-1) - output.amin(-1) + log(max(2, output.shape[-1] - 1))

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        index = target[:, None]
        others = output.scatter(-1, index, -torch.inf).logsumexp(-1)
        return output.gather(-1, index)[:, 0] - others


@dataclass(frozen=True)
class LogProbability(Measurement):
    """m = log p_c of class `label`, or of each query's own label where None; higher is better."""

    label: int | None = None
    name = "log-probability"
    unit = "nats"
    lower_is_better = False

    def check(self, n_outputs: int, target: Tensor) -> None:
        _require_labels(self.name, n_outputs, target if self.label is None else None)
        if self.label is not None and not 0 <= self.label < n_outputs:
            raise InputError(f"class {self.label} is outside 0..{n_outputs - 1}")

    def __post_init__(self) -> None:
        if self.label is not None:
            kinds.count(self.label, "label", least=0)

    def _labels(self, target: Tensor, n: int) -> Tensor:
        return target if self.label is None else target.new_full((n,), self.label).long()

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        labels = self._labels(target, len(output))
        return output.log_softmax(-1).gather(-1, labels[:, None])[:, 0]

    def reach(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        return output.logsumexp(-1) - output.amin(-1)

    def least_reach(self, n_outputs: int) -> float:
        return log(n_outputs)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """e_c − p, without cancellation as p → e_c."""
        return -residual(output.softmax(-1), self._labels(target, len(output)))


@dataclass(frozen=True)
class CustomMeasurement(Measurement):
    """Any `function(output [Q, K], target) -> [Q]`, differentiable in the output."""

    function: Callable[[Tensor, Any], Tensor]
    lower_is_better: bool
    name: str = "measurement"
    unit: str = "units of the measurement"
    trees: ClassVar[bool] = True
    bound: ClassVar[str] = "a hundred times the largest value of any query"

    def __post_init__(self) -> None:
        kinds.function(self.function, "the function of a CustomMeasurement")
        kinds.flag(self.lower_is_better, "lower_is_better")
        kinds.text(self.name, "name")
        kinds.text(self.unit, "unit")

    def values(self, output: Tensor, target: Batched) -> Tensor:
        name = f"measurement {self.name!r}"
        with own_code(name):
            values: object = self.function(output, value_of(target))
        return require_one_each(values, output, name)

    def reach(self, output: Tensor, target: Batched, labels: Batched) -> Tensor:
        """Not known of a user's function: a hundred times the largest |m| of the queries."""
        sizes = self.values(output, target).abs()
        return (BEYOND * sizes.max()).expand(len(sizes))
