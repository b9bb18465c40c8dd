"""Per-example weights: an example of weight v is one that is there v times."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.estimate.factors import Sharing
from curvfluence.curvature.estimate.products import CurvatureProduct
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.truth import (
    Kept,
    Recipe,
    Run,
    Subsets,
    bregman_response,
    leave_one_out,
    sgd,
    train,
    train_one,
)
from curvfluence.truth import Weighted as WeightedWay
from curvfluence.truth.paths import Path
from tests import oracles
from tests.oracles import kronecker_basis
from tests.problems import all_problems, make, mlp, seeded
from tests.zoo import CASES, zoo_problem

RUNGS: dict[str, cf.Rung] = {
    "Identity": cf.Identity(),
    "Diagonal": cf.Diagonal(),
    "KFAC": cf.KFAC(),
    "KFAC apart": cf.KFAC(joint_bias=False),
    "KFAC reduce": cf.KFAC(sharing=cf.Reduce()),
    "KFAC empirical": cf.KFAC(cf.Empirical()),
    "EKFAC": cf.EKFAC(),
    "EKFAC reduce": cf.EKFAC(sharing=cf.Reduce()),
    "EKFAC empirical": cf.EKFAC(cf.Empirical()),
    "Shampoo": cf.Shampoo(),
    "TKFAC": cf.TKFAC(),
    "EShampoo empirical": cf.EShampoo(cf.Empirical()),
    "BlockGGN": cf.BlockGGN(),
    "GGN matrix": cf.GGN(cf.inversion.Matrix()),
    "GGN sample space": cf.GGN(cf.inversion.SampleSpace()),
    "Hessian": cf.Hessian(),
}
NETS = {**{name: name for name in all_problems()}, **{name: name for name in CASES}}


def weights_for(n: int) -> Tensor:
    """0, 1, 2 or 3 each, not all alike."""
    return torch.arange(n).double().mul(7).remainder(4)


@cache
def pair(name: str) -> tuple[cf.Problem, cf.Problem, Tensor]:
    """(weighted, with examples repeated as often, weights); decay in proportion."""
    seeded()
    own = all_problems()
    base = own[name] if name in own else zoo_problem(name)
    loss = replace(base.loss, count=0) if isinstance(base.loss, cf.Positions) else base.loss
    n = len(base.train)
    v = weights_for(n)
    index = torch.arange(n).repeat_interleave(v.long())
    ratio = n / len(index)

    def with_train(train: cf.Examples, decay: dict[str, float]) -> cf.Problem:
        return cf.Problem(base.model, loss, train, base.queries, weight_decay=decay)

    weighted = with_train(base.train.weighted(v), dict(base.weight_decay))
    scaled = {name: ratio * value for name, value in base.weight_decay.items()}
    return weighted, with_train(base.train[index], scaled), v


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    gap = float((found - wanted).abs().max())
    assert gap <= tolerance * max(1e-6, float(wanted.abs().max()))


def summed_copies(values_qm: Tensor, v: Tensor) -> Tensor:
    """Σ over the copies of each example, [Q, N]."""
    index = torch.arange(len(v)).repeat_interleave(v.long())
    return values_qm.new_zeros(len(values_qm), len(v)).index_add(1, index, values_qm)


def rungs_of(name: str) -> dict[str, cf.Rung]:
    """All but those that cannot be compared.

    Where eigenvalues of a factor coincide, EK-FAC and EShampoo depend on the basis that LAPACK
    picks: of nets with shared positions they are compared with their definition instead. The
    Hessian of a net that torch cannot differentiate twice is refused.
    """
    once = CASES.get(name) is not None and "bag" in name
    shared = name not in all_problems()
    return {
        title: rung
        for title, rung in RUNGS.items()
        if not (shared and isinstance(rung, cf.EKFAC | cf.EShampoo))
        and not (once and title == "Hessian")
    }


@pytest.mark.parametrize("name", NETS)
class TestRepeatedExamples:
    def test_curvatures(self, name: str) -> None:
        weighted, repeated, v = pair(name)
        share = len(repeated.train) / len(v)
        for title, rung in rungs_of(name).items():
            found, wanted = cf.fit(weighted, rung), cf.fit(repeated, rung)
            scale = 1.0 if title == "Identity" else share
            once, again = found.to_dense(), scale * wanted.to_dense()
            if title == "Shampoo":  # an eigenvalue of 0 is found as ε, and its root as √ε
                once, again = once @ once, again @ again
            close(once, again)

    @pytest.mark.parametrize("sharing", [cf.Expand(), cf.Reduce()], ids=lambda s: s.name)
    def test_ekfac_is_the_diagonal_in_its_basis(self, name: str, sharing: Sharing) -> None:
        weighted, repeated, v = pair(name)
        ggn = (
            cf.fit(repeated, cf.GGN(cf.inversion.Matrix())).to_dense()
            * len(repeated.train)
            / len(v)
        )
        for block in cf.fit(weighted, cf.EKFAC(sharing=sharing)).blocks:
            own = ggn[block.index[:, None], block.index]
            if isinstance(block.operator, KroneckerEigen):
                basis = kronecker_basis(block.operator)
                close(block.operator.values.flatten(), (basis.T @ own @ basis).diagonal())
            else:
                close(block.operator.to_dense(), own)

    def test_scores(self, name: str) -> None:
        weighted, repeated, v = pair(name)
        share = len(repeated.train) / len(v)
        for title, rung in rungs_of(name).items():
            found = cf.influence(weighted, rung, damping=cf.Absolute(0.1))
            damping = cf.Absolute(0.1 if title == "Identity" else 0.1 / share)
            wanted = cf.influence(repeated, rung, damping=damping)
            factor = share if title == "Identity" else 1.0
            close(found.values, factor * summed_copies(wanted.values, v), 1e-8)

    def test_products(self, name: str) -> None:
        weighted, repeated, v = pair(name)
        share = len(repeated.train) / len(v)
        x = torch.randn(3, weighted.parameters.count, dtype=torch.float64)
        kinds = ("GGN", "Hessian") if "Hessian" in rungs_of(name) else ("GGN",)
        for kind in kinds:
            close(CurvatureProduct(weighted, kind)(x), share * CurvatureProduct(repeated, kind)(x))


@pytest.mark.parametrize("name", all_problems())
def test_any_weights_against_autograd(name: str) -> None:
    base = all_problems()[name]
    v = torch.rand(len(base.train), dtype=torch.float64) + 0.1
    problem = cf.Problem(
        base.model,
        base.loss,
        base.train,
        base.queries,
        weight_decay=dict(base.weight_decay),
        sample_weight=v,
    )
    gradients = v[:, None] * oracles.example_gradients(base)

    def objective(theta: Tensor) -> Tensor:
        out = oracles.outputs_at(base, theta, base.train.inputs)
        return (v * base.loss.values(out, base.train.targets)).mean()

    dense = torch.autograd.functional.hessian(objective, oracles.flat(base))
    close(cf.fit(problem, cf.Hessian()).to_dense(), dense)
    j = oracles.jacobians(base, base.train.inputs)
    ggn = torch.einsum("n,nkp,nkl,nlq->pq", v, j, oracles.output_hessians(base), j) / len(v)
    found = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.05))
    damped = ggn + problem.decay.diag() + 0.05 * torch.eye(len(ggn), dtype=torch.float64)
    wanted = oracles.query_gradients(base) @ torch.linalg.solve(damped, gradients.T) / len(v)
    close(found.values, wanted)


def test_every_way_to_score() -> None:
    weighted, repeated, v = pair("cross-entropy")
    share = len(repeated.train) / len(v)
    index = torch.arange(len(v)).repeat_interleave(v.long())
    own = cf.self_influence(weighted, cf.EKFAC(), damping=cf.Absolute(0.1))
    copies = cf.self_influence(repeated, cf.EKFAC(), damping=cf.Absolute(0.1 / share))
    first = torch.stack([copies[index == k][0] for k in range(len(v)) if v[k] > 0])
    close(own[v > 0], first * v[v > 0])
    assert not own[v == 0].any()
    diagonal = cf.Problem(
        weighted.model,
        weighted.loss,
        weighted.train,
        (weighted.train.inputs, weighted.train.targets),
    )
    alike = [
        cf.influence(diagonal, cf.EKFAC(), damping=cf.Absolute(0.1)).values.diagonal(),
        cf.self_influence(diagonal, cf.EKFAC(), damping=cf.Absolute(0.1)),
    ]
    close(*alike)
    groups = torch.rand(3, len(v), dtype=torch.float64)
    every = cf.influence(weighted, cf.EKFAC(), damping=cf.Absolute(0.1), by_block=True)
    together = cf.group_influence(weighted, cf.EKFAC(), groups, damping=cf.Absolute(0.1))
    close(together, every.values @ groups.T)
    assert every.blocks is not None
    close(torch.stack(list(every.blocks.values())).sum(0), every.values)
    assert any("weights of 0 to 3" in note for note in every.notes)


def test_tokens_and_the_best_damping() -> None:
    weighted, repeated, v = pair("tied transformer")
    share = len(repeated.train) / len(v)
    tokens = cf.token_influence(weighted, cf.EKFAC(), damping=cf.Absolute(0.1))
    whole = cf.influence(weighted, cf.EKFAC(), damping=cf.Absolute(0.1)).values
    close(tokens.sum(2), whole)
    own = cf.influence(weighted, cf.GGN(cf.inversion.Matrix()), damping=cf.Relative(0.1))
    copies = cf.influence(repeated, cf.GGN(cf.inversion.Matrix()), damping=cf.Relative(0.1))
    # λ is a share of the mean eigenvalue, which goes with N as C does
    close(own.values, summed_copies(copies.values, v), 1e-7)
    assert own.lambdas[0][1] == pytest.approx(share * copies.lambdas[0][1])


def test_newton_step_is_exact_for_a_quadratic() -> None:
    """Linear regression: leaving an example of weight v out moves the minimum by its full step."""
    seeded()
    base = make(mlp(4, 2), cf.MSE(), shape=(4,), outputs=2, n=9)
    v = torch.rand(9, dtype=torch.float64) + 0.5
    x1 = torch.cat([base.train.inputs, torch.ones(9, 1, dtype=torch.float64)], 1)

    def minimum(weights: Tensor) -> dict[str, Tensor]:
        a = (x1.T * weights) @ x1 / 9 + 0.01 * torch.eye(5, dtype=torch.float64)
        w = torch.linalg.solve(a, (x1.T * weights) @ base.train.targets / 9).T
        return {"0.weight": w[:, :4], "0.bias": w[:, 4]}

    problem = cf.Problem(
        base.model,
        base.loss,
        base.train,
        base.queries,
        weight_decay=0.01,
        weights=minimum(v),
        sample_weight=v,
    )
    found = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.0), leverage=True).values
    at = problem.measurement.values(problem.outputs(problem.queries, "q"), problem.queries.targets)
    g = oracles.query_gradients(problem)
    for n in range(9):
        kept = v.clone()
        kept[n] = 0
        moved = problem.parameters.flatten(minimum(kept)) - oracles.flat(problem)
        close(found[:, n], g @ moved)
    assert at.isfinite().all()


def test_sampled_labels_are_scaled() -> None:
    """E[Σ s sᵀ] = v S Sᵀ; labels of weight 0 are not counted as surprising."""
    base = all_problems()["cross-entropy"]
    v = weights_for(len(base.train))
    problem = cf.Problem(base.model, base.loss, base.train, base.queries, sample_weight=v)
    columns = cf.MonteCarlo(3, seed=1).columns()
    output = base.outputs(base.train, "training set")
    y = base.train.targets
    plain = cf.MonteCarlo(3, seed=1).columns()(base.loss, output, y)
    close(columns(problem.loss_of(problem.train), output, y), plain * v.sqrt()[:, None, None])
    surprise = base.loss.surprise(output, y)
    assert surprise is not None
    wanted = float(surprise[v > 0].sum()) * 3
    assert cf.MonteCarlo(3).surprising_labels(problem) == pytest.approx(wanted)


def _regression() -> tuple[Recipe, cf.Examples, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (40,), generator=generator)
    recipe = Recipe(
        lambda: mlp(3, 4, 3), cf.CrossEntropy(), sgd(0.1), 16, epochs=2, weight_decay=0.01
    )
    return recipe, cf.Examples(x, y), weights_for(40)


class TestTraining:
    @pytest.mark.parametrize("path", [Path.STACKED, Path.FUNCTIONAL, Path.PROCESSES])
    def test_weights_are_those_of_a_weighted_subset(self, path: Path) -> None:
        recipe, examples, v = _regression()
        found = train(recipe, examples.weighted(v), [Run(0, 0)], path=path, threads=1)
        subsets = Subsets(v[None], WeightedWay())
        wanted = train(recipe, examples, [Run(0, 0, 0)], subsets, path=path, threads=1)
        for name, value in wanted.theta.items():
            assert torch.equal(found.theta[name], value)
        assert torch.equal(found.final_loss, wanted.final_loss)

    def test_they_go_on_top_of_a_subset(self) -> None:
        recipe, examples, v = _regression()
        subsets = leave_one_out(40, [1])
        run = Run(0, 0, 0)
        found = train_one(recipe, examples.weighted(v), run, subsets)
        without = v.clone()
        without[1] = 0
        wanted = train_one(recipe, examples.weighted(without), Run(0, 0))
        for name, value in wanted.theta.items():
            assert torch.equal(found.theta[name], value)

    def test_a_subset_that_counts_for_nothing(self) -> None:
        recipe, examples, v = _regression()
        subsets = Subsets((v == 0)[None], Kept())
        with pytest.raises(cf.errors.InputError, match="every example of its subset has weight 0"):
            train(recipe, examples.weighted(v), [Run(0, 0, 0)], subsets)


def test_bregman_response() -> None:
    weighted, repeated, v = pair("cross-entropy")
    share = len(repeated.train) / len(v)
    index = torch.arange(len(v)).repeat_interleave(v.long())
    left_out = torch.zeros(2, len(v), dtype=torch.float64)
    left_out[0, [1, 5]] = left_out[1, [2, 3]] = 1.0
    found = bregman_response(weighted, left_out, damping=0.3, epsilon=0.1)
    wanted = bregman_response(repeated, left_out[:, index], damping=0.3 / share, epsilon=0.1)
    assert found.converged.all()
    assert wanted.converged.all()
    close(found.change, wanted.change, 1e-4)  # what the descents' own tolerance leaves


class TestBadWeights:
    def test_a_checkpoint_is_something_else(self) -> None:
        base = make(mlp(5, 3), cf.CrossEntropy())
        with pytest.raises(cf.errors.InputError, match="are sample_weight"):
            cf.Problem(
                base.model,
                base.loss,
                base.train,
                base.queries,
                weights=torch.ones(12),  # pyright: ignore[reportArgumentType]
            )

    @pytest.mark.parametrize(
        ("weights", "words"),
        [
            (torch.ones(5), r"sample_weight.*\[12\]; seen shape \(5,\)"),
            (torch.ones(12, 1), "sample_weight"),
            (-torch.ones(12), "example 0 has -1"),
            (torch.zeros(12), "no example counts"),
            (torch.full((12,), torch.nan), "example 0 is NaN"),
        ],
    )
    def test_refused(self, weights: Tensor, words: str) -> None:
        base = make(mlp(5, 3), cf.CrossEntropy())
        with pytest.raises(cf.errors.CurvfluenceError, match=words):
            cf.Problem(base.model, base.loss, base.train, base.queries, sample_weight=weights)

    def test_twice_or_on_queries(self) -> None:
        base = make(mlp(5, 3), cf.CrossEntropy())
        ones = torch.ones(12)
        with pytest.raises(cf.errors.InputError, match="weights of its own"):
            cf.Problem(
                base.model,
                base.loss,
                base.train.weighted(ones),
                base.queries,
                sample_weight=ones,
            )
        with pytest.raises(cf.errors.InputError, match="queries: they have weights"):
            cf.Problem(base.model, base.loss, base.train, base.train.weighted(ones))


def test_ones_change_nothing_and_weights_are_part_of_what_was_fitted() -> None:
    base = make(mlp(5, 4, 3), cf.CrossEntropy())
    ones = cf.Problem(
        base.model,
        base.loss,
        base.train,
        base.queries,
        weight_decay=0.01,
        sample_weight=torch.ones(12),
    )
    for rung in (cf.EKFAC(), cf.GGN(), cf.Hessian()):
        close(cf.influence(ones, rung).values, cf.influence(base, rung).values)
    assert ones.fingerprint != base.fingerprint
    assert ones.to(torch.float32).train.weights is not None
    assert isinstance(base.model, nn.Sequential)
