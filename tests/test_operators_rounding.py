"""What is said and refused where rounding shows, and how much of a spectrum counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvfluence.curvature.operators.definite import require_definite_eigenvalues, require_positive
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.dense import Dense
from curvfluence.curvature.operators.diagonal import DiagonalOperator
from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.mean_eigenvalue import (
    MeanEigenvalue,
    of_definite,
    of_parts,
    of_spectrum,
)
from curvfluence.curvature.operators.operator import squared
from curvfluence.curvature.operators.solve import cholesky_solve
from curvfluence.errors import SingularError
from curvfluence.jacobian.terms import Outer
from curvfluence.runtime.said import noted
from tests.operators import drawn


class TestTrust:
    """What rounding leaves of solutions in float32 is looked at, and refused above a bound."""

    def near_singular(self) -> Tensor:
        """Two rows nearly alike, and two apart that are solved exactly."""
        block = torch.tensor([[1.0, 1 - 1e-3], [1 - 1e-3, 1.0]])
        return torch.block_diag(block, torch.eye(2))

    @pytest.fixture
    def rounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A factor whose smallest eigenvalue is off by 7%, as rounding may leave it (what it leaves
        of a given matrix is the machine's to say): (1, 0.3) is solved badly and (1, 1) well."""
        real, along = torch.linalg.cholesky_ex, torch.tensor([0.5, -0.5, 0.0, 0.0])

        def off(matrix: Tensor) -> object:
            return real(matrix + 2 * 0.07 * 1e-3 * torch.outer(along, along))

        monkeypatch.setattr(torch.linalg, "cholesky_ex", off)

    good, bad = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.3, 0.0, 0.0])

    @pytest.mark.usefixtures("rounded")
    @pytest.mark.parametrize("place", [0, 1, 2])
    @pytest.mark.parametrize("scale", [1.0, 2.0**-30])
    def test_one_bad_of_few(self, place: int, scale: float) -> None:
        v = self.good.expand(3, 4).clone()
        assert bool(cholesky_solve(self.near_singular(), scale * v).isfinite().all())
        v[place] = self.bad
        with pytest.raises(SingularError, match="rounding moves a solution by about 7% of itself"):
            cholesky_solve(self.near_singular(), scale * v)

    @pytest.mark.usefixtures("rounded")
    def test_beside_a_large_one(self) -> None:
        """Each is held to its own size."""
        large = torch.tensor([0.0, 0.0, 1e9, 0.0])
        with pytest.raises(SingularError, match="7%"):
            cholesky_solve(self.near_singular(), torch.stack([large, self.bad]))

    def test_beside_a_small_one(self) -> None:
        moved = torch.stack([1e9 * self.bad, torch.tensor([0.0, 0.0, 1e-3, 0.0])])
        assert bool(cholesky_solve(self.near_singular(), moved).isfinite().all())

    def test_nothing_to_solve(self) -> None:
        for v in (torch.zeros(2, 4), torch.zeros(0, 4)):
            assert torch.equal(cholesky_solve(self.near_singular(), v), v)

    def test_eight_of_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check costs a few solves, whatever the number of right-hand sides."""
        seen: list[int] = []
        real = torch.cholesky_solve

        def counted(v: Tensor, factor: Tensor) -> Tensor:
            seen.append(v.shape[1])
            return real(v, factor)

        monkeypatch.setattr(torch, "cholesky_solve", counted)
        cholesky_solve(torch.eye(4), torch.ones(100, 4))
        assert seen == [100, 8]

    def test_eigenvalues(self) -> None:
        """A small one is no fault where nothing lies along it."""
        basis = Eigen(torch.eye(2), torch.tensor([1.0, 0.0]))
        decay = torch.zeros(2)
        found = basis.solve(torch.tensor([[1.0, 0.0]]), decay, 1e-8)
        torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]]))
        with pytest.raises(SingularError, match="damped eigenvalues cannot be inverted in float32"):
            basis.solve(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), decay, 1e-8)

    def test_a_uniform_decay_takes_no_factor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: Tensor) -> Tensor:
            raise AssertionError

        monkeypatch.setattr("curvfluence.curvature.operators.eigen.cholesky_solve", never)
        for n in (1, 3):
            basis = Eigen(torch.eye(n).double(), torch.ones(n).double())
            decay = torch.full((n,), 0.5, dtype=torch.float64)
            v = torch.ones(1, n, dtype=torch.float64)
            torch.testing.assert_close(basis.solve(v, decay, 0.5), v / 2)
        assert Dense(torch.eye(3).double(), rank=1).mean_eigenvalue().count == 1


class TestDenominator:
    eps = torch.finfo(torch.float32).eps

    def test_whose_rounding_matters(self) -> None:
        """Below 10 ε of the largest; of a lookup, of the largest of its own input."""
        assert Denominator.of(torch.tensor([1.0, 11 * self.eps])).error is None
        error = Denominator.of(torch.tensor([1.0, 9 * self.eps])).error
        torch.testing.assert_close(error, torch.tensor([self.eps, 1 / 9]))
        apart = torch.tensor([[1.0, 1e-9], [2.0, 2e-9]])
        assert Denominator.of(apart, by_input=True).error is None
        assert Denominator.of(apart).error is not None
        mixed = torch.tensor([[1.0, 1e-9], [2.0, 1e-18]])
        error = Denominator.of(mixed, by_input=True).error
        wanted = self.eps * torch.tensor([[2.0, 1.0], [1.0, 1e9]])
        torch.testing.assert_close(error, wanted)

    def test_however_far_apart(self) -> None:
        Denominator.of(torch.tensor([1e30, 1e-30]))
        for bad in (0.0, -1e-30):
            with pytest.raises(SingularError, match="cannot be inverted"):
                Denominator.of(torch.tensor([1.0, bad]))

    def test_each_solution_by_its_own_size(self) -> None:
        """x's share that rounding moves: 1/9 of what lies along the small one."""
        denominator = Denominator.of(torch.tensor([1.0, 9 * self.eps]))
        along, across = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
        denominator.require_trusted(torch.stack([across, 1e-6 * across, 0 * across]))
        denominator.require_trusted(torch.stack([across, across + 0.8 * along]))
        denominator.require_trusted(torch.zeros(0, 2))
        for scale in (1e-6, 1.0, 1e6):
            with pytest.raises(SingularError, match=r"inverted in float32: .*about 11% of itself"):
                denominator.require_trusted(torch.stack([1e9 * across, scale * along]))
        # a small one is not held to what a large one was moved by
        large = 1e9 * (across + 0.5 * along)
        denominator.require_trusted(torch.stack([large, 1e-6 * across]))
        table = Denominator.of(torch.tensor([[1.0, 9 * self.eps], [1.0, 1.0]]))
        bad = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
        table.require_trusted(bad[1:])
        with pytest.raises(SingularError, match="about 11%"):
            table.require_trusted(bad)
        # with more axes before them: one bad among good ones of the same batch
        both = torch.stack([across, along + 1e-9 * across])
        denominator.require_trusted(across.expand(2, 3, 2))
        for batch in (both[None], both[:, None], both.expand(3, 2, 2)):
            with pytest.raises(SingularError, match="about 11%"):
                denominator.require_trusted(batch)
        mixed = torch.stack([1e9 * across, 1e-3 * across + 5e8 * along])
        denominator.require_trusted(mixed[:1, None].expand(1, 2, 2))

    @pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
    def test_rows_whose_solutions_are_not_formed(self, scale: float) -> None:
        """The same is said of s ⊗ a as of what it solves to."""
        table = torch.tensor([[1.0, 1e-3], [5e-7, 3e-3]])
        denominator = Denominator.of(table)
        refused = 0
        for s in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1e9, 1.0)):
            for a in ((1.0, 0.0), (0.0, 1.0), (1.0, 1e-3)):
                row = Outer(torch.tensor([a]), scale * torch.tensor([[s]]))
                told: list[str] = []
                for trust in (
                    lambda row=row: denominator.require_trusted_rows(row),
                    lambda row=row: denominator.require_trusted(row.dense()[:, 0] / table),
                ):
                    try:
                        trust()
                    except SingularError as error:
                        told.append(str(error))
                    else:
                        told.append("")
                assert told[0] == told[1], (s, a)
                refused += bool(told[0])
        assert 0 < refused < 12

    def test_shares(self) -> None:
        denominator = Denominator(torch.ones(2, dtype=torch.float64), None)
        denominator.require_small(torch.zeros(0))
        denominator.require_small(torch.tensor([0.0999]))
        denominator.require_trusted(torch.full((1, 2), torch.nan))  # nothing was asked of it
        for share in (0.101, torch.nan):
            with pytest.raises(SingularError, match="cannot be inverted in float64"):
                denominator.require_small(torch.tensor([0.0, share]))


class TestMeanEigenvalue:
    def test_of_parts(self) -> None:
        parts = [MeanEigenvalue(2.0, 3), MeanEigenvalue(0.0, 0), MeanEigenvalue(0.5, 4)]
        assert of_parts(parts, None) == MeanEigenvalue(8 / 7, 7)
        assert of_parts(parts, 9) == MeanEigenvalue(8 / 7, 7)
        assert of_parts(parts, 2) == MeanEigenvalue(4.0, 2)
        assert of_parts(parts[1:2], None) == MeanEigenvalue(0.0, 0)
        assert of_parts(parts, 0) == MeanEigenvalue(0.0, 0)

    def test_rounding_is_not_counted(self) -> None:
        """n ε of float64 in every dtype, or what is left of a row that is 0, squared."""
        eps64, eps32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
        values = torch.tensor([1.0, 1.9 * eps64], dtype=torch.float64)
        assert of_spectrum(values).count == 1
        assert of_spectrum(torch.tensor([1.0, 2.1 * eps64], dtype=torch.float64)).count == 2
        floor = (10 * eps32) ** 2
        assert of_spectrum(torch.tensor([1.0, 0.9 * floor])).count == 1
        assert of_spectrum(torch.tensor([1.0, 1.1 * floor])).count == 2
        found = of_spectrum(torch.tensor([-3.0, 1.0, 0.0], dtype=torch.float64))
        assert found == MeanEigenvalue(2.0, 2)
        assert of_definite(torch.tensor([4.0, 2.0, 0.0]).double(), 1) == MeanEigenvalue(6.0, 1)


class TestHelpers:
    def test_stopped_short(self) -> None:
        """Said above twice what was wanted, by operators that iterate alone."""

        class Iterated(DiagonalOperator):
            tolerance = 0.01

        operator = Iterated(torch.ones(2))
        for residuals, said in (
            ([0.0, 0.0199], False), ([0.5, 0.021], True), ([0.025], True),
            ([torch.nan], True), ([], False),
        ):  # fmt: skip
            with noted() as notes:
                operator.tell_short(torch.tensor(residuals))
            assert bool(notes) == said
            if said:
                assert "0.01 was wanted" in notes[0]
        with noted() as notes:
            DiagonalOperator(torch.ones(2)).tell_short(torch.tensor([9.0]))
        assert not notes

    def test_squares_by_slices(self) -> None:
        a, b = drawn(1200, 3), drawn(1200, 3) + 1
        assert squared(a) == pytest.approx(float(a.square().sum()))
        assert squared(a, b) == pytest.approx(float((a - b).square().sum()))
        with pytest.raises(ValueError, match="zip"):
            squared(a, b[:512])

    def test_how_much_more_damping(self) -> None:
        """The floor is n ε of the largest: what lies below it says how much more would do."""
        require_positive(2.1, 1.0, n=2, eps=1.0, what="M")
        with pytest.raises(SingularError, match=r"M cannot .* pivot\) is 1.5 next to 4.*: 6 more"):
            require_positive(1.5, 4.0, n=2, eps=1.0, what="M")
        with pytest.raises(SingularError, match=r"is 0 next to 0\. Use a larger damping, or"):
            require_positive(0.0, 0.0, n=2, eps=1.0, what="M")
        with pytest.raises(SingularError, match=r"is nan next to 1\. Use a larger damping, or"):
            require_positive(torch.nan, 1.0, n=0, eps=1.0, what="M")
        eps = torch.finfo(torch.float64).eps
        require_definite_eigenvalues(torch.tensor([1.0, 10.1 * eps], dtype=torch.float64))
        with pytest.raises(SingularError, match="the damped eigenvalues"):
            require_definite_eigenvalues(torch.tensor([1.0, 9.9 * eps], dtype=torch.float64))

    def test_either_may_know_the_distance(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("curvfluence.curvature.operators.diagonal.SMALL", 0)
        full = Dense(torch.eye(3, dtype=torch.float64) + 1)

        def never(self: Dense) -> Tensor:
            raise AssertionError

        diagonal = DiagonalOperator(torch.ones(3, dtype=torch.float64))
        wanted = float((full.matrix - torch.eye(3)).square().sum())
        monkeypatch.setattr(DiagonalOperator, "to_dense", never)
        assert full.squared_distance(diagonal) == pytest.approx(wanted)
        assert diagonal.squared_distance(full) == pytest.approx(wanted)
