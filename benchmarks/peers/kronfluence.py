"""kronfluence: EK-FAC and K-FAC with a layer's bias as a column of its weight, exact damping.

Computes g_qᵀ (C + λI)⁻¹ g_n with C a mean over examples (over positions for K-FAC's A), factors
decomposed in float64, everything else in float32. Fisher: the training labels, or one sampled
label a position. Layers other than Linear and Conv2d are left out without a word.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from question import Question
from torch import Tensor, nn
from torch.utils.data import TensorDataset

DISTRIBUTION = "kronfluence"
# Examples and queries a batch, the best of a few tried: per-example gradients are formed.
BATCHES = {"W1": (512, 180), "W2": (32, 10), "W3": (128, 100), "W4": (32, 32)}
BATCHES |= {"W5": (32, 8), "W6": (8, 8), "W7": (16, 8)}


class SummedLoss(Task):
    """The cross-entropy summed over the batch, and over positions where there are some."""

    def compute_train_loss(
        self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        inputs, targets = batch
        output = model(inputs).flatten(0, -2)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(output.softmax(-1), 1).flatten()
        else:
            labels = targets.flatten()
        return F.cross_entropy(output, labels, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


@dataclass(frozen=True)
class Fitted:
    analyzer: Analyzer
    folder: tempfile.TemporaryDirectory[str]


def fit(question: Question) -> Fitted:
    task = question.task
    if task.fisher not in ("empirical", "mc(1)"):
        raise NotImplementedError(f"no {task.fisher} Fisher: training labels or one sampled label")
    torch.manual_seed(0)
    loss = SummedLoss()
    folder = tempfile.TemporaryDirectory()
    analyzer = Analyzer(
        "bench",
        prepare_model(question.model, loss),
        loss,
        cpu=True,
        disable_tqdm=True,
        output_dir=folder.name,
    )
    settings = FactorArguments(
        strategy=task.rung.lower(), use_empirical_fisher=task.fisher == "empirical"
    )
    analyzer.fit_all_factors(
        "factors",
        TensorDataset(question.inputs, question.targets),
        per_device_batch_size=BATCHES[task.workload][0],
        factor_args=settings,
    )
    return Fitted(analyzer, folder)


def pairwise(question: Question, fitted: Fitted) -> Tensor:
    task = question.task
    damping = task.damping
    if task.rung == "KFAC":  # its A is a mean over positions: C = T × its product
        damping /= _positions(question)
    examples, queries = BATCHES[task.workload]
    fitted.analyzer.compute_pairwise_scores(
        "scores",
        "factors",
        TensorDataset(question.query_inputs, question.query_targets),
        TensorDataset(question.inputs, question.targets),
        per_device_query_batch_size=queries,
        per_device_train_batch_size=examples,
        score_args=ScoreArguments(damping_factor=damping),
        overwrite_output_dir=True,
    )
    found = fitted.analyzer.load_pairwise_scores("scores")
    return found["all_modules"] * (damping / task.damping) / len(question.inputs)


def _positions(question: Question) -> int:
    if question.task.workload == "W3":
        raise NotImplementedError("K-FAC's layers have different numbers of positions: one λ each")
    return question.positions
