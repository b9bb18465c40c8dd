"""What a problem accepts, and what it refuses before any work."""

from __future__ import annotations

import gc
import io
import pickle
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import curvfluence as cf
from curvfluence.problem.source import data_of
from tests.problems import chain_problem, make, mlp, seeded

X = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


def problem(train: object, queries: object = (X[:2], Y[:2]), **options: object) -> cf.Problem:
    seeded()
    return cf.Problem(mlp(5, 4, 3), cf.CrossEntropy(), train, queries, **options)  # pyright: ignore


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index], Y[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class Noisy(Pairs):
    """Pairs with a random transform of the inputs or of the labels."""

    def __init__(self, draw: Callable[[], float], labels: bool = False) -> None:
        self.draw, self.labels = draw, labels

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return (x, torch.tensor(int(1e6 * self.draw()))) if self.labels else (x + self.draw(), y)


class NoisyStream(Stream):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x + torch.randn(()), y) for x, y in super().__iter__())


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 - what transforms use
    "python": random.random,
}


class TestReadTwice:
    """Scores of a source that is random would be of one draw of it."""

    @pytest.mark.parametrize("labels", [False, True])
    @pytest.mark.parametrize("draw", DRAWS)
    def test_a_random_transform_is_refused(self, draw: str, labels: bool) -> None:
        noisy = Noisy(DRAWS[draw], labels)
        for source in (noisy, DataLoader(noisy, batch_size=4), DataLoader(noisy, batch_size=None)):
            with pytest.raises(cf.errors.InputError, match=r"train: the .* is another when it is"):
                problem(source)

    @pytest.mark.parametrize("size", [4, None])
    def test_a_random_stream_is_refused(self, size: int | None) -> None:
        with pytest.raises(cf.errors.InputError, match="queries: the input of item 0 is another"):
            problem((X, Y), DataLoader(NoisyStream(), batch_size=size))

    @pytest.mark.parametrize(
        ("what", "said"),
        [
            ("inputs", r"cannot be run on one example of shape \(\d+,\)"),
            ("targets", r"one integer label an example, .* seen targets of shape \(\d, \d\)"),
        ],
    )
    def test_batches_of_several_lengths(self, what: str, said: str) -> None:
        """Taken where the model and the loss take them, as these do not."""

        def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
            x, y = (torch.stack(part) for part in zip(*items, strict=True))
            long = len(items) + int(items[0][1])
            if what == "inputs":
                return x.repeat(1, long), y
            return x, y[:, None].repeat(1, long)

        with pytest.raises(cf.errors.InputError, match=said):
            problem(DataLoader(Pairs(), batch_size=4, collate_fn=collate))


class TestSources:
    @pytest.mark.parametrize(
        "source",
        [
            (X, Y),
            [X, Y],
            TensorDataset(X, Y),
            Pairs(),
            DataLoader(Pairs(), batch_size=3),
            DataLoader(Pairs(), batch_size=None),
            DataLoader(Pairs(), batch_sampler=BatchSampler(SequentialSampler(X), 4, False)),
            DataLoader(Stream(), batch_size=4),
            DataLoader(Stream(), batch_size=None),
            cf.Examples(X, Y),
        ],
        ids=[
            "tensors",
            "list",
            "TensorDataset",
            "Dataset",
            "DataLoader",
            "unbatched",
            "batch sampler",
            "stream",
            "unbatched stream",
            "Examples",
        ],
    )
    def test_all_give_the_same_rows_in_order(self, source: object) -> None:
        rng = torch.get_rng_state()
        train = data_of(source, "train")  # pyright: ignore
        assert torch.equal(train.inputs, X)
        assert torch.equal(train.targets, Y)
        assert torch.equal(rng, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("loader", "said"),
        [
            (DataLoader(Pairs(), shuffle=True), "RandomSampler"),
            (DataLoader(Pairs(), sampler=WeightedRandomSampler([1.0] * 10, 10)), "Weighted"),
            (DataLoader(Pairs(), batch_size=3, drop_last=True), "drop_last"),
            (DataLoader(Pairs(), batch_sampler=[[3, 1], [2]]), "list"),
        ],
    )
    def test_a_loader_that_loses_the_order_is_refused(
        self, loader: DataLoader[object], said: str
    ) -> None:
        with pytest.raises(cf.errors.InputError, match=said):
            problem(loader)

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ((X, Y[:9]), "10 inputs but 9 targets"),
            ((X[:0], Y[:0]), "no examples"),
            (X, "expected"),
            ("digits", "expected"),
            (TensorDataset(X), r"\(inputs, targets\)"),
        ],
    )
    def test_bad_sources(self, source: object, said: str) -> None:
        with pytest.raises(cf.errors.InputError, match=f"train: .*{said}"):
            problem(source)
        with pytest.raises(cf.errors.InputError, match=f"queries: .*{said}"):
            problem((X, Y), source)


class TestNonFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_an_input_names_its_example(self, value: float) -> None:
        bad = X.clone()
        bad[7, 2] = value
        with pytest.raises(cf.errors.NonFiniteError, match="train: input of example 7"):
            problem((bad, Y))
        with pytest.raises(cf.errors.NonFiniteError, match="queries: input of example 7"):
            problem((X, Y), (bad, Y))

    def test_a_target_names_its_example(self) -> None:
        target = torch.zeros(10, 3)
        target[4, 1] = float("nan")
        with pytest.raises(cf.errors.NonFiniteError, match="target of example 4"):
            cf.Problem(mlp(5, 3), cf.MSE(), (X, target), (X, target))

    def test_an_output_names_its_example(self) -> None:
        class Overflowing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(5, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(x) / (x[:, :1] != X[6, 0])

        bad = cf.Problem(Overflowing(), cf.CrossEntropy(), (X, Y), (X[:2], Y[:2]))
        with pytest.raises(cf.errors.NonFiniteError, match="example 6"):
            cf.influence(bad, cf.GGN())

    def test_a_gradient_names_its_example(self) -> None:
        class Rooted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(5, 3, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(x).abs().sqrt()  # an infinite slope at 0

        x = X.clone()
        x[3] = 0.0
        bad = cf.Problem(Rooted(), cf.CrossEntropy(), (x, Y), (X[:2], Y[:2]))
        with pytest.raises(
            cf.errors.NonFiniteError, match=r"gradient of training set.* of example 3"
        ):
            cf.influence(bad, cf.Identity())

    def test_weights(self) -> None:
        weights = {name: p.detach().clone() for name, p in mlp(5, 4, 3).named_parameters()}
        weights["2.bias"][0] = float("nan")
        with pytest.raises(cf.errors.InputError, match=r"2\.bias"):
            problem((X, Y), weights=weights)


class TestFit:
    def test_labels_out_of_range(self) -> None:
        with pytest.raises(cf.errors.InputError, match="train: label 7 of example 3"):
            problem((X, torch.where(torch.arange(10) == 3, 7, Y)))
        with pytest.raises(cf.errors.InputError, match="queries: label 3"):
            problem((X, Y), (X, Y + 1))

    def test_a_loss_that_does_not_fit_the_output(self) -> None:
        with pytest.raises(cf.errors.InputError, match="MSE needs 3 target values"):
            cf.Problem(mlp(5, 3), cf.MSE(), (X, Y), (X, Y))

    def test_outputs_with_more_axes(self) -> None:
        model = nn.Sequential(nn.Linear(5, 6), nn.Unflatten(1, (2, 3)))
        with pytest.raises(cf.errors.InputError, match=r"\(1, 2, 3\)"):
            cf.Problem(model, cf.CrossEntropy(), (X, Y), (X, Y))

    @pytest.mark.parametrize("decay", [-1.0, float("nan"), {"0.weight": -1.0}])
    def test_bad_decay(self, decay: object) -> None:
        with pytest.raises(cf.errors.InputError, match="weight_decay"):
            problem((X, Y), weight_decay=decay)

    def test_decay_of_an_unknown_parameter(self) -> None:
        with pytest.raises(cf.errors.InputError, match=r"0\.wieght"):
            problem((X, Y), weight_decay={"0.wieght": 1.0})

    def test_batch_statistics_are_refused(self) -> None:
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        with pytest.raises(cf.errors.InputError, match=r"1 \(BatchNorm1d\).*model\.eval\(\)"):
            cf.Problem(model, cf.CrossEntropy(), (X, Y), (X, Y))
        evaluated = cf.Problem(model.eval(), cf.CrossEntropy(), (X, Y), (X, Y))
        assert cf.influence(evaluated, cf.GGN()).values.isfinite().all()

    def test_dropout_in_training_mode_is_refused(self) -> None:
        model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3))
        with pytest.raises(cf.errors.InputError, match="random"):
            cf.Problem(model, cf.CrossEntropy(), (X, Y), (X, Y))
        cf.Problem(model.eval(), cf.CrossEntropy(), (X, Y), (X, Y))

    def test_weights_without_values(self) -> None:
        with pytest.raises(cf.errors.InputError, match="weight is on the meta device"):
            cf.Problem(nn.Linear(5, 3, device="meta"), cf.CrossEntropy(), (X, Y), (X, Y))

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_weights_without_entries(self) -> None:
        model = nn.ModuleDict({"head": nn.Linear(5, 3), "none": nn.Linear(0, 3)})
        with pytest.raises(
            cf.errors.InputError, match=r"none.weight has shape \(3, 0\), no entries"
        ):
            cf.Problem(model, cf.CrossEntropy(), (X, Y), (X, Y))

    def test_a_model_without_trainable_parameters(self) -> None:
        with pytest.raises(cf.errors.InputError, match="requires_grad"):
            cf.Problem(nn.Identity(), cf.CrossEntropy(), (X, Y), (X, Y))

    @pytest.mark.parametrize("missing", ["drop", "shape"])
    def test_weights_of_another_model(self, missing: str) -> None:
        weights = {name: p.detach() for name, p in mlp(5, 4, 3).named_parameters()}
        weights["0.bias"] = torch.zeros(7)
        if missing == "drop":
            del weights["0.bias"]
        with pytest.raises(cf.errors.InputError, match=r"0\.bias"):
            problem((X, Y), weights=weights)


class TestCheckpoints:
    def test_weights_are_copied(self) -> None:
        made = problem((X, Y))
        before = cf.influence(made, cf.GGN()).values
        with torch.no_grad():
            for parameter in made.model.parameters():
                parameter.zero_()
        assert torch.equal(cf.influence(made, cf.GGN()).values, before)

    def test_at_another_checkpoint(self) -> None:
        torch.manual_seed(1)
        other = mlp(5, 4, 3)
        made = problem((X, Y), weight_decay=0.1)
        moved = made.at(dict(other.named_parameters()))
        direct = cf.Problem(other, cf.CrossEntropy(), (X, Y), (X[:2], Y[:2]), weight_decay=0.1)
        found = cf.influence(moved, cf.GGN()).values
        assert torch.equal(found, cf.influence(direct, cf.GGN()).values)

    def test_a_curvature_of_another_model_is_refused(self) -> None:
        curvature = cf.fit(chain_problem(), cf.EKFAC())
        with pytest.raises(cf.errors.InputError, match="other parameters"):
            cf.influence(problem((X, Y)), curvature)


def test_per_tensor_decay_reaches_the_right_places() -> None:
    seeded()
    made = make(mlp(5, 4, 3), cf.CrossEntropy(), weight_decay={"0.weight": 0.5, "2.bias": 0.25})
    wanted = torch.cat([torch.full((20,), 0.5), torch.zeros(4 + 12), torch.full((3,), 0.25)])
    assert torch.equal(made.decay, wanted.double())


def test_what_training_had_beside_the_objective_is_named() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.3), nn.Linear(4, 3)).eval()
    x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
    problem = cf.Problem(net, cf.CrossEntropy(), (x, y), (x, y), unmodelled="random crops")
    notes = cf.influence(problem, cf.EKFAC()).notes
    assert "not modelled: random crops" in notes
    assert any("dropout in training (1 (p = 0.3))" in note for note in notes)
    plain = cf.Problem(mlp(5, 4, 3).float(), cf.CrossEntropy(), (x, y), (x, y))
    assert not any("not modelled" in note for note in cf.influence(plain, cf.EKFAC()).notes)


def shared(make_weight: Callable[[Tensor], Tensor]) -> nn.Module:
    """Two layers whose weights are two parameters, the second in the memory of the first."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight.data = make_weight(net[0].weight.data)  # pyright: ignore
    return net


class TestMemory:
    """Parameters that are two objects in one memory would be moved, and counted, twice."""

    @pytest.mark.parametrize(
        "make_weight",
        [lambda w: w, lambda w: w.T, lambda w: w.as_strided((4, 4), (3, 1), 1)],
        ids=["all", "transposed", "part"],
    )
    def test_shared_memory_is_refused(self, make_weight: Callable[[Tensor], Tensor]) -> None:
        net = shared(make_weight)
        with pytest.raises(cf.errors.InputError, match=r"0\.weight and 2\.weight lie in the same"):
            cf.Problem(net, cf.CrossEntropy(), (X[:, :4], Y), (X[:2, :4], Y[:2]))

    def test_tied_parameters_are_one(self) -> None:
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        net[2].weight = net[0].weight
        tied = cf.Problem(net, cf.CrossEntropy(), (X[:, :4], Y), (X[:2, :4], Y[:2]))
        assert tied.parameters.count == 16 + 4 + 4

    def test_neighbours_in_one_buffer_are_apart(self) -> None:
        net, held = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(4, 8)
        net[0].weight.data, net[2].weight.data = held[:, :4], held[:, 4:]  # pyright: ignore
        cf.Problem(net, cf.CrossEntropy(), (X[:, :4], Y), (X[:2, :4], Y[:2]))


class Dropping(nn.Module):
    """Dropout by hand, of a rate that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(x, 0.5, self.training))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(5, 1, dropout=0.2, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None].repeat(1, 3, 1)
        return self.head(self.attention(x, x, x)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.cells = nn.LSTM(5, 4, layers, dropout=0.3, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, None].repeat(1, 3, 1))[0][:, -1])


class TestTrainingMode:
    """What training had that the model as given has not is asked of the model itself."""

    @staticmethod
    def notes(net: nn.Module) -> list[str]:
        given = cf.Problem(net.eval(), cf.CrossEntropy(), (X, Y), (X[:2], Y[:2]))
        return [note for note in given.notes if "not modelled" in note]

    @pytest.mark.parametrize(
        ("make_net", "said"),
        [
            (Dropping, "two passes in training mode differ"),
            (Attending, "attention (p = 0.2)"),
            (lambda: Recurrent(2), "cells (p = 0.3)"),
        ],
    )
    def test_dropout_wherever_it_is_held(
        self, make_net: Callable[[], nn.Module], said: str
    ) -> None:
        (note,) = self.notes(make_net())
        assert "dropout in training" in note
        assert said in note

    @pytest.mark.filterwarnings("ignore:dropout option adds dropout")
    def test_a_rate_that_drops_nothing_is_not_named(self) -> None:
        unused = nn.Sequential(nn.Linear(5, 3))
        unused.add_module("spare", nn.Identity())
        unused.spare.dropout = 0.5
        assert self.notes(unused) == []
        assert self.notes(Recurrent(1)) == []

    def test_batch_statistics(self) -> None:
        net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        before = {name: value.clone() for name, value in net.state_dict().items()}
        (note,) = self.notes(net)
        assert "batch statistics" in note
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class TestLifetime:
    def test_a_problem_ends_with_its_last_name(self) -> None:
        """It is in no circle, so that memory does not wait for the collector."""
        gc.disable()
        try:
            for rung in (cf.EKFAC(cf.Empirical()), cf.GGN(), cf.Hessian()):
                given = chain_problem()
                scores = cf.influence(given, rung)
                cf.plan(given, rung)
                seen = weakref.ref(given)
                del given, scores
                assert seen() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("rung", [cf.EKFAC(), cf.GGN()])
    def test_scores_are_saved_alone(self, rung: cf.Rung) -> None:
        """Of a model that no pickle takes, in not much more than the numbers' own size."""
        net = mlp(5, 4, 3)
        net.unpicklable = lambda: None
        net.large = torch.zeros(10**6)
        given = cf.Problem(net, cf.CrossEntropy(), (X, Y), (X[:2], Y[:2]))
        scores = cf.influence(given, rung)
        held = io.BytesIO()
        torch.save(scores, held)
        assert held.tell() < 20_000
        held.seek(0)
        for again in (torch.load(held, weights_only=False), pickle.loads(pickle.dumps(scores))):
            assert torch.equal(again.values, scores.values)
            assert str(again) == str(scores)
            with pytest.raises(cf.errors.InputError, match="were read back"):
                again.certificate()
        assert scores.certificate().worst >= 0


class BentTwice(torch.autograd.Function):
    """tanh with its first derivative, and another second one: elementwise, so H is symmetric."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return g * (1 - x.detach().tanh() ** 2) * (1 + 0.1 * (x - x.detach()))


class Bent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return BentTwice.apply(x)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_second_derivative_that_is_symmetric_is_refused(dtype: torch.dtype) -> None:
    seeded()
    net, x = nn.Sequential(nn.Linear(5, 4), Bent(), nn.Linear(4, 3)).to(dtype), X.to(dtype)
    given = cf.Problem(net, cf.CrossEntropy(), (x, Y), (x[:2], Y[:2]))
    iterated = cf.Hessian(cf.hessian.Plain(), form=cf.inversion.ConjugateGradients())
    scores = cf.influence(given, cf.GGN())
    calls: list[Callable[[], object]] = [
        lambda: cf.influence(given, cf.Hessian()),
        lambda: cf.influence(given, iterated, damping=cf.Absolute(1.0)),
        lambda: scores.certificate("Hessian"),
    ]
    for call in calls:
        with pytest.raises(cf.errors.InputError, match="not those of differences"):
            call()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_wrong_double_backward_is_refused_wherever_it_is_taken() -> None:
    seeded()
    first = torch.nn.utils.weight_norm(nn.Linear(5, 4))  # torch's has a wrong one
    net, x = nn.Sequential(first, nn.Tanh(), nn.Linear(4, 3)).double(), X.double()
    given = cf.Problem(net, cf.CrossEntropy(), (x, Y), (x[:2], Y[:2]))
    iterated = cf.Hessian(cf.hessian.Plain(), form=cf.inversion.ConjugateGradients())
    calls: list[Callable[[], object]] = [
        lambda: cf.influence(given, cf.Hessian()),
        lambda: cf.influence(given, iterated, damping=cf.Absolute(1.0)),
        lambda: cf.influence(given, cf.GGN()).certificate("Hessian"),
    ]
    for call in calls:
        with pytest.raises(cf.errors.InputError, match="wrong double backward"):
            call()
    cf.influence(given, cf.GGN())


class TestWhatIsSaid:
    """What a first user meets: each says what was seen and what to do."""

    X, Y = torch.randn(20, 5), torch.arange(20) % 3

    def make(self, model: nn.Module, **options: Any) -> cf.Problem:
        data = options.pop("data", (self.X, self.Y))
        return cf.Problem(model, cf.CrossEntropy(), data, options.pop("queries", data), **options)

    def test_probabilities_for_logits(self) -> None:
        net = nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1))
        with pytest.warns(cf.errors.CurvfluenceWarning, match="as if the model ended in a softmax"):
            made = self.make(net, queries=(self.X + 1, self.Y))
        assert any("takes logits" in note for note in made.notes)
        assert not any("logits" in n for n in self.make(nn.Linear(5, 3)).notes)

    def test_numbers_outside_an_embedding(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(4, 3)

            def forward(self, ids: Tensor) -> Tensor:
                return self.table(ids)

        ids = torch.arange(20) % 4
        ids[17] = 9
        with pytest.raises(
            cf.errors.InputError, match="from 0 to 9; the model's embeddings hold table 0 to 3"
        ):
            cf.influence(self.make(Model(), data=(ids, self.Y)), cf.KFAC())

    def test_one_argument_that_is_a_mapping(self) -> None:
        class Model(nn.Linear):
            def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
                return super().forward(batch["x"])

        data = ({"x": self.X}, self.Y)
        said = (
            r"give it all of them as one, Problem\(forward=lambda model, inputs: model\(inputs\)\)"
        )
        with pytest.raises(cf.errors.InputError, match=said):
            self.make(Model(5, 3), data=data)
        made = self.make(Model(5, 3), data=data, forward=lambda model, inputs: model(inputs))
        assert made.n_outputs == 3

    def test_several_outputs(self) -> None:
        class Model(nn.Linear):
            def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
                return {"a": super().forward(x), "b": x[:, :1]}

        said = r"torch\.cat\(\[answer\['a'\], answer\['b'\]\], -1\), with a CustomLoss"
        with pytest.raises(cf.errors.InputError, match=said):
            self.make(Model(5, 3))
        with pytest.raises(cf.errors.InputError, match="returned a dict of c: say which"):
            self.make(Model(5, 3), output=lambda answer: {"c": answer["a"]})

    def test_queries_of_other_keys(self) -> None:
        class Model(nn.Linear):
            def forward(self, x: Tensor, **_: Tensor) -> Tensor:  # type: ignore[override]
                return super().forward(x)

        data, other = ({"x": self.X}, self.Y), ({"x": self.X, "z": self.X}, self.Y)
        with pytest.raises(cf.errors.InputError, match="their inputs are x, z, and those of train"):
            self.make(Model(5, 3), data=data, queries=other)

    def test_a_wrapped_checkpoint(self) -> None:
        weights = {f"module.{k}": v for k, v in nn.Linear(5, 3).state_dict().items()}
        with pytest.raises(cf.errors.InputError, match=r"take 'module\.' off their names"):
            self.make(nn.Linear(5, 3), weights=weights)

    def test_whole_numbers_that_float(self) -> None:
        with pytest.raises(cf.errors.InputError, match=r"whole numbers: give labels\.long\(\)"):
            self.make(nn.Linear(5, 3), data=(self.X, self.Y.float()))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(cf.errors.InputError, match="has no device 'cuda' here"):
            self.make(nn.Linear(5, 3)).to(device="cuda")

    def test_printed(self) -> None:
        text = repr(self.make(nn.Linear(5, 3), weight_decay=0.1, decoupled_decay=True))
        assert text.splitlines() == [
            "Problem(",
            "  18 parameters of Linear",
            "  loss: CrossEntropy(label_smoothing=0.0, weight=None)",
            "  train: 20 of shape (5,) and dtype torch.float32",
            "  queries: 20, measured by loss",
            "  weight decay: 0.1, decoupled",
            ")",
        ]
