"""pyDVL: K-FAC, or EK-FAC by `update_diagonal`, for Linear layers with a bias, exact damping.

Its Fisher takes one column for all classes at once, Σ_c √p_c (e_c − p), whose outer product has
cross terms that the expectation over labels has not: a biased type-2 Fisher. float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from pydvl.influence.torch import EkfacInfluence
from question import Question
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from workloads import ClassesFirst

DISTRIBUTION = "pyDVL"
OWN_FISHER = "root"
FIT_BATCH = {"W1": 1617, "W2": 256, "W3": 512, "W4": 32}
# Small: its per-example gradients of B examples are B backward passes over all of them.
GRADIENT_BATCH = {"W1": 64, "W2": 4, "W3": 32, "W4": 4}


@dataclass(frozen=True)
class Fitted:
    influence: EkfacInfluence


def fit(question: Question) -> Fitted:
    task = question.task
    if task.fisher != "type2":
        raise NotImplementedError(f"no {task.fisher} Fisher: only its own stand-in for type-2")
    influence = EkfacInfluence(
        ClassesFirst(question.model) if question.positions > 1 else question.model,
        update_diagonal=task.rung == "EKFAC",
        hessian_regularization=task.damping,
    )
    data = TensorDataset(question.inputs, question.targets)
    influence.fit(DataLoader(data, batch_size=FIT_BATCH[task.workload]))
    return Fitted(influence)


def pairwise(question: Question, fitted: Fitted) -> Tensor:
    influence, size = fitted.influence, GRADIENT_BATCH[question.task.workload]

    def parts(inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(inputs.split(size), targets.split(size), strict=True)

    queries = parts(question.query_inputs, question.query_targets)
    solved_qp = torch.cat([influence.influence_factors(x, y) for x, y in queries]).detach()
    examples = parts(question.inputs, question.targets)
    rows = [influence.influences_from_factors(solved_qp, x, y) for x, y in examples]
    return torch.cat(rows, dim=1).detach() / len(question.inputs)
