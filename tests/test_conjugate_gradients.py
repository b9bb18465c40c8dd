"""Block conjugate gradients: against a direct solve, when they stop, and what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.block_conjugate_gradients import (
    DEPENDENT,
    BlockSolution,
    _State,  # pyright: ignore[reportPrivateUsage]
    block_conjugate_gradients,
    most_directions,
)
from curvfluence.runtime import journal
from curvfluence.store.steps import Steps
from tests.problems import seeded


def system(rows: int) -> tuple[Tensor, Tensor]:
    seeded()
    z = torch.randn(25, 40, dtype=torch.float64)
    matrix = z.T @ z / 25 + 0.05 * torch.eye(40, dtype=torch.float64)
    return matrix, torch.randn(rows, 40, dtype=torch.float64)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


class Killed(BaseException):
    """As a kill would be: nothing catches it."""


class TestKept:
    """A solve that was interrupted goes on where it was, and one that was done is read."""

    @pytest.fixture(autouse=True)
    def kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal, "SHARE", 0.0)
        self.folder = tmp_path
        self.matrix, self.b = system(4)
        self.b[0] = 0
        self.b[1] = torch.linalg.eigh(self.matrix)[1][:, -1]  # leaves after one step

    def run(self, most: int) -> tuple[BlockSolution | None, int]:
        """As one command of so many products, which is killed at the next; and how many it made."""
        made = 0

        def product(v: Tensor) -> Tensor:
            nonlocal made
            if made == most:
                raise Killed
            made += 1
            return v @ self.matrix

        try:
            with (
                journal.kept_in(Steps(self.folder, {"of": "a test"}), every=0.0),
                journal.work("conjugate gradients") as ours,
            ):
                return self.solved(product, ours), made
        except Killed:
            return None, made

    def solved(
        self, product: Callable[[Tensor], Tensor], ours: journal.Work | None = None
    ) -> BlockSolution:
        """With room for three blocks of directions."""
        return block_conjugate_gradients(
            product, self.b, precondition=lambda r: r, enough_q=1e-9 * self.b.norm(dim=1),
            max_products=99, held=3 * 2 * 3 * 40, kept=ours,
        )  # fmt: skip

    def files(self) -> list[str]:
        return sorted(file.name for file in self.folder.iterdir())

    def test_it_goes_on(self) -> None:
        whole = self.solved(lambda v: v @ self.matrix)
        assert self.run(5) == (None, 5)
        found, made = self.run(99)
        assert found is not None
        assert made == whole.products - 5
        assert (found.products, found.vectors) == (whole.products, whole.vectors)
        assert torch.equal(found.x, whole.x)
        assert torch.equal(found.residual, whole.residual)
        before = self.files()
        again, made = self.run(0)
        assert again is not None
        assert (made, again.products) == (0, whole.products)
        assert torch.equal(again.x, whole.x)
        assert self.files() == before  # nothing was done, so nothing is written

    def test_the_whole_is_kept_where_no_part_was(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(journal.Journal, "due", False)
        whole, _ = self.run(99)
        again, made = self.run(0)
        assert whole is not None
        assert again is not None
        assert (made, again.products) == (0, whole.products)
        assert torch.equal(again.x, whole.x)

    def test_all_of_it_goes_to_a_device(self) -> None:
        """What is kept is read to the CPU."""
        at = _State(self.b, self.b, 1, 4, [(self.b, self.b, self.matrix)])
        there = at.to(torch.device("meta"))
        for part in (there.x, there.residual, *there.before[0]):
            assert part.device.type == "meta"
        assert (there.products, there.vectors) == (1, 4)


class TestBlockConjugateGradients:
    def solve(self, matrix: Tensor, b: Tensor, tolerance: float, most: int = 40) -> BlockSolution:
        return block_conjugate_gradients(
            lambda v: v @ matrix, b, precondition=lambda r: r / matrix.diagonal(),
            enough_q=tolerance * b.norm(dim=1), max_products=most,
        )  # fmt: skip

    def test_against_a_direct_solve(self) -> None:
        matrix, b = system(5)
        b[2] = 0
        b[3] = 2 * b[0] - b[1]  # dependent: it comes for nothing
        b[4] *= 1e-12
        found = self.solve(matrix, b, 1e-11)
        wanted = torch.linalg.solve(matrix, b.T).T
        assert torch.allclose(found.x, wanted, rtol=1e-8, atol=0)
        assert torch.allclose(found.residual, b - found.x @ matrix, atol=1e-12)
        assert found.vectors <= 3 * found.products

    def test_rows_that_are_done_give_no_direction(self) -> None:
        matrix, b = system(4)
        b[0] = torch.linalg.eigh(matrix)[1][:, -1]  # an eigenvector: one step
        widths: list[int] = []
        preconditioned: list[int] = []

        def product(v: Tensor) -> Tensor:
            widths.append(len(v))
            return v @ matrix

        def precondition(v: Tensor) -> Tensor:
            preconditioned.append(len(v))
            return v

        block_conjugate_gradients(
            product, b, precondition=precondition, enough_q=1e-9 * b.norm(dim=1), max_products=99
        )
        assert widths[:2] == [4, 3]
        assert preconditioned == widths  # once for each product, and never of nothing

    def test_an_exact_preconditioner_takes_one_step(self) -> None:
        matrix, b = system(4)
        inverse = torch.linalg.inv(matrix)
        found = block_conjugate_gradients(
            lambda v: v @ matrix, b, precondition=lambda v: v @ inverse,
            enough_q=1e-9 * b.norm(dim=1), max_products=99,
        )  # fmt: skip
        assert found.products == 1

    @pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-8])
    def test_it_stops_at_the_first_product_that_is_enough(self, tolerance: float) -> None:
        matrix, b = system(4)
        found = self.solve(matrix, b, tolerance)
        before = self.solve(matrix, b, tolerance, found.products - 1)
        worst = [float((one.residual.norm(dim=1) / b.norm(dim=1)).max()) for one in (before, found)]
        assert worst[1] <= tolerance < worst[0]

    def test_what_is_held_of_a_small_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sixteenth of it, and 2²⁸ numbers at most."""
        cpu = torch.device("cpu")
        place = "curvfluence.curvature.operators.block_conjugate_gradients.machine.memory"
        monkeypatch.setattr(place, lambda _: 2**40)
        assert most_directions(cpu, torch.float32) == 2**28
        monkeypatch.setattr(place, lambda _: 2**30)
        assert most_directions(cpu, torch.float32) == 2**24
        assert most_directions(cpu, torch.float64) == 2**23

    def test_rows_whose_squares_vanish(self) -> None:
        matrix, b = system(3)
        b[1] *= 10  # of different sizes, and all of squares below float32
        single = 1e-30 * b.float()
        found = block_conjugate_gradients(
            lambda v: v @ matrix.float(), single, precondition=lambda r: r,
            enough_q=1e-35 * b.norm(dim=1), max_products=40,
        )  # fmt: skip
        wanted = torch.linalg.solve(matrix, b.T).T
        assert relative(1e30 * found.x.double(), wanted) <= 1e-4

    def test_directions_are_orthonormal(self) -> None:
        """Whatever rows of whatever sizes they are of; and they are counted."""
        matrix, b = system(5)
        b[3] = b[0] + 1e-3 * b[1]
        b[4] *= 1e6
        widths: list[int] = []

        def product(p: Tensor) -> Tensor:
            widths.append(len(p))
            eye = torch.eye(len(p), dtype=torch.float64)
            assert torch.allclose(p @ p.T, eye, rtol=0, atol=1e-12)
            return p @ matrix

        found = block_conjugate_gradients(
            product, b, precondition=lambda r: r, enough_q=1e-9 * b.norm(dim=1), max_products=40
        )
        assert (found.products, found.vectors) == (len(widths), sum(widths))

    @pytest.mark.parametrize(("share", "directions"), [(0.8, 1), (1.25, 2)])
    def test_rows_that_are_all_but_parallel(self, share: float, directions: int) -> None:
        """They give one direction where the lesser eigenvalue of their Gram matrix is below
        `DEPENDENT` of the larger."""
        apart = (share * DEPENDENT) ** 0.5
        b = torch.tensor([[1.0, apart], [1.0, -apart]], dtype=torch.float64)
        found = block_conjugate_gradients(
            lambda p: p, b, precondition=lambda r: r, enough_q=torch.zeros(2), max_products=1
        )
        assert found.vectors == directions

    def test_a_row_of_one_place_beside_one_of_all(self) -> None:
        """Largest entries alike, norms 2,000 apart in their squares: neither is dependent."""
        b = torch.ones(2, 2000)
        b[0, 1:] = 0
        b[1, 0] = 0
        found = block_conjugate_gradients(
            lambda p: p, b, precondition=lambda r: r, enough_q=torch.full((2,), 1e-4),
            max_products=9,
        )  # fmt: skip
        assert (found.products, found.vectors) == (1, 2)
        assert torch.allclose(found.x, b, rtol=1e-5, atol=1e-6)

    def test_a_row_that_gives_no_direction(self) -> None:
        """A preconditioner that takes what is left to 0 leaves that row as it is, alone or not."""
        b = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)

        def found(weights: list[float]) -> BlockSolution:
            return block_conjugate_gradients(
                lambda p: p, b, precondition=lambda r: r * torch.tensor(weights),
                enough_q=torch.full((2,), 1e-9), max_products=9,
            )  # fmt: skip

        one, none = found([1.0, 0.0]), found([0.0, 0.0])
        assert torch.equal(one.x, torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64))
        assert one.products == 1
        assert torch.equal(none.residual, b)
        assert none.products == 0

    def test_a_block_does_in_fewer_products(self) -> None:
        """40 dimensions: five directions at a time leave nothing after eight products, but for what
        rounding does to their conjugacy (one more)."""
        matrix, b = system(5)
        assert self.solve(matrix, b, 1e-9).products <= 9
        assert self.solve(matrix, b[:1], 1e-9).products > 16

    def test_each_row_is_the_best_of_the_space(self) -> None:
        """After k products every row's error is least, in A's norm, over all directions so far."""
        matrix, b = system(5)
        diagonal = matrix.diagonal()
        block = (b / diagonal).T
        space = [block]
        for _ in range(2):
            block = (matrix @ block) / diagonal[:, None]
            space.append(block)
        basis = torch.cat(space, 1)
        best = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ b.T)
        found = self.solve(matrix, b, 1e-14, most=3)
        assert found.products == 3
        assert torch.allclose(found.x, best.T, rtol=1e-6, atol=1e-9)

    def test_a_residual_of_just_what_is_enough(self) -> None:
        b = torch.tensor([[3.0, 4.0], [6.0, 8.0]], dtype=torch.float64)
        matrix = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
        widths: list[int] = []

        def product(p: Tensor) -> Tensor:
            widths.append(len(p))
            return p @ matrix

        block_conjugate_gradients(
            product, b, precondition=lambda r: r, enough_q=torch.tensor([5.0, 10.0]), max_products=9
        )
        assert widths == []

    def test_patience(self) -> None:
        """It goes on where every residual is what it was to be by then, and else says what it came
        to."""
        matrix, b = system(5)
        reached = torch.linalg.vector_norm(self.solve(matrix, b, 1e-9, 2).residual, dim=1)

        def patient(norms: Tensor) -> BlockSolution:
            return block_conjugate_gradients(
                lambda v: v @ matrix, b, precondition=lambda r: r / matrix.diagonal(),
                enough_q=1e-9 * b.norm(dim=1), max_products=40, patience=(2, norms),
            )  # fmt: skip

        assert not patient(1.01 * reached).slow
        reached[3] *= 0.99
        found = patient(reached)
        assert found.slow
        assert (found.products, found.vectors) == (2, 10)
        assert torch.allclose(found.residual, b - found.x @ matrix, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("norm", [5.0, 4.99])
    def test_patience_to_the_last_bit(self, norm: float) -> None:
        found = block_conjugate_gradients(
            lambda v: v, torch.tensor([[3.0, 4.0]]), precondition=lambda r: r,
            enough_q=torch.tensor([1e-3]), max_products=9, patience=(0, torch.tensor([norm])),
        )  # fmt: skip
        assert found.slow == (norm < 5)
        assert found.products == (norm == 5)

    def hard(self, held: int | None, most: int) -> tuple[BlockSolution, list[Tensor], Tensor]:
        """(what two rows come to, their directions, ‖b − A x‖/‖b‖) in float32, of eigenvalues over
        seven decades."""
        n, directions = 300, list[Tensor]()
        values = torch.logspace(4, -3, n, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
        matrix = (basis * values) @ basis.T
        b = torch.randn(2, n, generator=generator, dtype=torch.float64) @ (basis * values.sqrt()).T

        def product(p: Tensor) -> Tensor:
            directions.append(p)
            return p @ matrix.float()

        found = block_conjugate_gradients(
            product, b.float(), precondition=lambda r: r, enough_q=torch.full((2,), 1e-9),
            max_products=most, held=held,
        )  # fmt: skip
        curved = torch.cat(directions).double()
        curved = curved @ matrix @ curved.T
        size = curved.diagonal().sqrt()
        left = (b - found.x.double() @ matrix).norm(dim=1) / b.norm(dim=1)
        return found, directions, curved / size / size[:, None] if most < 40 else left

    def test_directions_stay_conjugate(self) -> None:
        """To all that are held, at the end too; else rounding brings the first ones back, and
        residuals stand still where they would fall."""
        own = torch.block_diag(*[torch.ones(2, 2)] * 30).bool()  # those of one block are not
        _, _, curved = self.hard(None, 30)
        assert float(curved[~own].abs().max()) < 1e-4
        _, _, curved = self.hard(0, 30)
        assert float(curved[~own].abs().max()) > 0.1
        _, _, left = self.hard(None, 150)
        _, _, standing = self.hard(0, 150)
        assert float(left.max()) < 0.005 < 0.02 < float(standing.min())

    @pytest.mark.parametrize("blocks", [1, 2, 5])
    def test_as_many_as_are_held(self, blocks: int) -> None:
        """The last ones, one at least: to the next before them a direction is as it comes."""
        _, widths, curved = self.hard(blocks * 2 * 2 * 300, 30)
        assert {len(p) for p in widths} == {2}
        for last in (20, 25, 29):
            row = curved[2 * last : 2 * last + 2]
            held = row[:, 2 * (last - blocks) : 2 * last]
            assert float(held.abs().max()) < 1e-4
        less, _, _ = self.hard(blocks * 2 * 2 * 300 - 1, 30)
        same, _, _ = self.hard((blocks - 1) * 2 * 2 * 300, 30)
        assert torch.equal(less.x, same.x)

    def test_not_positive_definite(self) -> None:
        matrix, b = system(5)
        with pytest.raises(cf.errors.SingularError, match="without positive curvature"):
            block_conjugate_gradients(
                lambda v: v @ (matrix - 10 * torch.eye(40)), b, precondition=lambda r: r,
                enough_q=1e-6 * b.norm(dim=1), max_products=20,
            )  # fmt: skip
