"""What are another library's scores worth? kronfluence's EK-FAC, judged beside ours.

pip install curvfluence kronfluence
python benchmarks/judge_kronfluence.py digits runs/kronfluence
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import curvfluence as cf
from curvfluence.judging import model_of, problem_of
from curvfluence.report.judge import show_judgement

MODELS = 4


class SummedLoss(Task):
    """The cross-entropy, summed over a batch; the query's measurement is its loss."""

    def compute_train_loss(
        self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False
    ) -> Tensor:
        inputs, labels = batch
        output = model(inputs)
        if sample:  # the Fisher's labels, drawn from the model's own distribution
            labels = torch.multinomial(output.detach().softmax(-1), 1).flatten()
        return F.cross_entropy(output, labels, reduction="sum")

    def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
        return self.compute_train_loss(batch, model)


def scores_of(problem: cf.Problem, folder: Path, name: str) -> Path:
    """kronfluence's file of EK-FAC scores, at λ = 0.1 of a layer's mean eigenvalue."""
    torch.manual_seed(0)
    task = SummedLoss()
    model = prepare_model(model_of(problem), task)
    analyzer = Analyzer(name, model, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    train, queries = (
        TensorDataset(data.inputs, data.targets) for data in (problem.train, problem.queries)
    )
    analyzer.fit_all_factors(
        "ekfac", train, per_device_batch_size=512, factor_args=FactorArguments(strategy="ekfac"),
        overwrite_output_dir=True,
    )  # fmt: skip
    analyzer.compute_pairwise_scores(
        "pairwise", "ekfac", queries, train, per_device_query_batch_size=len(queries),
        per_device_train_batch_size=512, score_args=ScoreArguments(damping_factor=None),
        overwrite_output_dir=True,
    )  # fmt: skip
    return folder / name / "scores_pairwise" / "pairwise_scores.safetensors"


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    files = [scores_of(problem_of(name, j), folder, f"{name}-{j}") for j in range(MODELS)]
    found = cf.judge(files, name, units="loss*N", name="kronfluence", out=folder / f"{name}.json")
    show_judgement(found, Console(width=110))
