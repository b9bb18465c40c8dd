"""dattri: EK-FAC of the empirical Fisher for Linear layers, exact damping, float32.

Its eigenvectors are the columns of what eigh returns and are used as rows, and a bias is placed
after all weights of its layer and then read as if it stood in each row: the scores are those of
another matrix. Conv2d layers are left out without a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from dattri.algorithm.influence_function import IFAttributorEKFAC
from dattri.task import AttributionTask
from question import Question
from torch import Tensor
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset
from workloads import example_losses

DISTRIBUTION = "dattri"
BATCHES = {"W1": (1617, 180), "W2": (256, 20), "W3": (4500, 100), "W4": (32, 32)}


@dataclass(frozen=True)
class Fitted:
    attributor: IFAttributorEKFAC


def fit(question: Question) -> Fitted:
    task, model = question.task, question.model
    if (task.rung, task.fisher) != ("EKFAC", "empirical"):
        raise NotImplementedError(f"no {task.rung} with a {task.fisher} Fisher")
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}

    def loss(theta: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        output = functional_call(model, {**frozen, **theta}, (inputs,))
        return example_losses(output, targets).mean()

    attributor = IFAttributorEKFAC(
        AttributionTask(loss, model, model.state_dict()), damping=task.damping
    )
    attributor.cache(_loader(question.inputs, question.targets, BATCHES[task.workload][0]))
    return Fitted(attributor)


def pairwise(question: Question, fitted: Fitted) -> Tensor:
    examples, queries = BATCHES[question.task.workload]
    with torch.no_grad():
        found = fitted.attributor.attribute(
            _loader(question.inputs, question.targets, examples),
            _loader(question.query_inputs, question.query_targets, queries),
        )
    return found.T / len(question.inputs)


def _loader(inputs: Tensor, targets: Tensor, size: int) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(inputs, targets), batch_size=size, shuffle=False)
