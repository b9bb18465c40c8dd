"""The Hessian behind the GGN's largest rows, as an operator: its pairs, its notes and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.hessian import Abs, Plain
from curvfluence.curvature.inversion import SelectedRows
from curvfluence.curvature.operators import selected_rows_hessian
from curvfluence.curvature.operators.negative_pairs import NegativePairs, negative_pairs
from curvfluence.curvature.operators.selected_rows_hessian import (
    MOST_NEGATIVE,
    SPARED,
    SelectedRowsHessian,
)
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.runtime.said import noted
from tests import oracles
from tests.problems import chain_problem, make, mlp, seeded

FORM = SelectedRows(count=20, tolerance=1e-9, max_products=2000)
DAMPING = 0.01


def operator_of(problem: cf.Problem, treatment: Plain | Abs) -> SelectedRowsHessian:
    operator = cf.fit(problem, cf.Hessian(treatment, form=FORM)).blocks[0].operator
    assert isinstance(operator, SelectedRowsHessian)
    return operator


def spectrum(problem: cf.Problem, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Of H + diag(w), in float64."""
    return torch.linalg.eigh(oracles.dense_hessian(problem) + decay.double().diag())


def damped(problem: cf.Problem, decay: Tensor, damping: float, *, turned: bool) -> Tensor:
    """What is inverted: with `turned` all that is below −λ/100 as its absolute value."""
    values, u = spectrum(problem, decay)
    if turned:
        values = torch.where(values < -SPARED * damping, -values, values)
    return u * (values + damping) @ u.T


def vectors(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pairs_found(monkeypatch: pytest.MonkeyPatch) -> list[NegativePairs]:
    """All that are looked for from here on, each time."""
    found: list[NegativePairs] = []

    def counted(
        product: Callable[[Tensor], Tensor],
        precondition: Callable[[Tensor], Tensor],
        like: Tensor,
        *,
        spared: float,
        most: int,
    ) -> NegativePairs:
        assert most == MOST_NEGATIVE
        found.append(negative_pairs(product, precondition, like, spared=spared, most=most))
        return found[-1]

    monkeypatch.setattr(selected_rows_hessian, "negative_pairs", counted)
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_the_matrix_that_is_inverted(turned: bool) -> None:
    """Told before anything is solved, and then solved with, in any shape."""
    problem = chain_problem()
    operator = operator_of(problem, Abs() if turned else Plain())
    v = vectors(2, 3, problem.parameters.count)
    matrix = damped(problem, problem.decay, DAMPING, turned=turned)
    times = operator.inverted(v, problem.decay, DAMPING)
    torch.testing.assert_close(times, v @ matrix, rtol=0, atol=1e-5)
    x = operator.solve(v, problem.decay, DAMPING)
    torch.testing.assert_close(x @ matrix, v, rtol=0, atol=1e-3)
    back = operator.inverted(x, problem.decay, DAMPING)
    torch.testing.assert_close(back, v, rtol=0, atol=1e-7)


def test_pairs_are_looked_for_once_for_a_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again for another λ or another w, with what either needs."""
    problem = chain_problem()
    found, operator = pairs_found(monkeypatch), operator_of(problem, Abs())
    v, decay = vectors(2, problem.parameters.count), problem.decay
    for k, (w, damping) in enumerate([(decay, 0.01), (decay, 0.02), (2 * decay, 0.02)]):
        x = operator.solve(v, w, damping)
        operator.inverted(x, w, damping)
        other = operator.within(1e-8)
        assert torch.equal(other.solve(v, w, damping), operator.within(1e-8).solve(v, w, damping))
        assert len(found) == k + 1
        assert found[k].spared == SPARED * damping
        matrix = damped(problem, w, damping, turned=True)
        torch.testing.assert_close(x @ matrix, v, rtol=0, atol=1e-3)


def test_pairs_of_float32_are_found_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """By products with H + diag(w), and P as a preconditioner; then they are held as the rest."""
    exact = chain_problem()
    problem = exact.to(torch.float32)
    v = vectors(3, problem.parameters.count)
    seen: list[NegativePairs] = []
    operator = operator_of(problem, Abs())
    decay = problem.decay

    def looked_at(
        product: Callable[[Tensor], Tensor],
        precondition: Callable[[Tensor], Tensor],
        like: Tensor,
        *,
        spared: float,
        most: int,
    ) -> NegativePairs:
        matrix = oracles.dense_hessian(problem.to(torch.float64)) + decay.double().diag()
        torch.testing.assert_close(product(v), v @ matrix, rtol=1e-9, atol=1e-12)
        z_rp = operator.selected(decay + DAMPING)[0].rows.to_dense()[:, 0].double()
        p = z_rp.T @ z_rp / len(problem.train) + (decay + DAMPING).double().diag()
        torch.testing.assert_close(precondition(v) @ p, v, rtol=0, atol=1e-3)
        assert precondition(v).dtype == like.dtype == torch.float64
        seen.append(negative_pairs(product, precondition, like, spared=spared, most=most))
        return seen[-1]

    monkeypatch.setattr(selected_rows_hessian, "negative_pairs", looked_at)
    with noted():
        times = operator.inverted(v.float(), decay, DAMPING)
    wanted = v @ damped(exact, decay, DAMPING, turned=True)
    torch.testing.assert_close(times.double(), wanted, rtol=0, atol=1e-4)
    assert times.dtype == torch.float32
    held = operator.nbytes - operator.selected(decay + DAMPING)[0].rows.nbytes
    assert held == 4 * seen[0].vectors.numel()


class TestNotes:
    def test_of_negative_pairs(self) -> None:
        problem = chain_problem()
        operator = operator_of(problem, Abs())
        assert operator.note(DAMPING) is None
        assert operator.nbytes == 0
        operator.solve(vectors(2, problem.parameters.count), problem.decay, DAMPING)
        values, _ = spectrum(problem, problem.decay)
        count = int((values < -SPARED * DAMPING).sum())
        units = "; a relative damping is in units of the GGN's mean eigenvalue, not of H's"
        pairs = (
            f"; {count} eigenvalues of H + diag(w) below −λ/100, the lowest {values[0]:.3g}: abs"
        )
        note, other = operator.note(DAMPING), operator.note(2 * DAMPING)
        assert note is not None
        assert other is not None
        assert note.startswith("20 selected rows, ")
        assert note.endswith(units + pairs)
        assert other.endswith(units)  # they were found at another λ

    def test_of_none(self) -> None:
        """A net of one layer: H is the GGN."""
        seeded()
        problem = make(mlp(5, 3), cf.CrossEntropy(), outputs=3)
        operator = operator_of(problem, Abs())
        operator.solve(vectors(2, problem.parameters.count), problem.decay, DAMPING)
        note = operator.note(DAMPING)
        assert note is not None
        assert note.endswith("; no eigenvalue of H + diag(w) below −λ/100")

    def test_of_plain(self) -> None:
        problem = chain_problem()
        operator = operator_of(problem, Plain())
        operator.solve(vectors(2, problem.parameters.count), problem.decay, 5.0)
        note = operator.note(5.0)
        assert note is not None
        assert note.endswith("not of H's")


def wavy(output: Tensor, target: Tensor) -> Tensor:
    return 1 - torch.cos(output + 2).mean(-1)


class TestRefusals:
    def test_no_damping(self) -> None:
        problem = make(mlp(5, 4, 3), cf.CrossEntropy(), weight_decay=0.0)
        v = vectors(1, problem.parameters.count)
        operator = operator_of(problem, Abs())
        for solve in (operator.solve, operator.inverted):
            with pytest.raises(InputError, match="needs λ > 0: which μ"):
                solve(v, problem.decay + 0.1, 0.0)
        with pytest.raises(InputError, match=r"every parameter needs w \+ λ > 0"):
            operator.solve(v, problem.decay, 0.0)

    def test_rows_of_a_loss_that_is_not_convex(self) -> None:
        seeded()
        problem = make(mlp(5, 4, 3), cf.CustomLoss(wavy))
        v = vectors(1, problem.parameters.count)
        with pytest.raises(InputError, match="before the iteration that are clipped"):
            operator_of(problem, Plain()).solve(v, problem.decay, DAMPING)

    @pytest.mark.parametrize("loss", [cf.CustomLoss(wavy, clip_negative=True), cf.CrossEntropy()])
    def test_rows_that_overflow(self, loss: cf.Loss) -> None:
        """Of a loss that is convex, or clipped, the error is that of the rows."""
        seeded()
        problem = make(mlp(5, 4, 3), loss, weight_decay=0.0).to(torch.float32)
        v = vectors(1, problem.parameters.count).float()
        with pytest.raises(NonFiniteError, match=r"^norms of rows .*torch.float64\)$"):
            operator_of(problem, Plain()).solve(v, problem.decay, 1e-44)
