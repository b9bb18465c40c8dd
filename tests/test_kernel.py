"""A held kernel by itself: its preconditioner, its sizes and what one improvement does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators import kernel_iteration
from curvfluence.curvature.operators.block_conjugate_gradients import BlockSolution
from curvfluence.curvature.operators.kernel_iteration import (
    FIRST,
    JITTER,
    REDUCE,
    RESTARTS,
    KernelIteration,
)

N = 7


def kernels(r: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(r, 2 * r, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(3, -6, r, dtype=torch.float64)
    return {
        "even": z @ z.T,
        "few hold most": (sizes[:, None] * z) @ (sizes[:, None] * z).T,
        "rank one": torch.outer(z[:, 0], z[:, 0]),
        "nothing": torch.zeros(r, r, dtype=torch.float64),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", kernels(1))
@pytest.mark.parametrize("largest", [1, 5, 100])
def test_preconditioner_and_size_against_dense_algebra(
    name: str, largest: int, dtype: torch.dtype
) -> None:
    """(N I + K_M)⁻¹ with K_M the Nyström approximation, which is K where M is all of the rows."""
    exact, eye = kernels(40)[name], torch.eye(40, dtype=torch.float64)
    given = exact.to(dtype).tril()
    made = KernelIteration.of(given, N, largest)
    assert made.kernel.data_ptr() == given.data_ptr()
    assert torch.allclose(made.kernel, exact.to(dtype), rtol=1e-12)
    assert torch.equal(made.kernel, made.kernel.mT)
    chosen = exact.diagonal().topk(min(largest, 40)).indices
    corner = exact[chosen][:, chosen]
    top = float(corner.diagonal().max()) or 1.0
    corner = corner + kernel_iteration.JITTER * top * torch.eye(len(corner))
    low = exact[:, chosen] @ torch.linalg.solve(corner, exact[chosen])
    r = torch.randn(3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = torch.linalg.solve(low + N * eye, r.T).T
    # in float32 by the rounding of K, over N
    close = 1e-9 if dtype == torch.float64 else 1e-5 * max(1.0, top / N)
    found = made.precondition(r.to(dtype)).double()
    assert float((found - wanted).norm() / wanted.norm()) <= close
    close = 1e-9 if dtype == torch.float64 else 1e-3
    assert torch.allclose(made.product(r.to(dtype)).double(), r @ exact + N * r, rtol=close)
    sizes = ((r @ exact) * r).sum(1).mul(0.3).sqrt() / N
    assert torch.allclose(made.size(r, 0.3), sizes, rtol=close, atol=1e-3 * close)


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_a_kernel_of_dependent_rows_in_float32(factor: float) -> None:
    """More rows than parameters, or examples twice: what rounding leaves has negative pivots."""
    z = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * factor**0.5
    made = KernelIteration.of((z @ z.T).tril(), N, 50)
    r = torch.randn(2, 60, generator=torch.Generator().manual_seed(1))
    exact = z.double() @ z.double().T + N * torch.eye(60, dtype=torch.float64)
    wanted = torch.linalg.solve(exact, r.double().T).T
    found = made.precondition(r).double()
    assert bool(found.isfinite().all())
    assert bool(((found * r).sum(1) > 0).all())
    if factor <= 1:  # beyond it what float32 rounds of K is more than N: a rough preconditioner
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-3


def test_a_kernel_that_is_no_number_ends() -> None:
    kernel = torch.eye(5)
    kernel[3, 1] = torch.nan
    with pytest.raises(cf.errors.SingularError, match="not finite perhaps"):
        KernelIteration.of(kernel, N, 5)


@pytest.mark.parametrize("rows", [1, 2, 6, 7])
def test_both_triangles_from_the_lower_one(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By blocks, with anything above the diagonal before."""
    monkeypatch.setattr(kernel_iteration, "BLOCK", 2)
    exact = kernels(rows)["even"]
    given = exact.tril() + torch.full_like(exact, torch.nan).triu(1)
    assert torch.equal(KernelIteration.of(given, N).kernel, exact.tril() + exact.tril(-1).mT)


@pytest.mark.parametrize(("least", "given", "added"), [
    (0.5, 0.0, 0.0), (-0.5e-7, 0.0, 1e-7), (0.5, 1e-5, 1e-5), (-5e-6, 1e-7, 1e-5),
    (-0.5, 1e-7, 1.0),
])  # fmt: skip
def test_as_little_is_added_as_a_root_takes(least: float, given: float, added: float) -> None:
    """A power of ten times the largest entry, no less than `JITTER` where it is not the first."""
    matrix = torch.diag(torch.tensor([1.0, 4.0, 4 * least], dtype=torch.float64))
    wanted = matrix + 4 * added * torch.eye(3, dtype=torch.float64)
    root = kernel_iteration._root(matrix, given)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(root @ root.mT, wanted, rtol=1e-12, atol=1e-15)


def test_more_than_the_largest_entry_is_never_added() -> None:
    matrix = torch.diag(torch.tensor([1.0, 4.0, -4.01], dtype=torch.float64))
    with pytest.raises(cf.errors.SingularError, match="no rounding explains"):
        kernel_iteration._root(matrix, JITTER)  # pyright: ignore[reportPrivateUsage]


def test_sizes_of_any_rows() -> None:
    """Squares of small numbers would be 0, those of large ones infinite."""
    kernel = kernels(40)["even"]
    made = KernelIteration.of(kernel.clone(), N)
    r = torch.randn(4, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    r[3] = 0
    sizes = torch.tensor([1.0, 1e-200, 1e200, 1.0], dtype=torch.float64)
    wanted = ((r @ kernel) * r).sum(1).mul(0.3).sqrt() / N
    torch.testing.assert_close(made.size(sizes[:, None] * r, 0.3) / sizes, wanted)


class Reduced:
    """Stands for an iteration that takes what is left to just what is enough, or leaves it all;
    with what is enough relative to the size of each row."""

    def __init__(self, made: KernelIteration, matrix: Tensor, *, helps: bool) -> None:
        self.made, self.matrix, self.helps = made, matrix, helps
        self.enough: list[float] = []

    def __call__(
        self,
        product: Callable[[Tensor], Tensor],
        b_qn: Tensor,
        *,
        precondition: Callable[[Tensor], Tensor],
        enough_q: Tensor,
        max_products: int,
        held: int | None = None,
    ) -> BlockSolution:
        assert set(b_qn.abs().amax(1).tolist()) <= {0.0, 1.0}  # squares of small ones would be 0
        norms_q = b_qn.norm(dim=1)
        share = float((enough_q / norms_q).nanmean())
        assert torch.allclose(enough_q, share * norms_q)
        self.enough.append(share)
        assert (max_products, held) == (kernel_iteration.MOST, 0)
        assert torch.equal(product(b_qn), self.made.product(b_qn))
        assert torch.equal(precondition(b_qn), self.made.precondition(b_qn))
        x = torch.linalg.solve(self.matrix, (1 - share) * b_qn.T).T if self.helps else 0 * b_qn
        return BlockSolution(x, b_qn - x @ self.matrix, 3, 3 * len(b_qn))


class TestImprovement:
    """Of y for (N I + K) y = b, of rows of any size, with D of several values: the largest counts
    for what is left."""

    @pytest.fixture(autouse=True)
    def system(self) -> None:
        exact = kernels(40)["even"]
        self.made = KernelIteration.of(exact.clone(), N)
        self.matrix = exact + N * torch.eye(40, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        self.b = torch.randn(4, 40, dtype=torch.float64, generator=generator)
        self.b *= torch.tensor([1.0, 1e-200, 1e150, 0.0], dtype=torch.float64)[:, None]
        self.shift = torch.tensor([0.1, 0.4, 0.2], dtype=torch.float64)
        first = self.made.size(self.b, 0.4)
        self.size_q = first * torch.tensor([1.0, 2.0, 1.5, 0.0], dtype=torch.float64)
        self.size_q[3] = 1.0  # of which the worst is what is left of the first row, relatively

    def improved(
        self, wanted: float, monkeypatch: pytest.MonkeyPatch, *, helps: bool = True
    ) -> tuple[int, list[float], Tensor, Tensor]:
        """(products, what was enough for each iteration, y, ρ)."""
        fake = Reduced(self.made, self.matrix, helps=helps)
        monkeypatch.setattr(kernel_iteration, "block_conjugate_gradients", fake)
        y, rho = torch.zeros_like(self.b), self.b.clone()
        products = self.made.improve(y, rho, self.size_q, wanted, self.shift)
        return products, fake.enough, y, rho

    def share_left(self, y: Tensor) -> Tensor:
        """‖b − (N I + K) y‖/‖b‖ of the rows that are not 0."""
        left = self.b - y @ self.matrix
        unit = self.b[:3].abs().amax(1, keepdim=True)
        return (left[:3] / unit).norm(dim=1) / (self.b[:3] / unit).norm(dim=1)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_to_what_is_wanted(self, dtype: torch.dtype) -> None:
        """By the iteration itself, with a preconditioner that is exact on few rows."""
        made = KernelIteration.of(self.made.kernel.to(dtype), N, 5)
        size_q = made.size(self.b, 0.4)
        size_q[3] = 1.0
        y, rho = torch.zeros_like(self.b), self.b.clone()
        made.improve(y, rho, size_q, 1e-6, self.shift)
        left_q = self.made.size(self.b - y @ self.matrix, 0.4)
        assert float((left_q / size_q).max()) <= 1e-6

    @pytest.mark.parametrize("wanted", [1.0, 1.001 * FIRST])
    def test_one_iteration_is_enough(self, wanted: float, monkeypatch: pytest.MonkeyPatch) -> None:
        products, enough, y, rho = self.improved(wanted, monkeypatch)
        assert enough == [pytest.approx(FIRST)]
        assert products == 3 + 1  # and one for the size of what is left
        assert torch.allclose(self.share_left(y), torch.tensor(FIRST).double(), rtol=1e-6)
        unit = self.b.abs().amax(1, keepdim=True).clamp_min(1e-300)
        torch.testing.assert_close(rho / unit, FIRST * self.b / unit, rtol=1e-6, atol=1e-12)
        assert torch.equal(y[3], torch.zeros_like(y[3]))

    @pytest.mark.parametrize("further", [0.99, 1e-2, 2.1 * REDUCE])
    def test_a_second_one_that_is_foreseen(
        self, further: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To half of what is wanted; what it leaves is looked at by who asks."""
        products, enough, y, _ = self.improved(further * FIRST, monkeypatch)
        assert enough == [pytest.approx(FIRST), pytest.approx(further / 2)]
        assert products == 3 + 1 + 3
        left = torch.tensor(FIRST * further / 2).double()
        assert torch.allclose(self.share_left(y), left, rtol=1e-4)

    def test_a_third_one_on_a_residual_that_did_not_drift(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No iteration is to take away more than `REDUCE`; below `DRIFT` the true residual is made,
        by one product more."""
        products, enough, y, _ = self.improved(1e-3 * FIRST * REDUCE, monkeypatch)
        assert enough == [pytest.approx(one) for one in (FIRST, REDUCE, 0.5e-3)]
        assert products == (3 + 1) + (3 + 1 + 1) + 3
        assert float(self.share_left(y).max()) <= 1e-12

    def test_no_more_iterations_than_are_allowed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_iteration, "REDUCE", 0.09)
        products, enough, y, _ = self.improved(0.0, monkeypatch)
        assert enough == [pytest.approx(FIRST)] + [pytest.approx(0.09)] * (RESTARTS - 1)
        # that of the recurrence at a residual of 1e-4, the true one at 9e-6 and below
        assert products == (3 + 1) + (RESTARTS - 1) * (3 + 1 + 1)
        left = torch.tensor(FIRST * 0.09 ** (RESTARTS - 1)).double()
        assert torch.allclose(self.share_left(y), left, rtol=1e-4)

    def test_where_it_does_not_fall(self, monkeypatch: pytest.MonkeyPatch) -> None:
        products, enough, y, _ = self.improved(0.0, monkeypatch, helps=False)
        assert enough == [pytest.approx(FIRST), pytest.approx(REDUCE)]
        assert products == (3 + 1) + (3 + 1 + 1)
        assert torch.equal(y, torch.zeros_like(y))
