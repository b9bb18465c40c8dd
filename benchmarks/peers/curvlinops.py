"""curvlinops: an operator for C and its inverse; the gradients and the product are ours.

K-FAC (expand) and EK-FAC with `separate_weight_and_bias=False`, exact damping, float32. Fisher:
type-2, sampled or the training labels. Its loss is the mean over examples and positions, so with T
positions C is T times its operator. Per-example gradients by torch.func, in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from curvlinops import EKFACLinearOperator, KFACInverseLinearOperator, KFACLinearOperator
from question import Question
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from workloads import ClassesFirst, example_losses

DISTRIBUTION = "curvlinops-for-pytorch"
FISHERS = {"type2": "type-2", "mc(1)": "mc", "empirical": "empirical"}
FIT_BATCH = {"W1": 2048, "W2": 512, "W3": 512, "W4": 32, "W5": 32, "W6": 16, "W7": 32}
GRADIENT_CHUNK = {"W1": 2048, "W2": 32, "W3": 256, "W4": 16, "W5": 8, "W6": 4, "W7": 4}


@dataclass(frozen=True)
class Fitted:
    inverse: KFACInverseLinearOperator
    names: list[str]


def fit(question: Question) -> Fitted:
    task = question.task
    named = {name: p for name, p in question.model.named_parameters() if p.requires_grad}
    size = FIT_BATCH[task.workload]
    batches = list(zip(question.inputs.split(size), question.targets.split(size), strict=True))
    kind = EKFACLinearOperator if task.rung == "EKFAC" else KFACLinearOperator
    operator = kind(
        ClassesFirst(question.model) if question.positions > 1 else question.model,
        nn.CrossEntropyLoss(),
        list(named.values()),
        batches,
        check_deterministic=False,
        fisher_type=FISHERS[task.fisher],
        num_per_example_loss_terms=question.positions,
        separate_weight_and_bias=False,
        num_data=len(question.inputs),
    )
    if isinstance(operator, EKFACLinearOperator):
        operator._maybe_compute_ekfac()
    else:
        operator.compute_kronecker_factors()
    inverse = KFACInverseLinearOperator(
        operator, damping=task.damping / question.positions, use_exact_damping=True
    )
    if task.rung == "KFAC":  # its eigendecompositions are made at the first product
        inverse @ torch.zeros(operator.shape[1])
    return Fitted(inverse, list(named))


def pairwise(question: Question, fitted: Fitted) -> Tensor:
    queries_pq = _gradients(question, fitted.names, question.query_inputs, question.query_targets).T
    solved_qp = (fitted.inverse @ queries_pq).T.contiguous() / question.positions
    size = GRADIENT_CHUNK[question.task.workload]
    parts = [
        solved_qp @ _gradients(question, fitted.names, x, y).T
        for x, y in zip(question.inputs.split(size), question.targets.split(size), strict=True)
    ]
    return torch.cat(parts, dim=1) / len(question.inputs)


def _gradients(question: Question, names: list[str], inputs: Tensor, targets: Tensor) -> Tensor:
    """Per-example gradients, [B, P], in the operator's order of parameters."""
    values = {name: p.detach() for name, p in question.model.named_parameters()}
    rest = {name: value for name, value in values.items() if name not in names}

    def loss(theta: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        output = functional_call(question.model, {**theta, **rest}, (x[None],))
        return example_losses(output, y[None])[0]

    theta = {name: values[name] for name in names}
    found = vmap(grad(loss), in_dims=(None, 0, 0))(theta, inputs, targets)
    return torch.cat([found[name].flatten(1) for name in names], dim=1)
