"""Edges: a parameter without axes, sparse gradients, no curvature, numbers too large."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import curvfluence as cf
from tests import oracles
from tests.problems import seeded
from tests.zoo import CASES, zoo_problem

DAMPING = cf.Absolute(0.1)
InputError, NonFiniteError = cf.errors.InputError, cf.errors.NonFiniteError
RUNGS = (
    cf.Identity(),
    cf.Diagonal(),
    cf.KFAC(),
    cf.EKFAC(),
    cf.Shampoo(),
    cf.BlockGGN(),
    cf.GGN(),
    cf.GGN(cf.inversion.SampleSpace()),
    cf.GGN(cf.inversion.ConjugateGradients()),
    cf.GGN(cf.inversion.SelectedRows(10)),
    cf.Hessian(),
)


class Scaled(nn.Module):
    """A logit scale of no axes, as CLIP has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale.exp()


def data(n: int = 30) -> tuple[Tensor, Tensor]:
    seeded()
    return torch.randn(n, 4).double(), torch.randint(3, (n,))


class TestNoAxes:
    def problem(self) -> cf.Problem:
        x, y = data()
        return cf.Problem(Scaled().double(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))

    @pytest.mark.parametrize("rung", RUNGS, ids=str)
    def test_every_rung(self, rung: cf.Rung) -> None:
        given = self.problem()
        scores = cf.influence(given, rung, damping=cf.Absolute(1.0))
        assert bool(scores.values.isfinite().all())

    def test_exact_ones_are_those_of_autograd(self) -> None:
        given = self.problem()
        for rung, dense in ((cf.Hessian(), oracles.dense_hessian), (cf.GGN(), oracles.dense_ggn)):
            wanted = dense(given)
            torch.testing.assert_close(cf.fit(given, rung).to_dense(), wanted)
        scores = cf.influence(given, cf.GGN(), damping=DAMPING)
        assert scores.certificate("GGN").worst < 1e-10
        assert scores.certificate("Hessian").worst > 0

    @pytest.mark.parametrize("path", [None, cf.truth.Path.PROCESSES])
    def test_training(self, path: cf.truth.Path | None) -> None:
        recipe = cf.truth.Recipe(
            Scaled, cf.CrossEntropy(), cf.truth.sgd(0.1), batch_size=8, epochs=2
        )
        x, y = data()
        trained = cf.truth.train(recipe, cf.Examples(x, y), cf.truth.grid([0, 1], [0]), path=path)
        assert trained.theta["scale"].shape == (2,)
        assert bool((trained.theta["scale"] != 0.3).all())

    def test_the_bregman_response(self) -> None:
        given = self.problem()
        left = torch.eye(30)[:2]
        found = cf.truth.bregman_response(given, left, damping=0.1, epsilon=1e-3)
        wanted = cf.influence(given, cf.GGN(), damping=DAMPING).for_group(left)
        torch.testing.assert_close(found.change.double().T / 1e-3, wanted, rtol=0.05, atol=1e-4)


class Words(nn.Module):
    def __init__(self, *, sparse: bool, bag: bool = False) -> None:
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.words = kind(7, 4, sparse=sparse)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = torch.tanh(self.words(x))
        return self.head(found if found.ndim == 2 else found.mean(1))


class FunctionalWords(Words):
    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.words.weight
        found = nn.functional.embedding(x, weight, sparse=bool(self.words.sparse or self.asked))
        return self.head(torch.tanh(found).mean(1))

    asked = False


class TestSparse:
    """How a gradient is stored is no part of what it is."""

    @staticmethod
    def problem(net: nn.Module) -> cf.Problem:
        seeded()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
        x, y = torch.randint(7, (30, 5)), torch.randint(3, (30,))
        return cf.Problem(net.double(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))

    @pytest.mark.parametrize("bag", [False, True])
    @pytest.mark.parametrize("rung", RUNGS, ids=str)
    def test_scores_are_those_of_the_dense_one(self, rung: cf.Rung, bag: bool) -> None:
        if bag and isinstance(rung, cf.Hessian):
            pytest.skip("torch has no second derivative of an EmbeddingBag")
        sparse, dense = (self.problem(Words(sparse=s, bag=bag)) for s in (True, False))
        found = cf.influence(sparse, rung, damping=DAMPING)
        wanted = cf.influence(dense, rung, damping=DAMPING)
        torch.testing.assert_close(found.values, wanted.values)
        assert found.coverage == wanted.coverage
        assert sparse.model.words.sparse

    def test_of_a_function(self) -> None:
        asking = FunctionalWords(sparse=False)
        asking.asked = True
        sparse, dense = self.problem(asking), self.problem(FunctionalWords(sparse=False))
        for rung in (cf.Identity(), cf.BlockGGN(), cf.GGN()):
            found = cf.influence(sparse, rung, damping=DAMPING).values
            torch.testing.assert_close(found, cf.influence(dense, rung, damping=DAMPING).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung.name != "Identity"], ids=str)
def test_a_model_that_fits_beyond_rounding(rung: cf.Rung, dtype: torch.dtype) -> None:
    """Its curvature is 0: the solve is a division by w + λ."""
    x, y = data()
    net = nn.Linear(4, 3).to(dtype)
    with torch.no_grad():
        net.weight.mul_(1e6)
    x = x.to(dtype)
    given = cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:3], y[:3]), weight_decay=0.02)
    found = cf.influence(given, rung, damping=DAMPING).values
    plain = cf.influence(given, cf.Identity()).values
    assert float(plain.abs().max()) > 0
    torch.testing.assert_close(found, plain / 0.12, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "rung", [cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.Shampoo(), cf.BlockGGN(), cf.GGN(),
             cf.GGN(cf.inversion.SampleSpace())], ids=str,
)  # fmt: skip
def test_a_sum_beyond_float32_says_so(rung: cf.Rung) -> None:
    seeded()
    x, y = 1e20 * torch.randn(30, 4), torch.randn(30, 3)
    given = cf.Problem(nn.Linear(4, 3), cf.MSE(), (x, y), (x[:3] / 1e20, y[:3]))
    with pytest.raises(NonFiniteError, match=r"overflows.*float32"):
        cf.influence(given, rung, damping=cf.Absolute(1e-3))
    cf.influence(given.to(torch.float64), rung, damping=cf.Absolute(1e30))


@pytest.mark.parametrize("rung", RUNGS[1:], ids=str)
def test_a_damping_beyond_the_dtype_says_so(rung: cf.Rung) -> None:
    x, y = data()
    given = cf.Problem(nn.Linear(4, 3).double(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))
    assert float(cf.influence(given, rung, damping=cf.Absolute(1e300)).values.abs().max()) < 1e-290
    with pytest.raises(InputError, match=r"is beyond torch\.float32"):
        cf.influence(given.to(torch.float32), rung, damping=cf.Absolute(1e300))


def test_a_weight_decay_beyond_the_dtype_says_so() -> None:
    x, y = data()
    net = nn.Linear(4, 3)
    heavy = cf.Problem(
        net, cf.CrossEntropy(), (x.float(), y), (x[:3].float(), y[:3]), weight_decay=1e300
    )
    with pytest.raises(InputError, match=r"decay of weight, 1e\+300, is beyond torch\.float32"):
        cf.influence(heavy, cf.EKFAC())
    exact = cf.influence(heavy.to(torch.float64), cf.EKFAC())
    assert float(exact.values.abs().max()) < 1e-290


class Recomputed(nn.Module):
    """A layer whose activations are computed again in the backward pass, torch's older way."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.inner, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.out(self.hidden(x))
        return self.out(checkpoint(self.hidden, x, use_reentrant=self.reentrant))


def recomputed(reentrant: bool | None) -> cf.Problem:
    x, y = data()
    seeded()
    net = nn.Sequential(nn.Linear(4, 4), Recomputed(reentrant)).to(x.dtype)
    return cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:3], y[:3]), weight_decay=0.01)


RECOMPUTED = [
    cf.EKFAC(),
    cf.KFAC(cf.Empirical()),
    cf.BlockGGN(),
    cf.GGN(cf.inversion.Matrix()),
    cf.GGN(cf.inversion.ConjugateGradients()),
    cf.Hessian(),
]


@pytest.mark.parametrize("rung", RECOMPUTED, ids=str)
def test_activations_that_are_computed_again(rung: cf.Rung) -> None:
    """With the weights of their call, which are in its modules for as long as that takes."""
    found, wanted = (
        cf.influence(recomputed(reentrant), rung, damping=DAMPING) for reentrant in (False, None)
    )
    torch.testing.assert_close(found.values, wanted.values, rtol=1e-12, atol=1e-15)
    assert [line.parameters for line in found.coverage] == [
        line.parameters for line in wanted.coverage
    ]


def test_a_response_whose_activations_are_computed_again() -> None:
    left = torch.eye(30)[:2]
    found, wanted = (
        cf.truth.bregman_response(recomputed(reentrant), left, damping=0.1, epsilon=1e-3).change
        for reentrant in (False, None)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rung", RECOMPUTED, ids=str)
def test_activations_that_are_computed_again_in_a_way_without_weights(rung: cf.Rung) -> None:
    """Torch's older way knows `.backward()` alone: refused by name."""
    with pytest.raises(InputError, match=r"torch\.utils\.checkpoint\).*use_reentrant=False"):
        cf.influence(recomputed(True), rung, damping=DAMPING)


class Checkpointed(nn.Module):
    """A whole model of which nothing is kept for the backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.model, x, use_reentrant=False)


FOLLOWED = [name for name in CASES if "attention" not in name and name != "encoder layer"]


@pytest.mark.parametrize("name", FOLLOWED)
def test_every_kind_of_layer_is_computed_again(name: str) -> None:
    """Their rows, by rule and without one, and second derivatives where there are any."""
    plain = zoo_problem(name)
    again = cf.Problem(
        Checkpointed(plain.model), plain.loss, plain.train, plain.queries, weight_decay=0.01
    )
    rungs = [cf.EKFAC(cf.Empirical()), cf.GGN(), cf.Hessian()]
    for rung in rungs if "embedding bag" not in name else rungs[:2]:
        wanted = cf.influence(plain, rung, damping=DAMPING)
        found = cf.influence(again, rung, damping=DAMPING)
        torch.testing.assert_close(found.values, wanted.values, rtol=1e-9, atol=1e-12)
        assert len(found.coverage) == len(wanted.coverage)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(FOLLOWED)))
def test_attention_of_a_single_module_cannot_be_computed_again(name: str) -> None:
    """It is traced as its parts, and computed again as a whole: refused, with what to do."""
    plain = zoo_problem(name)
    again = cf.Problem(Checkpointed(plain.model), plain.loss, plain.train, plain.queries)
    with pytest.raises(InputError, match=r"nn\.MultiheadAttention.*gradient_checkpointing_disable"):
        cf.influence(again, cf.EKFAC(), damping=DAMPING)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.view(len(x), 1, 4))[0][:, -1])


class Placed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places, self.out = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x[..., None] + self.places(torch.arange(4)))).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Recurrent, Placed])
def test_what_is_traced_as_its_parts_is_refused_or_right(
    kind: type[nn.Module], dtype: torch.dtype
) -> None:
    """Computed again as a whole it saves other tensors than its parts did, which torch notices; or
    as many by chance, and then its rule does not give autograd's gradient and is not taken."""
    x, y = data()
    x = x.to(dtype)
    seeded()
    plain = kind().to(dtype)
    whole, again = (
        cf.Problem(model, cf.CrossEntropy(), (x, y), (x[:3], y[:3]))
        for model in (plain, Checkpointed(plain))
    )
    refused = ""
    try:
        found = cf.influence(again, cf.EKFAC(cf.Empirical()), damping=DAMPING)
    except InputError as error:
        refused, found = str(error), None
    if found is None:
        assert "nn.LSTM" in refused
        assert "use_reentrant=False" in refused
        return
    assert any(line.fallback for line in found.coverage)
    for rung in (cf.Identity(), cf.GGN()):
        wanted = cf.influence(whole, rung, damping=DAMPING).values
        found = cf.influence(again, rung, damping=DAMPING)
        torch.testing.assert_close(found.values, wanted)


def test_weights_of_two_checkpoints_side_by_side() -> None:
    """The graph of one set of weights is computed again with these, whatever was called since."""
    one = recomputed(False)
    other = one.at({name: 2 * value for name, value in one.theta.items()})
    wanted = cf.influence(one, cf.EKFAC(), damping=DAMPING).values
    theta = [leaves(p) for p in (one, other)]
    outputs = [p.forward(p.train.inputs, t) for p, t in zip((one, other), theta, strict=True)]
    for p, t, output in zip((one, other), theta, outputs, strict=True):
        with p.holding(t):
            found = torch.autograd.grad(output.sum(), list(t.values()))
        plain = recomputed(None).at(p.theta)
        values = leaves(plain)
        direct = torch.autograd.grad(
            plain.forward(plain.train.inputs, values).sum(), list(values.values())
        )
        for a, b in zip(found, direct, strict=True):
            torch.testing.assert_close(a, b)
    assert torch.equal(cf.influence(one, cf.EKFAC(), damping=DAMPING).values, wanted)
    assert all(value.is_meta for value in one.structure.tensors.values())


def leaves(problem: cf.Problem) -> dict[str, Tensor]:
    return {name: value.clone().requires_grad_(True) for name, value in problem.theta.items()}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_checkpoint_that_cuts_the_gradient() -> None:
    """A reentrant one on inputs without a gradient: its inside is a constant, to training too."""
    x, y = data()
    seeded()
    cut = Recomputed(True).to(x.dtype)
    whole = Recomputed(None).to(x.dtype)
    whole.load_state_dict(cut.state_dict())
    whole.inner.requires_grad_(False)
    found, wanted = (
        cf.influence(
            cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:3], y[:3])), cf.EKFAC(), damping=DAMPING
        )
        for net in (cut, whole)
    )
    torch.testing.assert_close(found.values, wanted.values)
    (line,) = [line for line in found.coverage if "inner.weight" in line.parameters]
    assert line.fallback
    assert "without a gradient" in line.rule


class TestQueries:
    def test_of_another_width(self) -> None:
        x, y = data()
        with pytest.raises(InputError, match=r"queries: the model raised RuntimeError: mat1"):
            cf.Problem(nn.Linear(4, 3).double(), cf.CrossEntropy(), (x, y), (x[:3, :2], y[:3]))

    def test_of_another_length(self) -> None:
        seeded()
        x, y = torch.randn(10, 5, 4).double(), torch.randint(3, (10, 5))
        """As the same positions of queries of full length, of which the others do not count."""
        model, loss = nn.Linear(4, 3).double(), cf.Positions(cf.CrossEntropy())
        counted = y[:3].clone()
        counted[:, 3:] = -100
        short, long = (
            cf.influence(cf.Problem(model, loss, (x, y), queries), cf.GGN()).values
            for queries in ((x[:3, :3], y[:3, :3]), (x[:3], counted))
        )
        assert torch.allclose(short, long, rtol=1e-10)
