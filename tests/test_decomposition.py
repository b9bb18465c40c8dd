"""Hybrids, distances, shares and spectra, against dense float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.hybrids import paired
from curvfluence.fidelity import (
    StepLoss,
    decompose,
    distance_squared,
    frobenius_squared,
    leading_by_block,
    leading_space,
    mean_steps,
    overlap,
    shares,
    spectrum,
)
from tests.problems import all_problems, chain_problem, make, mixed_problem, seeded

PROBLEMS = {**all_problems(), "mixed": mixed_problem()}
CHAIN = {"GGN": cf.GGN(), "BlockGGN": cf.BlockGGN(), "EKFAC": cf.EKFAC(), "KFAC": cf.KFAC()}


@pytest.fixture(params=PROBLEMS, ids=str)
def problem(request: pytest.FixtureRequest) -> cf.Problem:
    return PROBLEMS[request.param]


def fitted(problem: cf.Problem) -> dict[str, cf.Curvature]:
    return {name: cf.fit(problem, rung) for name, rung in CHAIN.items()}


class TestDistances:
    def test_against_dense(self, problem: cf.Problem) -> None:
        found = {**fitted(problem), "Diagonal": cf.fit(problem, cf.Diagonal())}
        for a in found.values():
            for b in found.values():
                wanted = float((a.to_dense() - b.to_dense()).square().sum())
                assert distance_squared(a, b) == pytest.approx(wanted, rel=1e-9, abs=1e-20)
            assert frobenius_squared(a) == pytest.approx(float(a.to_dense().square().sum()))

    def test_from_a_wide_layer_to_its_diagonal(self) -> None:
        """A layer of 100,000 weights, whose matrix would be 75 GiB: from products with it."""
        seeded()
        given = make(nn.Sequential(nn.Linear(390, 256)), cf.MSE(), shape=(390,), outputs=256, n=8)
        kfac, diagonal = cf.fit(given, cf.KFAC()), cf.fit(given, cf.Diagonal())
        entries = diagonal.blocks[0].operator.diagonal_entries()
        drawn = torch.randperm(len(entries), generator=torch.Generator().manual_seed(0))[:200]
        units = torch.zeros(200, len(entries), dtype=torch.float64)
        units[torch.arange(200), drawn] = 1.0
        columns = kfac.blocks[0].operator @ units
        own = columns[torch.arange(200), drawn]
        assert torch.allclose(kfac.blocks[0].operator.diagonal_entries()[drawn], own, rtol=1e-10)
        off = frobenius_squared(kfac) - float(
            kfac.blocks[0].operator.diagonal_entries().square().sum()
        )
        on = float((kfac.blocks[0].operator.diagonal_entries() - entries).square().sum())
        assert distance_squared(kfac, diagonal) == pytest.approx(off + on, rel=1e-12)
        assert distance_squared(diagonal, kfac) == pytest.approx(off + on, rel=1e-12)

    def test_squared_distances_add_up(self, problem: cf.Problem) -> None:
        """GGN→Block→EK→K is orthogonal, to 1e-8 (the issue's bar)."""
        found = fitted(problem)
        names = list(found)
        parts = [distance_squared(found[a], found[b]) for a, b in pairwise(names)]
        whole = distance_squared(found["GGN"], found["KFAC"])
        assert sum(parts) == pytest.approx(whole, rel=1e-8, abs=1e-18)

    def test_closed_forms(self, problem: cf.Problem) -> None:
        """‖B − EK‖² = ‖B‖² − Σ Λ_EK², and ‖GGN − B‖² = ‖GGN‖² − ‖B‖²; a difference of squares
        cannot be known better than to rounding of the squares."""
        found = fitted(problem)
        block = frobenius_squared(found["BlockGGN"])
        assert distance_squared(found["BlockGGN"], found["EKFAC"]) == pytest.approx(
            block - frobenius_squared(found["EKFAC"]), rel=1e-8, abs=1e-14 * block
        )
        assert distance_squared(found["GGN"], found["BlockGGN"]) == pytest.approx(
            frobenius_squared(found["GGN"]) - block, rel=1e-8, abs=1e-14 * block
        )

    def test_shares(self) -> None:
        steps = {("GGN", "BlockGGN"): 9.0, ("BlockGGN", "EKFAC"): 4.0, ("EKFAC", "KFAC"): 1.0}
        found = shares({("Hessian", "GGN"): 100.0, **steps})
        assert found[("GGN", "BlockGGN")] == pytest.approx((9 / 14, 3 / 6))
        assert found[("EKFAC", "KFAC")] == pytest.approx((1 / 14, 1 / 6))
        assert shares({("GGN", "BlockGGN"): 9.0}) == {}

    def test_shares_of_one_and_of_nothing(self) -> None:
        """A whole of 1 is divided like any other; of 0 every step has none."""
        ab, bc = ("A", "B"), ("B", "C")
        found = shares({ab: 0.75, bc: 0.25}, chain="ABC")
        assert found[ab] == pytest.approx((0.75, 3**0.5 / (3**0.5 + 1)))
        assert shares({ab: 0.0, bc: 0.0}, chain="ABC") == {ab: (0.0, 0.0), bc: (0.0, 0.0)}


class TestDecompose:
    def test_errors_of_inverse_and_scores(self) -> None:
        problem = chain_problem()
        found = {"Hessian": cf.fit(problem, cf.Hessian()), **fitted(problem)}
        dampings = [cf.Absolute(v) for v in (0.01, 0.1)]
        g_q = torch.randn(4, problem.parameters.count, dtype=torch.float64)
        g_n = torch.randn(7, problem.parameters.count, dtype=torch.float64)
        solved = {n: torch.stack(list(c.solve_many(g_q, dampings))) for n, c in found.items()}
        scores = {n: x @ g_n.T for n, x in solved.items()}
        steps = decompose(found, solved, scores, steps=list(pairwise(found)))
        assert [(s.above, s.below) for s in steps] == [
            ("Hessian", "GGN"), ("GGN", "BlockGGN"), ("BlockGGN", "EKFAC"), ("EKFAC", "KFAC"),
        ]  # fmt: skip
        assert steps[0].share is None
        assert sum(s.share or 0 for s in steps) == pytest.approx(1.0)
        assert sum(s.norm_share or 0 for s in steps) == pytest.approx(1.0)
        for d, damping in enumerate(dampings):
            a, b = (found[n].solve(g_q, damping) for n in ("GGN", "BlockGGN"))
            wanted = ((a - b).norm(dim=1) / a.norm(dim=1)).mean()
            assert steps[1].inverse_error[d] == pytest.approx(float(wanted))
            wanted = ((a - b) @ g_n.T).norm() / (a @ g_n.T).norm()
            assert steps[1].score_error[d] == pytest.approx(float(wanted))
        assert mean_steps([steps, steps]) == mean_steps([steps]) == steps

    def test_distances_that_are_there_and_a_chain_of_ones_own(self) -> None:
        """Nothing is measured again, and shares are of the chain that is named."""
        asked: list[tuple[str, str]] = []

        def distance(a: str, b: str) -> float:
            asked.append((a, b))
            return {"AB": 9.0, "BC": 1.0, "CD": 5.0}[a + b]

        rows = {name: torch.ones(1, 2, 3) for name in "ABCD"}
        steps = [("A", "B"), ("B", "C"), ("C", "D")]
        found = decompose({}, rows, rows, steps=steps, chain="ABC", distance=distance)
        assert asked == steps
        assert [one.distance_squared for one in found] == [9.0, 1.0, 5.0]
        assert [one.share for one in found] == [0.9, 0.1, None]
        assert [one.norm_share for one in found] == [0.75, 0.25, None]

    def test_queries_of_a_confident_model(self) -> None:
        """One whose gradient is 0 loses nothing; one below 1e-23 is no 0 for float32's sake."""
        found = {n: c for n, c in fitted(chain_problem()).items() if n in ("GGN", "BlockGGN")}
        a = torch.tensor([[[3e-25, 4e-25], [0.0, 0.0]]])
        b = torch.tensor([[[3e-25, 0.0], [0.0, 0.0]]])
        rows = {"GGN": a, "BlockGGN": b}
        (step,) = decompose(found, rows, rows, steps=[("GGN", "BlockGGN")])
        assert step.inverse_error == pytest.approx([0.4])
        assert step.score_error == pytest.approx([0.8])

    def test_grids_must_agree(self) -> None:
        found = fitted(chain_problem())
        rows = {name: torch.ones(2 + (name == "KFAC"), 3, 4) for name in found}
        with pytest.raises(cf.errors.InputError, match="different length"):
            decompose(found, rows, rows, steps=list(pairwise(found)))
        short, long = (dict.fromkeys(CHAIN, torch.ones(d, 3, 4)) for d in (2, 3))
        with pytest.raises(cf.errors.InputError, match=r"different length: \[2, 3\]"):
            decompose(found, short, long, steps=list(pairwise(found)))


class TestMeanSteps:
    def step(self, size: float, share: float | None, dampings: int = 2) -> StepLoss:
        return StepLoss("A", "B", size, share, share, (size,) * dampings, (2 * size,) * dampings)

    def test_every_number(self) -> None:
        found = mean_steps([(self.step(1.0, 0.5),), (self.step(3.0, 0.25),)])
        assert found == (self.step(2.0, 0.375),)
        none = mean_steps([(self.step(1.0, None),), (self.step(3.0, None),)])
        assert none == (self.step(2.0, None),)

    def test_models_must_agree(self) -> None:
        """In their grid, and in their steps."""
        one = self.step(1.0, 0.5)
        with pytest.raises(ValueError, match="shorter"):
            mean_steps([(one,), (self.step(1.0, 0.5, dampings=1),)])
        with pytest.raises(ValueError, match="shorter"):
            mean_steps([(one, one), (one,)])


class TestHybrids:
    def test_ekfac_is_the_block_projected_onto_kfacs_basis(self, problem: cf.Problem) -> None:
        found = cf.fit(problem, cf.hybrids.Project(cf.BlockGGN(), cf.KFAC()))
        assert torch.allclose(
            found.to_dense(), cf.fit(problem, cf.EKFAC()).to_dense(), rtol=1e-9, atol=1e-13
        )

    def test_projecting_onto_ones_own_basis_changes_nothing(self, problem: cf.Problem) -> None:
        for rung in (cf.GGN(), cf.BlockGGN(), cf.EKFAC()):
            found = cf.fit(problem, cf.hybrids.Project(rung, rung)).to_dense()
            assert torch.allclose(found, cf.fit(problem, rung).to_dense(), rtol=1e-8, atol=1e-11)

    def test_projection_is_the_nearest_in_that_basis(self) -> None:
        """No other eigenvalues in K-FAC's basis come nearer to the block."""
        problem = chain_problem()
        block = cf.fit(problem, cf.BlockGGN())
        nearest = distance_squared(
            block, cf.fit(problem, cf.hybrids.Project(cf.BlockGGN(), cf.KFAC()))
        )
        for other in (cf.KFAC(), cf.hybrids.Sorted(cf.BlockGGN(), cf.KFAC())):
            assert nearest <= distance_squared(block, cf.fit(problem, other)) + 1e-15

    @pytest.mark.parametrize("matrix", [cf.BlockGGN(), cf.GGN()])
    def test_sorted_has_the_spectrum_of_one_and_the_basis_of_the_other(
        self, problem: cf.Problem, matrix: cf.Rung
    ) -> None:
        found = cf.fit(problem, cf.hybrids.Sorted(matrix, cf.KFAC()))
        wanted = cf.fit(problem, matrix).eigenvalues()
        assert torch.allclose(found.eigenvalues(), wanted, rtol=1e-8, atol=1e-12)
        kfac = cf.fit(problem, cf.KFAC()).to_dense()
        commutator = found.to_dense() @ kfac - kfac @ found.to_dense()
        assert commutator.norm() <= 1e-10 * (1 + kfac.norm() * found.to_dense().norm())

    def test_sorted_the_other_way_has_the_basis_of_the_block(self) -> None:
        problem = chain_problem()
        found = cf.fit(problem, cf.hybrids.Sorted(cf.KFAC(), cf.BlockGGN()))
        block = cf.fit(problem, cf.BlockGGN()).to_dense()
        kfac = cf.fit(problem, cf.KFAC())
        assert torch.allclose(found.eigenvalues(), kfac.eigenvalues(), rtol=1e-8, atol=1e-12)
        commutator = found.to_dense() @ block - block @ found.to_dense()
        assert commutator.norm() <= 1e-10

    def test_trace_matched(self, problem: cf.Problem) -> None:
        found = cf.fit(problem, cf.hybrids.TraceMatched(cf.KFAC(), cf.BlockGGN()))
        block, kfac = cf.fit(problem, cf.BlockGGN()), cf.fit(problem, cf.KFAC())
        for mine, wanted, before in zip(found.blocks, block.blocks, kfac.blocks, strict=True):
            dense = mine.operator.to_dense()
            trace = wanted.operator.to_dense().trace()
            assert dense.trace() == pytest.approx(float(trace))
            scale = trace / before.operator.to_dense().trace()
            assert torch.allclose(dense, scale * before.operator.to_dense(), rtol=1e-9, atol=1e-14)

    @pytest.mark.parametrize(
        "rung",
        [
            cf.hybrids.Project(cf.GGN(), cf.KFAC()),
            cf.hybrids.Project(cf.KFAC(), cf.BlockGGN()),
            cf.hybrids.Sorted(cf.GGN(), cf.EKFAC()),
            cf.hybrids.Sorted(cf.KFAC(), cf.GGN()),
            cf.hybrids.TraceMatched(cf.EKFAC(), cf.GGN()),
            cf.hybrids.Project(cf.BlockGGN(), cf.Diagonal()),
        ],
        ids=lambda rung: rung.name,
    )
    def test_are_ordinary_curvatures(self, problem: cf.Problem, rung: cf.Rung) -> None:
        curvature = cf.fit(problem, rung)
        dense = curvature.to_dense()
        v = torch.randn(3, len(dense), dtype=torch.float64)
        assert torch.allclose(curvature.matvec(v), v @ dense, rtol=1e-9, atol=1e-12)
        x = curvature.solve(v, cf.Absolute(0.05))
        damped = dense + torch.diag(problem.decay + 0.05)
        assert (x @ damped - v).norm() / v.norm() <= 1e-10
        wanted = torch.linalg.eigvalsh(dense)
        assert torch.allclose(curvature.eigenvalues(), wanted, rtol=1e-8, atol=1e-10)
        assert curvature.name.startswith(rung.name)
        assert cf.influence(problem, rung).values.isfinite().all()

    def test_paired_keeps_ranks(self) -> None:
        order = torch.tensor([3.0, 1.0, 2.0])
        assert torch.equal(
            paired(torch.tensor([10.0, 30.0, 20.0]), order), torch.tensor([30.0, 10, 20])
        )


class TestSpectra:
    def test_numbers_of_a_known_spectrum(self, problem: cf.Problem) -> None:
        for rung in (cf.Hessian(), cf.GGN(), cf.EKFAC()):
            curvature = cf.fit(problem, rung)
            found = spectrum(curvature)
            mu = torch.linalg.eigvalsh(curvature.to_dense()).flip(0)
            assert torch.allclose(found.eigenvalues, mu, rtol=1e-8, atol=1e-11)
            positive = mu.clamp_min(0)
            wanted = float((positive / (positive + 0.03)).sum())
            assert found.effective_dimension(0.03) == pytest.approx(wanted, rel=1e-6)
            assert found.condition(0.03) == pytest.approx(
                float((mu.abs().max() + 0.03) / (mu.abs().min() + 0.03)), rel=1e-6
            )
            below = mu[mu < -1e-9]
            assert len(found.negative) == len(below)
            assert found.negative_share == pytest.approx(
                float(below.abs().sum() / mu.abs().sum()), abs=1e-8
            )

    @pytest.mark.parametrize("rung", [*CHAIN.values(), cf.Hessian(), cf.Diagonal()])
    def test_leading_space(self, rung: cf.Rung) -> None:
        curvature = cf.fit(chain_problem(), rung)
        by_block = leading_by_block(curvature, 7)
        for block in curvature.blocks:
            one = by_block[block.name]
            dense = curvature.to_dense()[block.index][:, block.index]
            assert torch.allclose(dense @ one.vectors, one.eigenvalues * one.vectors, atol=1e-9)
            highest = torch.linalg.eigvalsh(dense).flip(0)[: len(one.eigenvalues)]
            assert torch.allclose(one.eigenvalues, highest, rtol=1e-8, atol=1e-10)
        space = leading_space(curvature, by_block, 7)
        assert torch.allclose(space.T @ space, torch.eye(7).double(), atol=1e-10)
        values = (space * (curvature.to_dense() @ space)).sum(0)
        assert torch.allclose(values, curvature.eigenvalues().flip(0)[:7], rtol=1e-8, atol=1e-10)

    def test_overlap(self) -> None:
        eye = torch.eye(6, dtype=torch.float64)
        assert overlap(eye[:, :3], eye[:, :3], (1, 2, 3)) == (1.0, 1.0, 1.0)
        assert overlap(eye[:, :3], eye[:, [1, 0, 4]], (1, 2, 3)) == pytest.approx((0.0, 1.0, 2 / 3))
        turned: Tensor = torch.linalg.qr(torch.randn(6, 3).double()).Q
        assert overlap(turned, turned @ torch.diag(torch.tensor([-1.0, 1, -1]).double()), (3,)) == (
            pytest.approx((1.0,))
        )

    def test_bad_damping(self) -> None:
        with pytest.raises(cf.errors.InputError, match="damping > 0"):
            spectrum(cf.fit(chain_problem(), cf.KFAC())).effective_dimension(0.0)
