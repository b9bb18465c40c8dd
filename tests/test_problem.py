"""What a problem accepts, and what it refuses before any work."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

import curvfluence as cf
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
            cf.Examples(X, Y),
        ],
        ids=["tensors", "list", "TensorDataset", "Dataset", "DataLoader", "unbatched", "Examples"],
    )
    def test_all_give_the_same_rows_in_order(self, source: object) -> None:
        rng = torch.get_rng_state()
        train = cf.Examples.of(source, "train")  # pyright: ignore
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
