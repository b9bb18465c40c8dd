"""`Problem.from_trainer` on an imitation of a `Trainer`; make test-models has the real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import curvfluence as cf
from tests.problems import seeded

N, Q, T = 18, 4, 5
GENERATOR = torch.Generator().manual_seed(7)
IDS = torch.randint(1, 9, (N + Q, T), generator=GENERATOR)
CLASS = torch.randint(0, 3, (N + Q,), generator=GENERATOR)
VALUE = torch.randn(N + Q, generator=GENERATOR)
SEVERAL = (torch.rand(N + Q, 3, generator=GENERATOR) > 0.5).float()


class Base(nn.Module):
    """As models of Hugging Face are made: a body with dropout, a norm, and a head."""

    def __init__(self, outputs: int, problem_type: str | None = None) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.norm, self.drop, self.head = nn.LayerNorm(4), nn.Dropout(0.5), nn.Linear(4, outputs)
        self.config = SimpleNamespace(num_labels=outputs, problem_type=problem_type)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> Any:
        assert labels is None
        x = self.drop(self.norm(torch.tanh(self.body(self.embed(input_ids)))))
        return {"logits": self.head(self.pooled(x))}

    def pooled(self, x: Tensor) -> Tensor:
        return x.mean(1)


class ToyForSequenceClassification(Base):
    pass


class ToyForTokenClassification(Base):
    def pooled(self, x: Tensor) -> Tensor:
        return x


class ToyForCausalLM(ToyForTokenClassification):
    pass


class ToyForSomething(Base):
    pass


class Rows(Dataset[Any]):
    def __init__(self, labels: Tensor, at: slice) -> None:
        self.ids, self.labels = IDS[at], labels[at]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Trainer:
    """What is asked of one."""

    compute_loss_func = None
    data_collator = None

    def __init__(self, model: nn.Module, labels: Tensor, **args: Any) -> None:
        given = {"weight_decay": 0.01, "optim": "adamw_torch", "label_smoothing_factor": 0.0}
        self.model, self.labels = model, labels
        self.args = SimpleNamespace(**{**given, **args})
        self.train_dataset = Rows(labels, slice(0, N))

    @property
    def queries(self) -> Rows:
        return Rows(self.labels, slice(N, N + Q))

    def get_eval_dataloader(self, data: Any) -> DataLoader[Any]:
        return DataLoader(data, batch_size=4)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [n for n, _ in model.named_parameters() if "bias" not in n and "norm" not in n]


def trainer(kind: type[Base], labels: Tensor, outputs: int = 3, **options: Any) -> Trainer:
    seeded()
    problem_type = options.pop("problem_type", None)
    return Trainer(kind(outputs, problem_type).double(), labels, **options)


LOSSES: dict[str, tuple[Trainer, type[cf.CrossEntropy] | type[Any]]] = {
    "one label": (trainer(ToyForSequenceClassification, CLASS), cf.CrossEntropy),
    "several labels": (trainer(ToyForSequenceClassification, SEVERAL), cf.BinaryCrossEntropy),
    "a number": (trainer(ToyForSequenceClassification, VALUE, outputs=1), cf.MSE),
    "as the model says": (
        trainer(ToyForSequenceClassification, SEVERAL, problem_type="multi_label_classification"),
        cf.BinaryCrossEntropy,
    ),
    "tokens": (trainer(ToyForTokenClassification, IDS % 3), cf.Positions),
    "language": (trainer(ToyForCausalLM, IDS, outputs=9), cf.CausalLM),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_of_a_model(name: str) -> None:
    made, kind = LOSSES[name]
    problem = cf.Problem.from_trainer(made, made.queries)
    assert type(problem.loss) is kind
    assert made.model.training  # and dropout is off in the copy that is called
    scores = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(0.1))
    assert scores.values.isfinite().all()
    assert any("dropout in training" in note for note in scores.notes)


def test_decay_and_smoothing() -> None:
    made = trainer(ToyForSequenceClassification, CLASS, label_smoothing_factor=0.1)
    problem = cf.Problem.from_trainer(made, made.queries)
    assert isinstance(problem.loss, cf.CrossEntropy)
    assert problem.loss.label_smoothing == 0.1
    decayed = {name: value for name, value in problem.weight_decay.items() if value}
    assert decayed == dict.fromkeys(("embed.weight", "body.weight", "head.weight"), 0.01)
    assert (problem.decoupled_decay, problem.decay.any()) == (True, torch.tensor(False))
    sgd = trainer(ToyForSequenceClassification, CLASS, optim="sgd")
    coupled = cf.Problem.from_trainer(sgd, sgd.queries)
    assert not coupled.decoupled_decay
    assert float(coupled.decay.max()) == pytest.approx(0.01)
    undecayed = trainer(ToyForSequenceClassification, CLASS, weight_decay=0.0)
    assert not cf.Problem.from_trainer(undecayed, undecayed.queries).decoupled_decay


def test_precision_and_options() -> None:
    made = trainer(ToyForSequenceClassification, CLASS, bf16=True, neftune_noise_alpha=5)
    made.model.float()
    problem = cf.Problem.from_trainer(made, made.queries, weight_decay=0.3)
    assert problem.autocast is torch.bfloat16
    assert problem.unmodelled == ("noise on embeddings (NEFTune)",)
    assert set(problem.weight_decay.values()) == {0.3}


def test_eval_mode_leaves_the_model_alone() -> None:
    seeded()
    model = ToyForSequenceClassification(3).double()
    parts = [{"input_ids": IDS[at], "labels": CLASS[at]} for at in (slice(0, N), slice(N, N + Q))]
    with pytest.raises(cf.errors.InputError, match=r"drop \(Dropout\) is random in training mode"):
        cf.Problem(model, cf.CrossEntropy(), *parts)
    found = cf.influence(cf.Problem(model, cf.CrossEntropy(), *parts, eval_mode=True), cf.GGN())
    assert model.training
    assert model.drop.training
    wanted = cf.influence(cf.Problem(model.eval(), cf.CrossEntropy(), *parts), cf.GGN())
    assert torch.equal(found.values, wanted.values)


class OwnLoss(Trainer):
    def compute_loss(self, *_: Any) -> None:
        """Of its own."""


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (3, r"takes a transformers\.Trainer; seen int"),
        (trainer(ToyForSomething, CLASS), "what ToyForSomething is trained on is not known here"),
        (OwnLoss(ToyForSequenceClassification(3), CLASS), "computes a loss of its own"),
        (
            trainer(ToyForSequenceClassification, CLASS, label_names=["start", "end"]),
            "the trainer's labels are called start, end",
        ),
    ],
)
def test_refused(made: Any, said: str) -> None:
    with pytest.raises(cf.errors.InputError, match=said):
        cf.Problem.from_trainer(made, getattr(made, "queries", None))


def test_a_loss_that_is_named() -> None:
    made = OwnLoss(ToyForSequenceClassification(3), CLASS)
    problem = cf.Problem.from_trainer(made, made.queries, loss=cf.CrossEntropy())
    assert isinstance(problem.loss, cf.CrossEntropy)
