"""An index or a curvature of another problem is refused with what differs, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from msgspec import structs
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.saved import CURVATURE, SavedCurvature
from curvfluence.errors import InputError, listed
from curvfluence.indexing.records import INDEX, IndexRecord
from curvfluence.problem.parts import parts_of_fit
from curvfluence.store.records import as_json, read, seal, write
from tests.indexed import DAMPING

LUMPED = "is of other weights, weight decay, loss or training data"


class Buffered(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.shift


def problem(loss: object = None, **given: object) -> cf.Problem:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Buffered().double()
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (16,), generator=generator)
    data = {"train": (x[:12], y[:12]), "queries": (x[12:], y[12:]), "weight_decay": 0.01}
    return cf.Problem(model, loss or cf.CrossEntropy(), **{**data, **given})  # type: ignore[arg-type]


def moved(name: str) -> cf.Problem:
    values = {key: value.clone() for key, value in problem().model.state_dict().items()}
    values[name].view(-1)[0] += 1e-6
    return problem(weights=values)


def with_data(change: Callable[[Tensor, Tensor], object]) -> cf.Problem:
    x, y = problem().train.tensors
    return problem(train=change(x.clone(), y.clone()))


def _one_label(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    y[7] = (y[7] + 1) % 3
    return x, y


OTHERS: dict[str, tuple[Callable[[], cf.Problem], str]] = {
    "a weight": (lambda: moved("0.weight"), "the weights"),
    "a buffer": (lambda: moved("shift"), "the buffers and frozen parameters"),
    "decay": (lambda: problem(weight_decay=0.02), "the weight decay"),
    "decay of one": (lambda: problem(weight_decay={"0.weight": 0.01}), "the weight decay"),
    "decoupled decay": (lambda: problem(decoupled_decay=True), "the weight decay"),
    "smoothing": (lambda: problem(cf.CrossEntropy(label_smoothing=0.1)), "the loss"),
    "class weights": (
        lambda: problem(cf.CrossEntropy(weight=torch.tensor([1.0, 2.0, 1.0]))),
        "the loss",
    ),
    "a label": (lambda: with_data(_one_label), "the training data"),
    "their order": (lambda: with_data(lambda x, y: (x.flip(0), y.flip(0))), "the training data"),
    "fewer": (lambda: with_data(lambda x, y: (x[1:], y[1:])), "the training data"),
    "their weights": (
        lambda: problem(sample_weight=torch.ones(12, dtype=torch.float64)),
        "the training data",
    ),
    "dtype": (lambda: problem().to(torch.float32), "the dtype of the weights"),
    "two": (
        lambda: problem(cf.CrossEntropy(label_smoothing=0.1), weight_decay=0.0),
        "the weight decay and the loss",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    cf.index(problem(), cf.EKFAC(), out=folder / "index", damping=DAMPING, dimension=4)
    cf.fit(problem(), cf.KFAC()).save(folder / "curvature")
    return folder


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_is_named(what: str, made: Path) -> None:
    other, names = OTHERS[what][0](), OTHERS[what][1]
    said = f"is of another problem, which differs in {names}: "
    with pytest.raises(InputError, match=said):
        cf.load_index(made / "index", other)
    with pytest.raises(InputError, match=said):
        cf.Curvature.load(made / "curvature", other)
    with pytest.raises(InputError, match=said):
        cf.influence(other, cf.fit(problem(), cf.KFAC()))


def test_queries_are_no_part_of_it(made: Path) -> None:
    x, y = problem().queries.tensors
    other = problem(queries=(x + 1, y), measurement=cf.LogProbability())
    cf.load_index(made / "index", other)
    cf.Curvature.load(made / "curvature", other)


def test_a_certificate_says_what_was_changed() -> None:
    given = problem()
    scores = cf.influence(given, cf.KFAC(), damping=DAMPING)
    with torch.no_grad():
        given.theta["0.weight"].add_(1e-3)
    with pytest.raises(InputError, match="another problem, which differs in the weights, and"):
        scores.certificate()


def test_the_values_of_a_loss_of_ones_own() -> None:
    scale = torch.ones(3, dtype=torch.float64)
    loss = cf.CustomLoss(lambda f, y: -scale[y] * f.log_softmax(-1).gather(-1, y[:, None])[:, 0])
    given = problem(loss)
    curvature = cf.fit(given, cf.KFAC(cf.Empirical()))
    scale[1] = 2.0
    with pytest.raises(InputError, match="which differs in what the loss computes: "):
        cf.influence(given, curvature)


class TestEarlierFiles:
    """They have no parts: read as before, and refused in the words of before."""

    @pytest.fixture
    def earlier(self, tmp_path: Path) -> Path:
        cf.index(problem(), cf.EKFAC(), out=tmp_path / "index", damping=DAMPING, dimension=4)
        cf.fit(problem(), cf.KFAC()).save(tmp_path / "curvature")
        for path, kind in (
            (tmp_path / "index" / INDEX, IndexRecord),
            (tmp_path / "index/curvature" / CURVATURE, SavedCurvature),
            (tmp_path / "curvature" / CURVATURE, SavedCurvature),
        ):
            record = read(path, kind)
            assert record is not None
            assert record.parts == parts_of_fit(problem())
            bare = {key: value for key, value in as_json(record).items() if key != "parts"}
            path.write_text(json.dumps({"sha256": seal(bare), **bare}))
        return tmp_path

    def test_they_are_read(self, earlier: Path) -> None:
        index = cf.load_index(earlier / "index", problem())
        assert index.record.parts == {}
        index.query(k=2)
        cf.influence(problem(), cf.Curvature.load(earlier / "curvature", problem()))

    def test_they_say_what_they_know(self, earlier: Path) -> None:
        with pytest.raises(InputError, match=LUMPED):
            cf.load_index(earlier / "index", moved("0.weight"))
        with pytest.raises(InputError, match=LUMPED):
            cf.Curvature.load(earlier / "curvature", moved("0.weight"))


def test_another_hash_where_no_part_differs(made: Path, tmp_path: Path) -> None:
    """What the parts do not tell is refused all the same."""
    record = read(made / "index" / INDEX, IndexRecord)
    assert record is not None
    write(tmp_path / INDEX, structs.replace(record, fitted_on="0" * 16))
    with pytest.raises(InputError, match=LUMPED):
        cf.load_index(tmp_path, problem())


def test_names_as_a_sentence_has_them() -> None:
    assert [listed(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
