"""Question: what every library is asked, I[q, n] = (1/N) g_qᵀ (C + λI)⁻¹ g_n with C a mean."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn
from workloads import LAYERS, Trained


@dataclass(frozen=True)
class Task:
    """One line of the comparison, without the library.

    `parameters` is "layers" (weights and biases of Linear and Conv2d, all that the peers' K-FAC
    covers; the others are frozen) or "all". `bias` is "joint": a layer's bias is a column of its
    weight. Damping is exact and absolute.
    """

    workload: str
    rung: str  # EKFAC or KFAC
    fisher: str  # empirical, type2 or mc(1)
    examples: int
    queries: int
    damping: float
    parameters: str = "layers"
    bias: str = "joint"


@dataclass(frozen=True)
class Question:
    """A task with its model and its examples."""

    task: Task
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    query_inputs: Tensor
    query_targets: Tensor

    @property
    def positions(self) -> int:
        """T, the loss terms of an example."""
        return self.targets[0].numel()

    def few(self, examples: int, queries: int) -> Question:
        """The same with fewer examples: to load what a library loads late, before it is timed."""
        return replace(
            self,
            inputs=self.inputs[:examples],
            targets=self.targets[:examples],
            query_inputs=self.query_inputs[:queries],
            query_targets=self.query_targets[:queries],
        )


def ask(task: Task, trained: Trained) -> Question:
    """The first `examples` and `queries` of the workload, and a model of its own."""
    model = trained.model()
    if task.parameters == "layers":
        freeze_others(model)
    data = trained.data
    return Question(
        task,
        model,
        data.inputs[: task.examples],
        data.targets[: task.examples],
        data.query_inputs[: task.queries],
        data.query_targets[: task.queries],
    )


def freeze_others(model: nn.Module) -> None:
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.requires_grad_(True)
