"""Exact factors of many outputs: the last layer by its Hessian, all below by min(h, K − 1) columns.

The oracle is the same rung by all K − 1 columns of S, which `Type2ByLayer.fits` being false gives,
and which `test_curvature.py` holds to dense autograd.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.rung import Rung, fit
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher import Type2ByLayer, default_fisher, type2
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.layer_columns import root
from curvfluence.jacobian.terms import LastOuter, Outer
from curvfluence.problem.losses import Loss, ScaledLoss, output_hessian
from curvfluence.problem.losses.output_hessian import OutputHessian
from curvfluence.runtime import budget

K, N = 70, 9
RUNGS = (
    cf.KFAC(),
    cf.KFAC(sharing=cf.Reduce()),
    cf.EKFAC(),
    cf.EKFAC(joint_bias=False),
    cf.Diagonal(),
    cf.Shampoo(),
    cf.TKFAC(),
    cf.EShampoo(),
)


class Small(nn.Module):
    """A convolution, a norm and a head without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 3, 3), nn.LayerNorm(12)
        self.head = nn.Linear(12, K, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x.view(-1, 2, 6)).tanh().flatten(1)))


def mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.GELU(), nn.Linear(8, width), nn.Tanh(),
                         nn.Linear(width, K))  # fmt: skip


def problem_of(
    model: nn.Module, loss: Loss, *, weights: bool = False, dtype: torch.dtype = torch.float64
) -> cf.Problem:
    torch.manual_seed(1)
    x = torch.randn(N, 12).to(dtype)
    y: Tensor = torch.randint(0, K, (N,))
    if isinstance(loss, cf.MSE):
        y = torch.randn(N, K).to(dtype)
    if isinstance(loss, cf.BinaryCrossEntropy):
        y = (torch.rand(N, K) > 0.5).to(dtype)
    v = torch.rand(N).to(dtype) if weights else None
    train = cf.Examples(x, y, weights=v)
    return cf.Problem(model.to(dtype), loss, train, (x[:3], y[:3]))


def losses() -> list[Loss]:
    torch.manual_seed(0)
    return [
        cf.CrossEntropy(),
        cf.CrossEntropy(label_smoothing=0.1, weight=torch.rand(K) + 0.5),
        cf.MSE(),
        cf.BinaryCrossEntropy(),
    ]


def exactly(rung: Rung) -> Rung:
    return replace(rung, fisher=cf.Type2())  # pyright: ignore[reportCallIssue]


def solved(problem: cf.Problem, rung: Rung) -> Tensor:
    v = torch.randn(4, problem.parameters.count, generator=torch.Generator().manual_seed(3))
    return fit(problem, rung).solve(v.to(problem.dtype), cf.Absolute(1e-2))


def by_all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Type2ByLayer, "fits", staticmethod(lambda problem: False))


@pytest.mark.parametrize("rung", RUNGS, ids=repr)
@pytest.mark.parametrize("width", [5, 90])
def test_rungs_are_those_of_all_columns(
    rung: Rung, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    problem = problem_of(mlp(width), cf.CrossEntropy())
    found = solved(problem, exactly(rung))
    by_all_columns(monkeypatch)
    wanted = solved(problem_of(problem.model, cf.CrossEntropy()), exactly(rung))
    # Shampoo takes roots: what rounding leaves of an eigenvalue that is 0, 1e-17, is 3e-9 there.
    size = 1e-6 if isinstance(rung, cf.Shampoo) else 1e-9
    torch.testing.assert_close(found, wanted, rtol=size, atol=size * float(wanted.abs().max()))


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("weights", [False, True])
def test_of_every_loss_and_example_weights(
    loss: Loss, weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Small()
    rung = exactly(cf.EKFAC())
    found = solved(problem_of(model, loss, weights=weights), rung)
    by_all_columns(monkeypatch)
    wanted = solved(problem_of(model, loss, weights=weights), rung)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9 * float(wanted.abs().max()))


def test_few_columns_are_carried_and_it_says_type2() -> None:
    torch.manual_seed(0)
    problem = problem_of(mlp(5), cf.CrossEntropy())
    fisher = type2(problem, by_layer=True)
    assert fisher.width(problem) == 5
    rows = next(iter(FisherPass(problem, fisher)))
    kinds = [type(term) for term in rows.terms]
    assert kinds == [Outer, Outer, LastOuter]
    assert [term.c for term in rows.terms] == [5, 5, K]
    curvature = fit(problem, cf.EKFAC())
    assert curvature.fisher == "type2"
    assert not any("by default" in note for note in curvature.notes)


def test_default_stays_exact_where_few_columns_are_carried() -> None:
    narrow, wide = (problem_of(mlp(w), cf.CrossEntropy()) for w in (5, 90))
    assert isinstance(default_fisher(narrow, by_layer=True), Type2ByLayer)
    assert isinstance(default_fisher(narrow), cf.MonteCarlo)
    assert isinstance(default_fisher(wide, by_layer=True), cf.MonteCarlo)


class Twice(nn.Module):
    """The last layer's inputs are not all that the outputs see."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 5), nn.Linear(5, K)
        self.scale = nn.Parameter(torch.ones(K))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh()) * self.scale


class Reused(nn.Module):
    """The last layer is also an earlier one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(K, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(nn.functional.pad(x, (0, K - 12))).tanh())


class LowRankHead(nn.Module):
    """A frozen head whose addend goes past it: torch sees one addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.base = nn.Linear(12, 8), nn.Linear(8, K).requires_grad_(False)
        self.a, self.b = nn.Linear(8, 3, bias=False), nn.Parameter(torch.randn(3, K))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).tanh()
        return torch.addmm(self.base(h), self.a(h), self.b)


class SkipAsBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.skip = nn.Linear(12, 5), nn.Linear(5, K), nn.Linear(12, K)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.body(x).tanh(), self.head.weight, self.skip(x))


class Sometimes(nn.Module):
    """What follows the last layer hangs on the data, which the probe does not show."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 5), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        z, far = self.head(self.body(x).tanh()), x[:, :1] > 50
        return torch.where(far, z / 10, z) if bool(far.any()) else z


def test_what_follows_in_some_batches_is_refused() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 12), torch.randint(0, K, (40,))
    x[3] = 60
    problem = cf.Problem(Sometimes(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))
    assert discover(problem).last == 1
    with pytest.raises(cf.errors.InputError, match="ends the model on a probe"):
        cf.fit(problem, exactly(cf.KFAC()))


@pytest.mark.parametrize("model", [Twice, Reused, LowRankHead, SkipAsBias])
def test_other_endings_take_all_columns(model: type[nn.Module]) -> None:
    problem = problem_of(model(), cf.CrossEntropy())
    assert discover(problem).last is None
    assert type(type2(problem, by_layer=True)) is cf.Type2


def test_a_loss_with_another_factor_is_not_taken_for_its_parent() -> None:
    class Halved(cf.CrossEntropy):
        def factor(self, output: Tensor, target: Tensor) -> Tensor:
            return super().factor(output, target) / 2

    assert cf.CrossEntropy().structured
    assert not Halved().structured
    assert not cf.Positions(cf.CrossEntropy()).structured


class ByColumns(nn.Module):
    """A last layer that is stored as [i, o]."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.w = nn.Linear(12, 5), nn.Parameter(torch.randn(5, K))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).tanh() @ self.w


def test_a_last_layer_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, rung = ByColumns(), exactly(cf.EKFAC())
    problem = problem_of(model, cf.CrossEntropy())
    assert type2(problem, by_layer=True).width(problem) == 5
    found = solved(problem, rung)
    by_all_columns(monkeypatch)
    wanted = solved(problem_of(model, cf.CrossEntropy()), rung)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9 * float(wanted.abs().max()))


class Rooted(nn.Module):
    """√ has an infinite derivative at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 5, bias=False), nn.Linear(5, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).abs().sqrt())


@pytest.mark.parametrize("small", [False, True])
def test_an_infinite_gradient_names_its_example(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "EXAMPLES", 1000)  # it is in the third chunk

    class Normed(Rooted):
        """The same in a parameter of no layer."""

        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Identity() if small else self.body  # pyright: ignore[reportAttributeAccessIssue]
            self.scale = nn.Parameter(torch.ones(12)) if small else None
            self.head = nn.Linear(12 if small else 5, K)

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is not None:
                x = nn.functional.rms_norm(x, (12,), self.scale)
            return super().forward(x)

    torch.manual_seed(1)
    x, y = torch.randn(3000, 12), torch.randint(0, K, (3000,))
    x[2990] = 0
    problem = cf.Problem(Normed(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))
    with pytest.raises(
        cf.errors.NonFiniteError,
        match=r"gradient of training set \(type2\).*2990|2990.*gradient of training set",
    ):
        cf.fit(problem, exactly(cf.KFAC()))


def test_a_chunk_counts_what_an_example_takes() -> None:
    torch.manual_seed(0)
    for width, made in ((5, 2 * 5**2), (90, K * (K - 1))):
        problem = problem_of(mlp(width), cf.CrossEntropy())
        fisher = type2(problem, by_layer=True)
        columns = fisher.pulling(problem, fisher.columns(), "")
        c = min(width, K - 1)
        below = 12 + 8 * c + 8 + width * c  # a and s of both other layers
        assert columns.elements(discover(problem)) == below + width + 2 * K + made
        assert columns.dense_elements(3) == 3 * c


def test_frozen_below_the_last_layer() -> None:
    torch.manual_seed(0)
    model = mlp(5)
    for parameter in model[:4].parameters():  # pyright: ignore[reportIndexIssue]
        parameter.requires_grad_(False)
    problem = problem_of(model, cf.CrossEntropy())
    assert discover(problem).last == 0
    assert bool(solved(problem, exactly(cf.KFAC())).isfinite().all())


@pytest.mark.parametrize("loss", losses(), ids=lambda loss: type(loss).__name__)
def test_output_hessian_against_the_factor(loss: Loss) -> None:
    torch.manual_seed(2)
    f = 3 * torch.randn(N, K, dtype=torch.float64)
    y = torch.rand(N, K) if isinstance(loss, cf.MSE | cf.BinaryCrossEntropy) else None
    y = torch.randint(0, K, (N,)) if y is None else y
    v, u = torch.rand(N).double(), torch.randn(K, 6, dtype=torch.float64)
    loss = ScaledLoss(loss, v)
    s = loss.factor(f, y)
    whole = s @ s.mT
    found = loss.output_hessian(f, y)
    pairs = {
        "whole": (found.whole(), whole),
        "summed": (found.summed(), whole.sum(0)),
        "diagonal": (found.diagonal(), whole.diagonal(dim1=1, dim2=2)),
        "traces": (found.traces(), whole.diagonal(dim1=1, dim2=2).sum(1)),
        "quadratic": (found.quadratic(u), torch.einsum("km,nkl,lm->nm", u, whole, u)),
        "each": (
            found.quadratic_each(u[:, :1].T.expand(N, K)),
            torch.einsum("k,nkl,l->n", u[:, 0], whole, u[:, 0]),
        ),
        "pulled": (found.pulled(u), torch.einsum("ka,nkl,lb->nab", u, whole, u)),
        "joined": (found.joined([found[:4], found[4:]]).whole(), whole),
    }
    for name, (a, b) in pairs.items():
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("loss", [cf.CrossEntropy(), cf.MSE()])
def test_output_hessian_keeps_one_dtype(loss: Loss) -> None:
    f, y = torch.randn(3, 4), torch.randint(0, 4, (3,))
    y = torch.randn(3, 4) if isinstance(loss, cf.MSE) else y
    found = loss.output_hessian(f, y)
    for wanted in (torch.float32, torch.float64):
        weighted = found.to(wanted).scaled(torch.ones(3, dtype=torch.float64))
        floating = [t for t in weighted.tensors if t.is_floating_point()]
        assert {t.dtype for t in floating} == {wanted}


def test_many_examples_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    hessian = cf.CrossEntropy().output_hessian(torch.randn(7, 5).double(), torch.zeros(7).long())
    w = torch.randn(5, 3, dtype=torch.float64)
    wanted = hessian.pulled(w)
    for numbers in (1, 15, 31):
        monkeypatch.setattr(output_hessian, "SCALED", numbers)
        torch.testing.assert_close(hessian.pulled(w), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gap", [5.0, 20.0, 60.0])
def test_nothing_cancels_in_a_saturated_example(gap: float) -> None:
    """In float32, relative to what is left of 1 − p: e^-60 squared is no number of float32's."""
    torch.manual_seed(3)
    f = torch.randn(N, K)
    f[:, 4] += gap
    loss, y, u = cf.CrossEntropy(), torch.zeros(N, dtype=torch.long), torch.randn(K, 6)
    found, wanted = (_forms(loss.output_hessian(g, y), v) for g, v in
                     ((f, u), (f.double(), u.double())))  # fmt: skip
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5


def _forms(hessian: OutputHessian, u: Tensor) -> list[Tensor]:
    return [
        hessian.summed(),
        hessian.diagonal(),
        hessian.quadratic(u),
        hessian.pulled(u),
        hessian.traces(),
    ]


def test_root_of_definite_singular_and_zero_matrices() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    grams = torch.cat(
        [x @ x.mT, torch.zeros(1, 6, 6, dtype=torch.float64), torch.eye(6).double()[None] * 1e-30]
    )
    found = root(grams)
    torch.testing.assert_close(found @ found.mT, grams, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[-1] @ found[-1].T, grams[-1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_root_has_the_rank_of_its_matrix(scale: float) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, 6, 2, dtype=torch.float64)
    grams = scale * (x @ x.mT)
    found = root(grams)
    left = found.square().sum(1) > 0
    assert bool((left.sum(1) <= 3).all()), "rounding is no direction"
    torch.testing.assert_close(found @ found.mT, grams, rtol=1e-11, atol=1e-12 * scale)


def test_root_of_a_matrix_that_is_definite_but_for_rounding() -> None:
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    values = torch.tensor([-1e-12, 1e-3, 0.1, 0.2, 0.5, 1.0], dtype=torch.float64)
    gram = ((q * values) @ q.T)[None]
    found = root(gram)
    torch.testing.assert_close(found @ found.mT, gram, rtol=0, atol=1e-11)


def test_inputs_that_count_for_nothing_stay_so() -> None:
    """A relative damping and the refusal at λ = 0 go by what is exactly 0."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 9, dtype=torch.float64)
    x[:, 2] = 0
    found = root(x @ x.mT)
    assert bool((found[:, 2] == 0).all())
    torch.testing.assert_close(found @ found.mT, x @ x.mT, rtol=1e-12, atol=1e-12)
    model = mlp(5)
    with torch.no_grad():
        model[4].weight[:, 1] = 0  # pyright: ignore[reportIndexIssue]
    problem = problem_of(model, cf.MSE())
    with pytest.raises(cf.errors.SingularError):
        cf.fit(problem, exactly(cf.Diagonal())).solve(
            torch.ones(1, problem.parameters.count).double(), cf.Absolute(0.0)
        )


def test_a_loss_of_another_diagonal() -> None:
    class Halved(cf.BinaryCrossEntropy):
        def _diagonal(self, output: Tensor) -> Tensor:
            return super()._diagonal(output) / 2

    f, y = torch.randn(3, 4).double(), torch.zeros(3, 4).double()
    s = Halved().factor(f, y)
    torch.testing.assert_close(Halved().output_hessian(f, y).whole(), s @ s.mT)


def test_float32_scores_are_those_of_float64() -> None:
    torch.manual_seed(0)
    exact = problem_of(mlp(6), cf.CrossEntropy())
    single = problem_of(exact.model, cf.CrossEntropy(), dtype=torch.float32)
    wanted = cf.influence(exact, exactly(cf.EKFAC()), damping=cf.Absolute(1e-3)).values
    found = cf.influence(single, exactly(cf.EKFAC()), damping=cf.Absolute(1e-3)).values
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-4


def test_the_forecast_knows_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def operations(problem: cf.Problem) -> float:
        return sum(s.operations for s in cf.plan(problem, exactly(cf.EKFAC())).stages)

    torch.manual_seed(0)
    few = operations(problem_of(mlp(5), cf.CrossEntropy()))
    by_all_columns(monkeypatch)
    assert few < operations(problem_of(mlp(5), cf.CrossEntropy())) / 3
