"""Faults that somebody found who had not seen the code, each with its right value, by kind."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import CurvfluenceError, InputError, NonFiniteError
from curvfluence.problem.losses import Loss
from curvfluence.problem.measurement import Measurement
from curvfluence.truth import Recipe, Run, adam, down_weight, grid, random_subsets, sgd, train
from tests import oracles

DOUBLE = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(30, 5, generator=GENERATOR, dtype=DOUBLE)
Y = torch.randint(3, (30,), generator=GENERATOR)
Function = Callable[[Tensor, Tensor], Tensor]
FORMS = [
    cf.inversion.Matrix(), cf.inversion.SampleSpace(), cf.inversion.ConjugateGradients(),
    cf.inversion.SelectedRows(20),
]  # fmt: skip


def net(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def problem(
    loss: Loss | Function, dtype: torch.dtype = DOUBLE, n: int = 30, **more: object
) -> cf.Problem:
    x = X[:n].clone().to(dtype)
    made = loss if isinstance(loss, Loss) else cf.CustomLoss(loss)
    return cf.Problem(net(dtype), made, (x, Y[:n]), (x[:4].clone(), Y[:4]), **more)  # type: ignore[arg-type]


def cross_entropy(o: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(o, t, reduction="none")


class TestWhatIsStale:
    """Every value that a fit, its cached rows or its certificate rest on."""

    def test_class_weights_are_the_problems_own(self) -> None:
        weight = torch.ones(3, dtype=DOUBLE)
        given = problem(cf.CrossEntropy(weight=weight))
        fitted = cf.fit(given, cf.EKFAC(cf.Empirical()))
        before = cf.influence(given, fitted).values
        weight[0] = 4.0
        assert torch.equal(cf.influence(given, fitted).values, before)

    @pytest.mark.parametrize("written", ["in place", ".data", "NumPy"])
    @pytest.mark.parametrize("what", ["a closure of the loss", "theta"])
    def test_a_fitted_curvature_is_refused(self, what: str, written: str) -> None:
        scale = torch.ones(3, dtype=DOUBLE)
        given = problem(lambda o, t: scale[t] * cross_entropy(o, t))
        fitted = cf.fit(given, cf.EKFAC(cf.Empirical()))
        cf.influence(given, fitted)
        tensor = scale if what != "theta" else given.theta["0.weight"]
        if written == "in place":
            tensor.mul_(3)
        elif written == ".data":
            tensor.data.mul_(3)
        else:
            tensor.numpy()[:] *= 3
        differs = "the weights" if what == "theta" else "what the loss computes"
        with pytest.raises(InputError, match=f"which differs in {differs}: fit it"):
            cf.influence(given, fitted)

    def test_cached_rows_are_made_anew(self) -> None:
        scale = torch.ones(3, dtype=DOUBLE)
        given = problem(lambda o, t: scale[t] * cross_entropy(o, t))
        cf.influence(given, cf.EKFAC(cf.Empirical()))
        scale[1] = 3.0
        found = cf.influence(given, cf.Identity()).values
        wanted = oracles.query_gradients(given) @ oracles.example_gradients(given).T / 30
        torch.testing.assert_close(found, wanted)

    def test_a_certificate_of_changed_data(self) -> None:
        given = problem(cf.CrossEntropy())
        scores = cf.influence(given, cf.GGN())
        assert scores.certificate().worst < 1e-9
        given.train.inputs.numpy()[3] *= -3
        with pytest.raises(InputError, match="changed since the scores were made"):
            scores.certificate()


class TestTheUsersLoss:
    def test_one_that_computes_in_float32(self) -> None:
        """Its differences are float32's, and no fault."""
        given = problem(
            lambda o, t: F.cross_entropy(o.float(), t, reduction="none").to(o.dtype),
            torch.float32,
        )
        found = cf.influence(given, cf.EKFAC()).values
        wanted = cf.influence(problem(cf.CrossEntropy(), torch.float32), cf.EKFAC()).values
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=1e-5)

    @pytest.mark.parametrize("rung", [cf.Identity(), cf.EKFAC(), cf.GGN(), cf.Hessian()], ids=repr)
    def test_an_infinite_value_without_a_gradient(self, rung: cf.Rung) -> None:
        first = int((Y == 2).nonzero()[0])

        def loss(o: Tensor, t: Tensor) -> Tensor:
            return torch.where(t == 2, torch.full_like(o[:, 0], torch.inf), cross_entropy(o, t))

        with pytest.raises(NonFiniteError, match=rf"value of the loss of example {first} "):
            cf.influence(problem(loss), rung)

    @pytest.mark.parametrize("rung", [cf.GGN(), cf.Hessian(), cf.KFAC()], ids=repr)
    def test_one_without_a_second_derivative(self, rung: cf.Rung) -> None:
        def loss(o: Tensor, t: Tensor) -> Tensor:
            return F.multi_margin_loss(o, t, reduction="none")

        with pytest.raises(InputError, match=r"no second derivative .*fisher=Empirical\(\)"):
            cf.influence(problem(loss), rung)
        cf.influence(problem(loss), cf.EKFAC(cf.Empirical()))

    def test_a_penalty_on_the_models_weights(self) -> None:
        model = net()

        def loss(o: Tensor, t: Tensor) -> Tensor:
            return cross_entropy(o, t) + 0.1 * sum(p.square().sum() for p in model.parameters())

        with pytest.raises(InputError, match=r"another tensor that requires a gradient.*decay"):
            cf.influence(problem(loss), cf.GGN())
        measured = cf.CustomMeasurement(loss, lower_is_better=True, name="penalised")
        with pytest.raises(InputError, match=r"'penalised' depends on another tensor"):
            cf.influence(problem(cf.CrossEntropy(), measurement=measured), cf.GGN())

    def test_a_square_that_underflows(self) -> None:
        """Said, or refused where rounding of nothing shows as a difference."""
        given = problem(lambda o, t: 1e-200 * cross_entropy(o, t))
        try:
            notes = cf.influence(given, cf.Identity()).notes
        except InputError as error:
            notes = (str(error),)
        assert any("0 in torch.float64" in n and "scale the loss" in n for n in notes)
        assert not any("squares" in n for n in scored().notes)

    @pytest.mark.parametrize("form", FORMS)
    def test_relative_damping_knows_its_rank(self, form: cf.inversion.Form) -> None:
        """Cross-entropy written by hand has a column more than its rank."""
        built_in, own = (
            cf.fit(problem(loss, n=15), cf.GGN(form)).lambdas(cf.Relative(0.1))
            for loss in (cf.CrossEntropy(), cross_entropy)
        )
        assert own == pytest.approx(built_in)


class Attended(nn.Module):
    """A softmax in float32 inside a float64 model."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).view(-1, 2, 4)
        weights = torch.softmax(h @ h.mT, -1, dtype=torch.float32).to(x.dtype)
        return self.b((weights @ h).flatten(1))


def test_second_derivatives_are_as_symmetric_as_their_arithmetic() -> None:
    torch.manual_seed(0)
    given = cf.Problem(Attended().double(), cf.CrossEntropy(), (X, Y), (X[:4], Y[:4]))
    assert given.arithmetic == torch.float32
    assert problem(cf.CrossEntropy()).arithmetic == DOUBLE
    found = cf.fit(given, cf.Hessian()).to_dense()
    wanted = oracles.dense_hessian(given)
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5
    single = cf.Problem(
        Attended(), cf.CrossEntropy(), (X.float(), Y), (X[:4].float(), Y[:4]), weight_decay=0.1
    )
    plain = cf.Hessian(cf.hessian.Plain())
    exact = cf.influence(single, plain, damping=cf.Absolute(1.0))
    assert exact.certificate("Hessian", dtype=DOUBLE).worst <= 1e-4


class TestMemoryThatIsShared:
    @staticmethod
    def twice() -> nn.Module:
        made = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
        made[2].weight = nn.Parameter(made[0].weight.detach())
        return made

    @staticmethod
    def attribute() -> nn.Module:
        class Held(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 3)
                self.w = self.a.weight.detach()

            def forward(self, x: Tensor) -> Tensor:
                return self.b(torch.tanh(self.a(x)) @ self.w.T)

        return Held()

    @staticmethod
    def expanded() -> nn.Module:
        made = net(torch.float32)
        made[0].bias = nn.Parameter(torch.ones(1).expand(6))
        return made

    @pytest.mark.parametrize("build", ["twice", "attribute", "expanded"])
    def test_it_is_refused_in_a_problem_and_in_training(self, build: str) -> None:
        architecture = getattr(self, build)
        x = X.float()
        with pytest.raises(InputError, match=r"same memory|one place of memory"):
            cf.Problem(architecture(), cf.CrossEntropy(), (x, Y), (x[:4], Y[:4]))
        recipe = Recipe(architecture, cf.CrossEntropy(), sgd(0.1), batch_size=30, steps=4)
        with pytest.raises(InputError, match=r"same memory|one place of memory"):
            train(recipe, cf.Examples(x, Y), grid([0], [0]))


class TestTraining:
    def test_integer_inputs_train_in_the_models_dtype(self) -> None:
        def bag() -> nn.Module:
            return nn.Sequential(nn.EmbeddingBag(9, 5), nn.Linear(5, 3)).double()

        ids = torch.randint(9, (12, 4), generator=torch.Generator().manual_seed(0))
        recipe = Recipe(bag, cf.CrossEntropy(), sgd(0.1), batch_size=5, steps=2)
        trained = train(recipe, cf.Examples(ids, Y[:12]), grid([0], [0]))
        assert trained.theta["1.weight"].dtype == DOUBLE

    def test_an_encoder_that_torch_func_cannot_evaluate(self) -> None:
        """Found before training, not after it."""

        class Encoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(9, 8, padding_idx=0)
                layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
                self.encoder = nn.TransformerEncoder(layer, 1)
                self.out = nn.Linear(8, 3)

            def forward(self, ids: Tensor) -> Tensor:
                padded = ids == 0
                h = self.encoder(self.embed(ids), src_key_padding_mask=padded)
                return self.out(h.masked_fill(padded[..., None], 0).sum(1))

        ids = torch.randint(1, 9, (12, 4), generator=torch.Generator().manual_seed(0))
        ids[::2, 3] = 0
        recipe = Recipe(Encoder, cf.CrossEntropy(), sgd(0.1), batch_size=6, steps=2)
        trained = train(recipe, cf.Examples(ids, Y[:12]), grid([0], [0]))
        assert bool(trained.final_loss.isfinite().all())

    def test_numbers_of_numpy_are_numbers(self) -> None:
        assert grid(np.arange(2), np.arange(1)) == [Run(0, 0), Run(1, 0)]  # type: ignore[arg-type]
        a = random_subsets(20, keep=0.5, count=3, seed=np.int64(1))  # type: ignore[arg-type]
        assert torch.equal(a.weights, random_subsets(20, keep=0.5, count=3, seed=1).weights)
        weights = down_weight(20, [1], np.float32(0.5)).weights  # type: ignore[arg-type]
        assert float(weights[0, 1]) == 0.5
        recipe = Recipe(
            lambda: net(torch.float32),
            cf.CrossEntropy(),
            adam(0.1, betas=(np.float32(0.9), 0.99)),  # type: ignore[arg-type]
            batch_size=30,
            steps=2,
        )
        train(recipe, cf.Examples(X.float(), Y), grid([0], [0]))


class Padded(nn.Module):
    """Only the head is trained, so that torch takes its fused code whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed = nn.Embedding(9, 8)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.out = nn.Linear(8, 3)
        for module in (self.embed, self.encoder):
            module.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(ids), src_key_padding_mask=ids == 0).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_code_without_gradients_is_named() -> None:
    ids = torch.randint(1, 9, (12, 4), generator=torch.Generator().manual_seed(0))
    ids[::2, 2:] = 0
    torch.manual_seed(0)
    model = Padded().eval()
    given = cf.Problem(model, cf.CrossEntropy(), (ids, Y[:12]), (ids[:3], Y[:3]))
    with torch.no_grad():
        gap = float((model(ids[:8]) - given.forward(ids[:8])).abs().max())
    assert gap > 0.01
    (note,) = [n for n in cf.influence(given, cf.EKFAC()).notes if "other code" in n]
    assert f"differ by up to {gap:.2g} of " in note
    full = cf.Problem(model, cf.CrossEntropy(), (ids.clamp_min(1), Y[:12]), (ids[:3], Y[:3]))
    assert not any("other code" in n for n in full.notes)


class Ragged(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.ones(i % 3 + 1), 0


class Short(torch.utils.data.Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return X[:4][i], 0


@pytest.mark.parametrize("dataset", [Ragged(), Short()], ids=["ragged", "too long a length"])
def test_what_a_dataset_raises_is_said_with_its_cause(
    dataset: torch.utils.data.Dataset[tuple[Tensor, int]],
) -> None:
    with pytest.raises(InputError, match=r"train: reading the data raised") as caught:
        cf.Problem(net(), cf.CrossEntropy(), dataset, (X[:4], Y[:4]))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "measurement",
    [cf.Margin(), cf.CustomMeasurement(lambda o, t: o.softmax(-1)[:, 0], False, "p", "")],
    ids=["margin", "a probability"],
)
def test_a_measurement_that_cannot_move_so_far(measurement: Measurement) -> None:
    x = X.clone()
    x[:, 4] *= 1e-6
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    given = cf.Problem(model, cf.CrossEntropy(), (x, Y), (X[:4], Y[:4]), measurement=measurement)
    wild = cf.influence(given, cf.EKFAC(), damping=cf.Absolute(1e-13))
    assert any("can move" in note for note in wild.notes)
    sober = cf.influence(given, cf.EKFAC(), damping=cf.Absolute(0.1))
    assert not any("can move" in note for note in sober.notes)


def a_recipe(**more: object) -> Recipe:
    settings: dict[str, object] = {"batch_size": 30, "steps": 2, **more}
    return Recipe(lambda: net(torch.float32), cf.CrossEntropy(), sgd(0.1), **settings)  # type: ignore[arg-type]


def fitted() -> cf.Curvature:
    return cf.fit(problem(cf.CrossEntropy()), cf.EKFAC())


def scored() -> cf.Scores:
    return cf.influence(problem(cf.CrossEntropy()), cf.EKFAC())


def trained(**more: object) -> object:
    settings: dict[str, object] = {"runs": grid([0], [0]), **more}
    return train(a_recipe(), cf.Examples(X.float(), Y), **settings)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "lower_is_better": (lambda: cf.CustomMeasurement(cross_entropy, "no"), "True or False"),
    "clip_negative": (lambda: cf.CustomLoss(cross_entropy, "False"), "True or False"),
    "a loss": (lambda: cf.CustomLoss(3), "callable"),
    "smoothing": (lambda: cf.CrossEntropy("a"), "label_smoothing must be a finite number"),
    "class weights": (lambda: cf.CrossEntropy(weight="a"), "class weights must be a tensor"),
    "tolerance": (lambda: cf.inversion.ConjugateGradients(tolerance="a"), "finite number"),
    "iterations": (lambda: cf.inversion.ConjugateGradients(max_iterations=1.5), "whole number"),
    "preconditioner": (lambda: cf.inversion.ConjugateGradients(preconditioner=3), "a rung"),
    "truncate": (lambda: cf.hessian.Truncate("a"), "finite number"),
    "groups": (lambda: cf.group_influence(problem(cf.CrossEntropy()), cf.EKFAC(), "a"), "groups"),
    "a group": (lambda: scored().for_group(True), "a group is indices"),
    "complex": (lambda: scored().for_group(torch.ones(1, 30, dtype=torch.complex64)), "complex"),
    "out": (lambda: cf.influence(problem(cf.CrossEntropy()), cf.EKFAC(), out=3), "a path"),
    "candidates": (lambda: cf.BestOf(0.1), "a tuple of dampings"),
    "a seed": (lambda: Run("a", 0), "init_seed must be a whole number"),
    "a subset": (lambda: Run(0, 0, 0.5), "subset must be a whole number"),
    "seeds": (lambda: grid("a", [0]), "init_seeds must be whole numbers"),
    "a group's weight": (lambda: down_weight(20, 3, 0.1), "groups must be a list"),
    "runs": (lambda: trained(runs=3), "runs must be"),
    "chunk": (lambda: trained(chunk="a"), "chunk must be a whole number"),
    "threads": (lambda: trained(threads="a"), "threads must be a whole number"),
    "path": (lambda: trained(path="a"), "path must be one of"),
    "progress": (lambda: trained(progress=3), "callable"),
    "subsets": (lambda: trained(subsets="x"), "truth.Subsets"),
    "schedule": (lambda: a_recipe(schedule="a"), "a method factor"),
    "batch size": (lambda: a_recipe(batch_size=None), "batch_size must be a whole number"),
    "momentum": (lambda: sgd(0.1, momentum=5), "momentum must be finite"),
    "rate": (lambda: sgd(True), "lr must be a finite number"),
    "betas": (lambda: adam(0.1, betas=3), "two numbers"),
    "vectors": (lambda: fitted().solve("a", cf.Absolute(0.1)), "vectors must be a tensor"),
    "a product": (lambda: fitted().matvec([1]), "vectors must be a tensor"),
    "ignored": (lambda: cf.Positions(cf.CrossEntropy(), ignore_index=1.5), "whole number"),
    "nested": (
        lambda: cf.Problem(
            net(), cf.CrossEntropy(), (torch.nested.nested_tensor([X[0]]), Y[:1]), (X, Y)
        ),
        "nested",
    ),
    "beyond floats": (lambda: cf.Absolute(10**400), "a finite number"),
    "masked": (
        lambda: cf.Problem(
            net(), cf.CrossEntropy(), (np.ma.masked_greater(X.numpy(), 1), Y), (X, Y)
        ),
        "masked entries",
    ),
    "correlated": (lambda: cf.fidelity.spearman(np.ones((2, 3), complex), np.ones((2, 3))), "real"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kind_of_argument(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(CurvfluenceError, match=said):
        call()
