"""Relative damping on real spectra, solves that only rounding can refuse, predictions too large."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.curvature.operators.mean_eigenvalue import of_definite, of_spectrum
from curvfluence.runtime.checksum import row_checksums
from tests.problems import make, mlp, seeded
from tests.zoo import zoo_problem

RUNGS = [
    cf.Diagonal(),
    cf.KFAC(),
    cf.KFAC(factored_damping=True),
    cf.EKFAC(),
    cf.EKFAC(cf.Empirical()),
    cf.Shampoo(),
    cf.TKFAC(),
    cf.EShampoo(),
]


class Words(nn.Module):
    """The mean of word vectors, by 4,000 words of which few are ever seen."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(4000, 16)
        self.inner = nn.Linear(16, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.inner(self.words(ids).mean(1))))


def words(dtype: torch.dtype, *, only: bool = False) -> cf.Problem:
    """Words as frequent as 1/rank, without weight decay; with `only`, nothing else is trained."""
    generator = torch.Generator().manual_seed(3)
    rank = torch.arange(1, 4001, dtype=torch.float64)
    ids = torch.multinomial((1 / rank).expand(60, -1), 20, replacement=True, generator=generator)
    labels = torch.randint(3, (60,), generator=generator)
    torch.manual_seed(0)
    model = Words().double()
    for value in model.parameters():
        value.data.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / 3)
    if only:
        model.inner.requires_grad_(False)
        model.out.requires_grad_(False)
    return cf.Problem(model.to(dtype), cf.CrossEntropy(), (ids, labels), (ids[:5], labels[:5]))


class TestUnseenWords:
    @pytest.mark.parametrize("rung", RUNGS, ids=repr)
    def test_the_default_damping_inverts_in_float32(self, rung: cf.Rung) -> None:
        low, high = words(torch.float32), words(torch.float64)
        found, wanted = cf.influence(low, rung), cf.influence(high, rung)
        assert float((found.values - wanted.values).norm() / wanted.values.norm()) <= 2e-3
        for (_, a), (_, b) in zip(found.lambdas, wanted.lambdas, strict=True):
            assert a == pytest.approx(b, rel=0.05)

    def test_lambda_is_of_what_is_seen(self) -> None:
        """A mean over the seen words' eigenvalues, and the same whatever words are never seen."""
        problem = words(torch.float64)
        fitted = cf.fit(problem, cf.EKFAC())
        block = next(b for b in fitted.blocks if b.parameters == ("words.weight",))
        assert isinstance(block.operator, KroneckerEigen)
        values = block.operator.values  # [16, 4000]
        seen = int((values.sum(0) > 0).sum())
        assert seen == len(problem.train.inputs.unique())
        sizes = values.flatten()
        kept = sizes[sizes > sizes.numel() * 2.0**-52 * sizes.max()]
        assert len(kept) <= 16 * seen
        wanted = 0.1 * float(kept.sum()) / len(kept)
        assert dict(
            zip([b.name for b in fitted.blocks], fitted.lambdas(cf.Relative(0.1)), strict=True)
        )[block.name] == pytest.approx(wanted, rel=1e-6)
        note = next(n for n in fitted.notes_at(cf.Relative(0.1)) if "relative damping" in n)
        assert f"{len(kept):,} of 64,000 in block {block.name}" in note
        assert not any("relative damping" in n for n in fitted.notes_at(cf.Absolute(0.1)))


class TestMeanEigenvalue:
    def test_of_a_spectrum(self) -> None:
        values = torch.tensor([2.0, -1.0, 1e-17, 0.0, 1.0], dtype=torch.float64)
        found = of_spectrum(values)
        assert (found.value, found.count) == (pytest.approx(4 / 3), 3)
        assert of_spectrum(values.float()).count == 3  # the same in every dtype
        assert of_spectrum(values, rank=2) == replace(found, value=2.0, count=2)
        assert of_spectrum(torch.zeros(4)) == replace(found, value=0.0, count=0)

    def test_of_a_definite_matrix_it_bounds_the_rank(self) -> None:
        for rank, zero in ((3, 0), (5, 2), (9, 4)):
            z = torch.randn(rank, 8, dtype=torch.float64)
            z[:, :zero] = 0
            matrix = z.T @ z
            found = of_definite(matrix.diagonal(), rank)
            true = of_spectrum(torch.linalg.eigvalsh(matrix))
            assert found.count == true.count == min(rank, 8 - zero)
            assert found.value == pytest.approx(true.value)

    def test_examples_that_are_there_twice(self) -> None:
        """Copies make no more rank, weights of 0 less."""
        problem = make(mlp(30, 3), cf.CrossEntropy(), shape=(30,), outputs=3, n=6)
        x, y = problem.train.inputs, problem.train.targets
        twice = cf.Problem(
            problem.model, problem.loss, (x.repeat(2, 1), y.repeat(2)), problem.queries
        )
        for form in (cf.inversion.Matrix(), cf.inversion.SampleSpace()):
            one, two = (cf.fit(p, cf.GGN(form)).mean_eigenvalues[0] for p in (problem, twice))
            assert one.count == two.count == 12
            assert one.value == pytest.approx(two.value)
        v = torch.tensor([1.0, 1, 0, 1, 0, 1], dtype=torch.float64)
        fewer = cf.Problem(problem.model, problem.loss, (x, y), problem.queries, sample_weight=v)
        assert cf.fit(fewer, cf.GGN()).mean_eigenvalues[0].count == 8
        with pytest.warns(cf.errors.CurvfluenceWarning):
            drawn = cf.fit(twice, cf.BlockGGN(cf.MonteCarlo(1))).mean_eigenvalues[0]
        assert drawn.count == 12  # every copy draws its own label

    def test_rows_are_told_apart(self) -> None:
        for rows in (
            torch.randn(50, 7, 3),
            torch.arange(50)[:, None],
            torch.randint(2, (50, 1200)).bool(),
            torch.randn(50, 1100, dtype=torch.float64),
        ):
            changed = rows.clone()
            flat = changed.reshape(50, -1)
            flat[20, -1] = 1 - flat[20, -1].float() if rows.dtype != torch.bool else ~flat[20, -1]
            a, b = row_checksums(rows), row_checksums(changed)
            assert (a != b).nonzero().flatten().tolist() == [20]
        swapped = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 1.0, 2.0]])
        first, second = row_checksums(swapped).tolist()
        assert first != second
        assert len(row_checksums(torch.empty(4, 0)).unique()) == 1

    @pytest.mark.parametrize("name", ["mlp", "tied transformer", "cnn with groups"])
    def test_lambda_does_not_hang_on_the_dtype(self, name: str) -> None:
        problem = zoo_problem(name)
        for rung in (*RUNGS, cf.BlockGGN(), cf.GGN()):
            high, low = cf.fit(problem, rung), cf.fit(problem.to(torch.float32), rung)
            for block, a, b in zip(
                high.blocks, high.mean_eigenvalues, low.mean_eigenvalues, strict=True
            ):
                if (name, block.name) == ("tied transformer", "blocks.1.o"):
                    continue  # its A has an eigenvalue of 2e-8 of the largest: no float32 holds it
                assert a.count == b.count, (rung, block.name)
                # Shampoo takes roots: √ of a rounding of 1e-8 is 1e-4 of the sum
                assert b.value == pytest.approx(a.value, rel=1e-3), (rung, block.name)


class TestRounding:
    """What is refused is a solution that rounding moves, not a ratio of eigenvalues."""

    def test_inputs_of_a_lookup_are_apart(self) -> None:
        values = torch.tensor([[1e6, 1e-9], [2e6, 2e-9]])
        assert Denominator.of(values, by_input=True).error is None
        together = Denominator.of(values)
        assert together.error is not None
        together.require_trusted(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]))
        with pytest.raises(cf.errors.SingularError, match=r"moves a solution by about .*%"):
            together.require_trusted(torch.tensor([[[1.0, 1.0], [2.0, 0.0]]]))

    def test_what_is_not_positive_never(self) -> None:
        for bad in (0.0, -1.0, float("nan")):
            with pytest.raises(cf.errors.SingularError, match="larger damping"):
                Denominator.of(torch.tensor([1.0, bad]))

    @pytest.mark.parametrize("rung", [cf.KFAC(), cf.EKFAC()], ids=repr)
    def test_a_dense_layer_is_still_refused(self, rung: cf.Rung) -> None:
        seeded()
        problem = make(mlp(40, 3), cf.CrossEntropy(), shape=(40,), outputs=3, n=6)
        single = problem.to(torch.float32)
        bare = cf.Problem(single.model.float(), single.loss, single.train, single.queries)
        with pytest.raises(cf.errors.SingularError, match=r"block .*(float32|inverted)"):
            cf.influence(bare, rung, damping=cf.Absolute(1e-12))
        with pytest.raises(cf.errors.SingularError, match=r"block .*(float32|inverted)"):
            cf.self_influence(bare, rung, damping=cf.Absolute(1e-12))

    @pytest.mark.parametrize("rung", [cf.EKFAC(), cf.KFAC()], ids=repr)
    def test_what_is_accepted_is_right(self, rung: cf.Rung) -> None:
        """Where a bound on the ratio of all eigenvalues, 10 ε, would refuse: float32 is within what
        the check promises. Of the words alone, since a dense layer has one common scale."""
        low, high = words(torch.float32, only=True), words(torch.float64, only=True)
        (block,) = cf.fit(low, rung).blocks
        largest = float(block.operator.eigenvalues().max())
        beyond = 0
        for power in range(-10, -4):
            damping = cf.Absolute(10.0**power)
            try:
                found = cf.influence(low, rung, damping=damping).values
            except cf.errors.SingularError:
                continue
            wanted = cf.influence(high, rung, damping=damping).values
            assert float((found - wanted).norm() / wanted.norm()) <= 0.1, power
            beyond += damping.value < 10 * torch.finfo(torch.float32).eps * largest
        assert beyond


def test_an_exact_block_without_damping_is_refused_before_the_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = make(mlp(30, 3), cf.CrossEntropy(), shape=(30,), outputs=3, n=6)
    bare = cf.Problem(problem.model, problem.loss, problem.train, problem.queries)
    monkeypatch.setattr(cf.BlockGGN, "build", lambda *_: pytest.fail("the fit was paid for"))
    with pytest.raises(cf.errors.SingularError, match=r"block 0 have no .* rank of at most 12"):
        cf.influence(bare, cf.BlockGGN(), damping=cf.Absolute(0.0))


class TestReach:
    @pytest.mark.parametrize(
        ("loss", "outputs"),
        [
            (cf.CrossEntropy(), 4),
            (cf.CrossEntropy(label_smoothing=0.1), 4),
            (cf.CrossEntropy(weight=torch.tensor([1.0, 3.0, 0.5, 2.0]).double()), 4),
            (cf.MSE(), 2),
            (cf.BinaryCrossEntropy(), 2),
        ],
        ids=["cross-entropy", "smoothed", "class weights", "mse", "binary"],
    )
    def test_no_label_is_worse(self, loss: cf.Loss, outputs: int) -> None:
        """The bound against every label that there is."""
        generator = torch.Generator().manual_seed(0)
        f = 3 * torch.randn(9, outputs, generator=generator, dtype=torch.float64)
        if isinstance(loss, cf.CrossEntropy):
            labels = torch.arange(outputs)
        else:
            labels = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).double()
        every = torch.stack([loss.values(f, y.expand(9, *y.shape)) for y in labels])
        found = loss.worst(f, labels[:1].expand(9, *labels.shape[1:]), labels)
        assert found is not None
        exact = getattr(loss, "label_smoothing", 0) == 0 and getattr(loss, "weight", None) is None
        assert bool((found >= every.amax(0) - 1e-12).all())
        if exact:
            assert torch.allclose(found, every.amax(0))

    def test_positions_add_up(self) -> None:
        problem = zoo_problem("tied transformer")
        outputs = problem.outputs(problem.queries, "queries")
        targets = problem.queries.targets
        found = problem.loss.worst(outputs, targets, problem.train.targets)
        assert found is not None
        classes = outputs.shape[1] // problem.loss.positions if problem.loss.positions else 0
        every = [
            problem.loss.values(outputs, torch.where(targets < 0, targets, k))
            for k in range(classes)
        ]
        assert bool((found >= torch.stack(every).amax(0) - 1e-12).all())

    def test_a_prediction_that_is_too_large_is_said(self) -> None:
        problem = words(torch.float64)
        sober = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(1.0))
        assert not any("larger than the loss can move" in note for note in sober.notes)
        wild = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(1e-10))
        note = next(n for n in wild.notes if "larger than the loss can move" in n)
        outputs = problem.outputs(problem.queries, "queries")
        reach = (outputs.logsumexp(1) - outputs.amin(1))[:, None]
        beyond = wild.values.abs() > reach
        assert note.startswith(f"{int(beyond.sum()):,} predictions")
        q, n = divmod(int((wild.values.abs() / reach).argmax()), wild.values.shape[1])
        assert f"example {n} is to change query {q} by {float(wild.values[q, n]):.3g} nats" in note
        assert "larger damping" in note

    def test_not_of_what_has_no_unit(self) -> None:
        dot = cf.influence(words(torch.float64), cf.Identity())
        assert not any("larger than the loss can move" in note for note in dot.notes)


def test_smaller_damping_larger_scores() -> None:
    """A check of the sweep that the above rests on."""
    problem = words(torch.float64)
    sizes = [
        float(cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(d)).values.norm())
        for d in (1.0, 1e-2, 1e-4, 1e-6)
    ]
    assert all(a < b for a, b in pairwise(sizes))
