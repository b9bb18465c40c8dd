"""The GGN by its largest rows: the rows against dense ones, the solve against a matrix, and bounds
on scores against scores without error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.estimate.leading_rows import LeadingRows
from curvfluence.curvature.hessian import Plain
from curvfluence.curvature.inversion import ConjugateGradients, Matrix, SelectedRows
from curvfluence.curvature.operators import selected_rows
from curvfluence.curvature.operators.selected_rows import select
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.fisher_pass import FisherPass
from curvfluence.jacobian.gradients import training_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.jacobian.terms import Formed
from tests.problems import seeded
from tests.zoo import zoo_problem

pytestmark = pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning")
ZOO = [
    "mlp", "linear over positions", "cnn with groups", "embedding", "layer norm",
    "multi-head attention", "tied transformer", "one module twice",
]  # fmt: skip


def shift_of(problem: cf.Problem, damping: float = 0.01) -> Tensor:
    """w + λ, of another value in every tensor."""
    shift = torch.empty_like(problem.decay)
    for k, place in enumerate(problem.parameters.slices.values()):
        shift[place] = damping * (1 + k % 3)
    return shift


def dense_rows(problem: cf.Problem) -> Tensor:
    """Z, [N, C, P]."""
    return torch.cat([rows.to_dense() for rows in FisherPass(problem, cf.Type2())])


def fitted(
    dtype: torch.dtype = torch.float64, *, epochs: int = 200, **options: object
) -> cf.Problem:
    """A net that fits most of its 90 examples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 4)).double()
        x = torch.randn(105, 12, dtype=torch.float64)
        y = (x[:, :4] + 0.3 * torch.randn(105, 4, dtype=torch.float64)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:90]), y[:90]).backward()
        optimizer.step()
    model, x = model.to(dtype), x.to(dtype)
    return cf.Problem(model, cf.CrossEntropy(), (x[:90], y[:90]), (x[90:], y[90:]), **options)  # type: ignore[arg-type]


class TestRows:
    @pytest.mark.parametrize("name", ZOO)
    def test_grams_and_products_against_dense_rows(self, name: str) -> None:
        problem = zoo_problem(name)
        shift = shift_of(problem)
        z_ncp = dense_rows(problem) / shift.sqrt()
        (rows,) = FisherPass(problem, cf.Type2())
        found = rows.scaled_grams(shift)
        assert torch.allclose(found, z_ncp @ z_ncp.mT, rtol=1e-10, atol=1e-12)
        single = training_gradients(problem, discover(problem))
        flat = single.to_dense()[:, 0]
        found = single.scaled_products(single[:3], shift)[:, :, 0]
        assert torch.allclose(found, (flat / shift) @ flat[:3].T, rtol=1e-10, atol=1e-12)
        wanted = torch.einsum("qp,ncp->qnc", flat[:4], dense_rows(problem) / shift)
        found = single[:4].scaled_products(rows, shift)
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("name", ZOO)
    def test_mixed(self, name: str) -> None:
        problem = zoo_problem(name)
        (rows,) = FisherPass(problem, cf.Type2())
        index = torch.tensor([3, 0, 3])
        weights = torch.randn(3, rows.dense.shape[1], dtype=torch.float64)
        wanted = torch.einsum("rc,rcp->rp", weights, rows.to_dense()[index])
        found = rows.mixed(index, weights).to_dense()[:, 0]
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)

    def test_shared_positions_are_matrices_where_these_are_smaller(self) -> None:
        """Of 6 positions: 4 × 3 numbers for 6 (4 + 3), but 60 × 70 beside 6 (60 + 70)."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Linear(3, 4), nn.Linear(4, 70), nn.Linear(70, 60)
            model = nn.Sequential(*layers).double()
            x, y = torch.randn(5, 6, 3).double(), torch.randint(60, (5, 6))
        problem = cf.Problem(model, cf.Positions(cf.CrossEntropy()), (x, y), (x, y))
        rows = training_gradients(problem, discover(problem))
        found = rows.compacted()
        assert [isinstance(term, Formed) for term in found.terms] == [True, True, False]
        assert torch.allclose(found.to_dense(), rows.to_dense(), rtol=1e-12, atol=1e-15)
        assert found.nbytes < rows.nbytes

    @pytest.mark.parametrize("count", [1, 5, 10_000])
    @pytest.mark.parametrize("name", ["mlp", "cnn with groups", "tied transformer"])
    def test_the_largest_ones(self, name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of all examples, whatever the chunks; together they are the whole GGN, and some of them
        are never more than it."""
        monkeypatch.setattr("curvfluence.runtime.budget.EXAMPLES", 3)
        problem = zoo_problem(name)
        shift = shift_of(problem)
        z_ncp = dense_rows(problem)
        scaled = z_ncp / shift.sqrt()
        values = torch.linalg.eigvalsh(scaled @ scaled.mT).flatten().sort(descending=True).values
        found = select(FisherPass(problem, cf.Type2()), shift, count)
        rows = found.rows.to_dense()[:, 0]
        sizes = (rows.square() / shift).sum(1).sort(descending=True).values
        assert torch.allclose(sizes, values[: len(sizes)], rtol=1e-8, atol=1e-12)
        assert found.whole_trace == pytest.approx(float(values.sum()))
        assert found.trace == pytest.approx(float(sizes.sum()))
        whole = z_ncp.flatten(0, 1)
        rest = whole.T @ whole - rows.T @ rows
        floor = -1e-10 * float(whole.square().sum())
        assert float(torch.linalg.eigvalsh(rest).min()) >= floor
        if count == 10_000:
            assert torch.allclose(rest, torch.zeros_like(rest), atol=-floor)

    @pytest.mark.parametrize(
        ("sizes", "made", "joined"),
        [
            ([1, 2, 3, 4, 5, 6], [4, 4, 4, 4, 4, 4], [12, 12, 8]),
            ([6, 5, 4, 3, 2, 1], [4], [4]),
            ([5, 5, 5, 5, 6, 5], [4, 4], [8]),
        ],
        ids=str,
    )
    def test_they_are_put_together_once_there_are_twice_as_many(
        self,
        sizes: list[int],
        made: list[int],
        joined: list[int],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of chunks of four rows of a size, where four are selected; and what is no larger than
        all that are there is never made."""
        monkeypatch.setattr("curvfluence.runtime.budget.EXAMPLES", 2)
        x = torch.zeros(12, 3, dtype=torch.float64)
        x[:, 0] = torch.tensor(sizes).repeat_interleave(2)
        model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
        problem = cf.Problem(model, cf.MSE(), (x, x[:, :2]), (x[:1], x[:1, :2]))
        mixed, concatenate = Rows.mixed, selected_rows.concatenate
        seen: tuple[list[int], list[int]] = [], []

        def seen_mixed(self: Rows, index: Tensor, weights_rc: Tensor) -> Rows:
            seen[0].append(len(index))
            return mixed(self, index, weights_rc)

        def seen_together(parts: list[Rows]) -> Rows:
            seen[1].append(sum(len(part) for part in parts))
            return concatenate(parts)

        monkeypatch.setattr(Rows, "mixed", seen_mixed)
        monkeypatch.setattr(selected_rows, "concatenate", seen_together)
        found = select(FisherPass(problem, cf.Type2()), torch.full((6,), 0.5).double(), 4)
        assert seen == (made, joined)
        column = float(problem.loss.factor(x[:1, :2], x[:1, :2]).square().sum() / 2)
        each = column * torch.tensor(sizes).double().square() / 0.5
        assert found.trace == pytest.approx(float(4 * each.max()))
        assert found.whole_trace == pytest.approx(float(4 * each.sum()))

    def test_nothing_to_select(self) -> None:
        """Every row is 0: the inverse is that of D, and says nothing of rows."""
        x = torch.zeros(4, 3, dtype=torch.float64)
        x[3] = 1.0  # a query
        model = nn.Sequential(nn.Linear(3, 2, bias=False)).double()
        data, asked = (x[:3], x[:3, :2]), (x[3:], x[3:, :2])
        problem = cf.Problem(model, cf.MSE(), data, asked, weight_decay=0.1)
        curvature = cf.fit(problem, cf.GGN(SelectedRows()))
        v = torch.ones(2, 6, dtype=torch.float64)
        found = curvature.solve(v, cf.Absolute(0.3))
        assert torch.allclose(found, v / 0.4, rtol=1e-12)
        scores = cf.influence(problem, curvature, damping=cf.Absolute(0.3))
        assert torch.equal(scores.values, torch.zeros(1, 3, dtype=torch.float64))
        assert torch.equal(scores.error_bounds().values, torch.zeros(1, 3, dtype=torch.float64))


def test_what_is_not_finite_says_so() -> None:
    problem = fitted()
    curvature = cf.fit(problem, cf.GGN(SelectedRows(30)))
    v = torch.ones(2, problem.parameters.count, dtype=torch.float64)
    v[1, 3] = torch.nan
    with pytest.raises(cf.errors.NonFiniteError, match="a vector to be solved for"):
        curvature.solve(v, cf.Absolute(0.1))
    single, small = fitted(torch.float32), cf.Absolute(1e-38)
    with pytest.raises(cf.errors.NonFiniteError, match="norms of rows"):
        cf.influence(single, cf.GGN(SelectedRows(30)), damping=small)


def test_the_note_is_of_the_last_solve() -> None:
    problem, at = fitted(), cf.Absolute(0.01)
    curvature = cf.fit(problem, cf.GGN(SelectedRows(30)))

    def noted() -> tuple[str, ...]:
        return cf.influence(problem, curvature, damping=at).notes

    before = noted()
    curvature.solve(torch.randn(3, problem.parameters.count, dtype=torch.float64), at)
    assert noted() == before


class TestSolve:
    @pytest.mark.parametrize("name", ZOO)
    def test_against_the_matrix(self, name: str) -> None:
        problem = zoo_problem(name)
        damping = cf.Absolute(1e-2)
        wanted = cf.influence(problem, cf.GGN(Matrix()), damping=damping).values
        for count in (2, 9):
            rung = cf.GGN(SelectedRows(count, tolerance=1e-10))
            found = cf.influence(problem, rung, damping=damping)
            assert torch.allclose(found.values, wanted, rtol=1e-6, atol=1e-9 * float(wanted.norm()))
            assert found.residuals is not None
            assert max(found.residuals) <= 1e-10
            assert any(f"{count} selected rows" in note for note in found.notes)

    @pytest.mark.parametrize("decay", [0.0, 1e-2, {"0.weight": 1e-2, "2.weight": 3e-3}])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_decays_and_weights(self, decay: object, weighted: bool) -> None:
        """w of 0, the same everywhere, or one for each weight and 0 for biases."""
        v = torch.linspace(0, 2, 90, dtype=torch.float64) if weighted else None
        problem = fitted(weight_decay=decay, sample_weight=v)
        for damping in (cf.Absolute(1e-3), cf.Relative(0.1)):
            wanted = cf.influence(problem, cf.GGN(Matrix()), damping=damping).values
            rung = cf.GGN(SelectedRows(60, tolerance=1e-10))
            found = cf.influence(problem, rung, damping=damping).values
            assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-9 * float(wanted.norm()))

    def test_large_rows_are_worth_products(self) -> None:
        """What the form is for: in a fitted net few rows take most products away, and all of them
        leave one."""
        problem, damping = fitted(), cf.Absolute(1e-4)

        def products(count: int) -> int:
            rung = cf.GGN(SelectedRows(count, tolerance=1e-6))
            notes = cf.influence(problem, rung, damping=damping).notes
            return int(next(n for n in notes if "selected" in n).split("; ")[1].split()[0])

        taken = [products(count) for count in (1, 40, 120, 360)]
        assert taken == sorted(taken, reverse=True)
        assert taken[-1] == 1
        assert taken[2] <= 2 * taken[0] / 3  # without rows directions stay conjugate too

    def test_refused(self) -> None:
        problem = fitted()
        with pytest.raises(cf.errors.InputError, match=r"needs w \+ λ > 0"):
            cf.influence(problem, cf.GGN(SelectedRows()), damping=cf.Absolute(0.0))
        for options in ({"count": 0}, {"tolerance": 1.0}, {"max_products": 0}):
            with pytest.raises(cf.errors.InputError):
                SelectedRows(**options)  # type: ignore[arg-type]


class SmallLanguageModel(nn.Module):
    """6 positions of 16 words: 90 rows of the GGN an example, through attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.within = nn.Embedding(16, 8), nn.Linear(8, 12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.out = nn.Linear(12, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.within(self.words(x))
        return self.out(torch.tanh(h + self.attention(h, h, h, need_weights=False)[0]))


def many_columns(kind: str, **options: object) -> cf.Problem:
    """Losses with more than 64 columns: over positions, some of which do not count, and not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "classes":
            model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 70)).double()
            x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(0, 70, (12,))
            return cf.Problem(model, cf.CrossEntropy(), (x[:10], y[:10]), (x[9:], y[9:]), **options)  # type: ignore[arg-type]
        model = SmallLanguageModel().double()
        x, y = torch.randint(0, 16, (2, 12, 6))
        y[3, 4:] = -100
        loss = cf.Positions(cf.CrossEntropy(), reduction="sum")
        return cf.Problem(model, loss, (x[:10], y[:10]), (x[9:], y[9:]), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["positions", "classes"])
class TestManyColumns:
    """Where few rows of each example are looked at, in the place of all."""

    def test_what_they_hold(self, kind: str) -> None:
        """Σ z zᵀ of as many as there can be is all of it, of fewer no more than all, whatever the
        shift; and the trace is that of all, about."""
        problem = many_columns(kind)
        shift = shift_of(problem)
        z_np = dense_rows(problem).flatten(0, 1)
        whole = z_np.T @ z_np
        wanted = float((z_np.square() / shift).sum())
        for width in (1, 8, 90):
            leading = LeadingRows(problem, shift, width)
            held = torch.cat([rows.to_dense() for rows in leading])
            assert held.shape[:2] == (10, width)
            part = held.flatten(0, 1).T @ held.flatten(0, 1)
            assert float(torch.linalg.eigvalsh(whole - part)[0]) > -1e-12 * float(whole.norm())
            if width == 90:
                assert torch.allclose(part, whole, atol=1e-6 * float(whole.abs().max()))
                assert leading.trace == pytest.approx(wanted, rel=0.1)

    def test_they_hold_more_than_columns_at_random(self, kind: str) -> None:
        """More than half of what any 8 rows of each example can, where 8 at random hold 8/C."""
        problem = many_columns(kind)
        shift = shift_of(problem)
        z_ncp = dense_rows(problem) / shift.sqrt()
        values = torch.linalg.eigvalsh(z_ncp @ z_ncp.mT)
        held = torch.cat([rows.to_dense() for rows in LeadingRows(problem, shift, 8)])
        found = float((held.square() / shift).sum())
        assert found > 0.5 * float(values[:, -8:].sum())
        assert found > 2 * 8 / z_ncp.shape[1] * float(values.sum())

    @pytest.mark.parametrize("count", [1, 20, 1000])
    def test_against_the_matrix(self, kind: str, count: int) -> None:
        v = torch.linspace(0, 2, 10, dtype=torch.float64)
        problem, damping = many_columns(kind, weight_decay=1e-3, sample_weight=v), cf.Absolute(1e-2)
        wanted = cf.influence(problem, cf.GGN(Matrix()), damping=damping).values
        rung = cf.GGN(SelectedRows(count, tolerance=1e-10))
        found = cf.influence(problem, rung, damping=damping)
        assert torch.allclose(found.values, wanted, rtol=1e-6, atol=1e-8 * float(wanted.norm()))
        assert any("of the trace" in note and "about" in note for note in found.notes)

    def test_a_relative_damping(self, kind: str) -> None:
        """In units of the diagonal's mean, by sampled labels as with conjugate gradients."""
        problem = many_columns(kind)
        found, wanted = (
            cf.influence(problem, cf.GGN(form), damping=cf.Relative(0.1)).values
            for form in (SelectedRows(5, tolerance=1e-10), ConjugateGradients(None, 1e-10))
        )
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8 * float(wanted.norm()))

    def test_rows_are_worth_products(self, kind: str) -> None:
        problem, damping = many_columns(kind), cf.Absolute(1e-3)

        def products(count: int) -> int:
            rung = cf.GGN(SelectedRows(count, tolerance=1e-6, most=count))
            notes = cf.influence(problem, rung, damping=damping).notes
            return int(next(n for n in notes if "selected" in n).split("; ")[1].split()[0])

        assert products(200) < products(1)

    def test_of_the_hessian(self, kind: str) -> None:
        problem, damping = many_columns(kind), cf.Absolute(20.0)
        wanted = cf.influence(problem, cf.Hessian(Plain()), damping=damping).values
        form = SelectedRows(20, tolerance=1e-10)
        found = cf.influence(problem, cf.Hessian(Plain(), form=form), damping=damping).values
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8 * float(wanted.norm()))

    @pytest.mark.parametrize("rung", [cf.EKFAC(), cf.GGN(SelectedRows(20, tolerance=1e-2))])
    def test_bounds(self, kind: str, rung: cf.Rung) -> None:
        problem, damping = many_columns(kind), cf.Absolute(1e-2)
        exact = cf.influence(problem, cf.GGN(Matrix()), damping=damping).values
        scores = cf.influence(problem, rung, damping=damping)
        bounds = scores.error_bounds()
        assert bool(((scores.values - exact).abs() <= bounds.values).all())
        assert "about" in bounds.said

    def test_what_is_not_finite_is_named(self, kind: str) -> None:
        problem = many_columns(kind)
        shift = torch.full_like(problem.decay, 1e-320)
        with pytest.raises(cf.errors.NonFiniteError, match="use a larger damping"):
            list(LeadingRows(problem, shift, 4))


RUNGS: dict[str, cf.Rung] = {
    "EKFAC": cf.EKFAC(),
    "KFAC": cf.KFAC(),
    "Diagonal": cf.Diagonal(),
    "BlockGGN": cf.BlockGGN(),
    "rows, 1e-1": cf.GGN(SelectedRows(5, tolerance=1e-1)),
    "rows, 1e-3": cf.GGN(SelectedRows(60, tolerance=1e-3)),
    # by a diagonal: behind EK-FAC so small a net is solved to rounding, which no bound can be near
    "iterations, 1e-2": cf.GGN(ConjugateGradients(cf.Diagonal(), tolerance=1e-2)),
}


class TestBounds:
    @pytest.mark.parametrize("damping", [1e-4, 1e-2])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("decay", [0.0, {"0.weight": 1e-2, "2.weight": 3e-3}])
    def test_no_score_is_further_off(
        self, damping: float, dtype: torch.dtype, decay: object
    ) -> None:
        """Every pair, of every rung, against scores by the matrix in float64: 7 × 3 × 1,350 pairs a
        case, whatever the number of rows."""
        problem = fitted(dtype, weight_decay=decay)
        at = cf.Absolute(damping)
        exact = cf.influence(problem.to(torch.float64), cf.GGN(Matrix()), damping=at).values
        for name, rung in RUNGS.items():
            scores = cf.influence(problem, rung, damping=at)
            error = (scores.values.double() - exact).abs()
            looser = None
            for rows in (1, 60, 400):
                bounds = scores.error_bounds(rows)
                assert bounds.values.shape == error.shape
                assert bool((error <= bounds.values).all()), (name, rows)
                if looser is not None:  # more rows bound tighter
                    assert bool((bounds.values <= looser * (1 + 1e-6)).all())
                looser = bounds.values
            # With all rows P is A: the bound is an inner product's by Cauchy-Schwarz, and no more.
            assert float((looser / error.clamp_min(1e-300)).median()) < 100

    @pytest.mark.parametrize("name", ZOO)
    def test_any_layer(self, name: str) -> None:
        problem, at = zoo_problem(name), cf.Absolute(1e-2)
        exact = cf.influence(problem, cf.GGN(Matrix()), damping=at).values
        scores = cf.influence(problem, cf.EKFAC(), damping=at)
        for rows in (3, 1000):
            bounds = scores.error_bounds(rows).values
            assert bool(((scores.values - exact).abs() <= bounds).all())

    @pytest.mark.parametrize("damping", [1e-2, 1.0])
    def test_gradients_that_float32_rounds(self, damping: float) -> None:
        """A linear net that all but interpolates: what is left of a residual in float32 is far from
        it, and so is each gradient; the scores are then off by what the bound must hold."""
        seeded()
        layer = nn.Linear(12, 2)
        w, x = torch.randn(2, 12), torch.randn(70, 12)
        y = x @ w.T
        y[60:] += 1
        y[:60] += 1e-5 * torch.randn(60, 2)
        with torch.no_grad():
            layer.weight.copy_(w)
            layer.bias.zero_()
        problem = cf.Problem(layer, cf.MSE(), (x[:60], y[:60]), (x[60:], y[60:]))
        at = cf.Absolute(damping)
        exact = cf.influence(problem.to(torch.float64), cf.GGN(Matrix()), damping=at).values
        for rung in (cf.EKFAC(), cf.GGN(Matrix()), cf.GGN(SelectedRows(30))):
            scores = cf.influence(problem, rung, damping=at)
            error = (scores.values.double() - exact).abs()
            assert bool((error <= scores.error_bounds().values).all())

    @pytest.mark.parametrize("damping", [1.0, 1e4])
    def test_bfloat16_passes(self, damping: float) -> None:
        problem = fitted(torch.float32, autocast=torch.bfloat16)
        at = cf.Absolute(damping)
        exact = cf.influence(problem.to(torch.float64), cf.GGN(Matrix()), damping=at).values
        for rung in (cf.EKFAC(), cf.GGN(SelectedRows(60))):
            scores = cf.influence(problem, rung, damping=at)
            error = (scores.values.double() - exact).abs()
            assert bool((error <= scores.error_bounds().values).all())

    def test_compressed_queries(self) -> None:
        """Bounds and certificates are of the scores that there are, not of those at full rank."""
        problem, at = zoo_problem("cnn with groups"), cf.Absolute(10.0)
        exact = cf.influence(problem, cf.GGN(Matrix()), damping=at).values
        whole = cf.influence(problem, cf.EKFAC(), damping=at)
        scores = cf.influence(problem, cf.EKFAC(), damping=at, compress=0.9)
        error = (scores.values - exact).abs()
        assert bool((error <= scores.error_bounds().values).all())
        assert scores.certificate().worst > 2 * whole.certificate().worst

    def test_by_hand(self) -> None:
        """√(g_nᵀP⁻¹g_n) √(r_qᵀP⁻¹r_q)/N with dense matrices."""
        problem, at = fitted(weight_decay=1e-3), cf.Absolute(1e-3)
        scores = cf.influence(problem, cf.KFAC(), damping=at)
        curvature = cf.fit(problem, cf.KFAC())
        shift = curvature.shift(at)
        selection = select(FisherPass(problem, cf.Type2()), shift, 25)
        rows, n = selection.rows.to_dense()[:, 0], 90
        inverse = torch.linalg.inv(rows.T @ rows / n + shift.diag())
        layout = discover(problem)
        g_n = training_gradients(problem, layout).to_dense()[:, 0]
        whole = dense_rows(problem).flatten(0, 1)
        a = whole.T @ whole / n + shift.diag()
        from curvfluence.jacobian.gradients import query_gradients

        g_q = query_gradients(problem, layout).to_dense()[:, 0]
        r_q = g_q - curvature.solve(g_q, at) @ a
        of_n = ((g_n @ inverse) * g_n).sum(1).sqrt()
        of_q = ((r_q @ inverse) * r_q).sum(1).sqrt()
        found = scores.error_bounds(25)
        assert torch.allclose(found.values, of_q[:, None] * of_n / n, rtol=1e-6)
        assert found.rows == 25
        assert found.share == pytest.approx(selection.share)
        assert torch.equal(found.worst, found.values.amax(1))
        assert "against the exact GGN: no score is off by more than" in str(found)

    def test_a_certificate_has_them_where_they_are_asked_for(self) -> None:
        problem, at = fitted(), cf.Absolute(1e-2)
        scores = cf.influence(problem, cf.EKFAC(), damping=at)
        assert scores.certificate().bounds is None
        found = scores.certificate(bounds=True)
        assert found.bounds is not None
        assert torch.equal(found.bounds.values, scores.error_bounds().values)
        assert str(found).endswith(found.bounds.said)
        proven = found.bounds.signs(scores.values)
        exact = cf.influence(problem, cf.GGN(Matrix()), damping=at).values
        assert bool((exact.sign() == scores.values.sign())[proven].all())
        bounded = cf.influence(problem, cf.GGN(), damping=at, bound_tolerance=1e-3)
        assert bounded.certificate().bounds is bounded.bounds
        assert bounded.certificate("Hessian").bounds is None
        with pytest.raises(cf.errors.InputError, match="against the exact GGN alone"):
            scores.certificate("Hessian", bounds=True)

    def test_exact_scores_have_next_to_no_error(self) -> None:
        problem, at = fitted(), cf.Absolute(1e-2)
        scores = cf.influence(problem, cf.GGN(Matrix()), damping=at)
        assert float(scores.error_bounds().values.max()) < 1e-9 * float(scores.values.abs().max())

    def test_refused(self) -> None:
        problem = fitted()
        identity = cf.influence(problem, cf.Identity())
        with pytest.raises(cf.errors.InputError, match="no error to bound"):
            identity.error_bounds()
        newton = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.1), leverage=True)
        with pytest.raises(cf.errors.InputError, match="leverage-corrected scores are another"):
            newton.error_bounds()
        scores = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(0.1))
        with torch.no_grad():
            problem.theta["0.weight"].add_(1.0)
        with pytest.raises(cf.errors.InputError, match="differs in the weights, and bounds"):
            scores.error_bounds()


class TestCloser:
    """`influence(tolerance=, bound_tolerance=)`, and more rows where residuals stay."""

    def test_a_tolerance_replaces_the_forms_own(self) -> None:
        given = fitted()
        form = cf.inversion.SelectedRows(count=5, tolerance=0.5)
        curvature = cf.fit(given, cf.GGN(form))
        loose = cf.influence(given, curvature, damping=cf.Absolute(1e-3))
        close = cf.influence(given, curvature, damping=cf.Absolute(1e-3), tolerance=1e-8)
        assert loose.residuals is not None
        assert close.residuals is not None
        assert max(close.residuals) <= 1e-8 < max(loose.residuals)
        assert any("wanted 1e-08" in note for note in close.notes)
        true = cf.influence(given, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(1e-3))
        assert torch.allclose(close.values, true.values, rtol=1e-5, atol=1e-9)
        direct = cf.influence(
            given, cf.GGN(cf.inversion.Matrix()), damping=cf.Absolute(1e-3), tolerance=0.5
        )
        assert torch.equal(direct.values, true.values)

    def test_bounds_come_down_to_what_was_asked(self) -> None:
        given = fitted()
        damping = cf.Absolute(1e-2)
        rung = cf.GGN(cf.inversion.SelectedRows(count=20, tolerance=1e-2))
        true = cf.influence(given, cf.GGN(cf.inversion.Matrix()), damping=damping).values
        wanted = 1e-6 * float(true.abs().max())
        first = cf.influence(given, rung, damping=damping)
        assert float(first.error_bounds().values.max()) > wanted, "nothing to do"
        scores = cf.influence(given, rung, damping=damping, bound_tolerance=wanted)
        assert scores.bounds is not None
        assert float(scores.bounds.values.max()) <= wanted
        assert bool(((scores.values - true).abs() <= scores.bounds.values).all())
        some = scores[[1, 0]].bounds
        assert some is not None
        assert torch.equal(some.values, scores.bounds.values[[1, 0]])

    def test_few_products_are_not_spent_on_new_rows(self) -> None:
        """With too few left to profit, iteration goes on with the directions that it has."""
        given = fitted()
        at = cf.Absolute(1e-5)
        left: list[float] = []
        for most in (1, 8000):
            form = cf.inversion.SelectedRows(1, 1e-10, max_products=25, most=most)
            scores = cf.influence(given, cf.GGN(form), damping=at)
            assert scores.residuals is not None
            left.append(max(scores.residuals))
        assert left[1] == left[0]

    def test_a_bound_below_rounding_ends(self) -> None:
        with pytest.warns(CurvfluenceWarning, match="what is left is rounding"):
            scores = cf.influence(
                fitted(),
                cf.GGN(SelectedRows(50)),
                damping=cf.Absolute(1e-2),
                bound_tolerance=1e-300,
            )
        assert scores.bounds is not None

    def test_what_is_not_reached_is_said(self) -> None:
        given = fitted()
        rung = cf.GGN(cf.inversion.SelectedRows(count=1, tolerance=1e-2, max_products=2))
        with pytest.warns(CurvfluenceWarning) as told:
            scores = cf.influence(given, rung, damping=cf.Absolute(1e-3), bound_tolerance=1e-12)
        assert any("more products" in str(one.message) for one in told)
        assert scores.bounds is not None
        assert any("wanted 1e-12" in note for note in scores.notes)

    @pytest.mark.parametrize(
        ("rung", "settings", "said"),
        [
            (cf.EKFAC(), {"bound_tolerance": 1e-3}, "no residual of EKFAC changes"),
            (cf.GGN(), {"bound_tolerance": 0.0}, "above 0"),
            (cf.GGN(), {"bound_tolerance": 1e-3, "leverage": True}, "plain scores"),
            (cf.GGN(), {"tolerance": 1.5}, "tolerance must lie between 0 and 1"),
        ],
    )
    def test_bad_input(self, rung: cf.Rung, settings: dict[str, float], said: str) -> None:
        with pytest.raises(InputError, match=said):
            cf.influence(fitted(), rung, **settings)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("kind", ["GGN", "Hessian"])
    def test_more_rows_are_selected_where_residuals_do_not_fall(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two rows and a patience of one product: four times as many, as long as there are products
        to profit from, and the solution is the exact one."""
        given = fitted()
        monkeypatch.setattr(selected_rows, "PATIENCE", 1)
        monkeypatch.setattr(selected_rows, "PROGRESS", 1e-6)
        monkeypatch.setattr(selected_rows, "ENOUGH", 1)
        counts: list[int] = []
        once = selected_rows.select

        def counted(chunks: object, shift: torch.Tensor, count: int) -> selected_rows.Selection:
            counts.append(count)
            return once(chunks, shift, count)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(selected_rows, "select", counted)
        form = cf.inversion.SelectedRows(count=2, tolerance=1e-8, max_products=400, most=32)
        rung, exact = (
            (cf.GGN(form), cf.GGN(cf.inversion.Matrix()))
            if kind == "GGN"
            else (cf.Hessian(Plain(), form=form), cf.Hessian(Plain()))
        )
        scores = cf.influence(given, rung, damping=cf.Absolute(1e-3))
        assert counts == [2, 8, 32]
        true = cf.influence(given, exact, damping=cf.Absolute(1e-3))
        assert torch.allclose(scores.values, true.values, rtol=1e-5, atol=1e-9)
        assert any(f"{counts[-1]:,} selected rows" in note for note in scores.notes)
