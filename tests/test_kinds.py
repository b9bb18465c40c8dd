"""Arguments of the wrong kind: one clear error each, which names what was seen, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import curvfluence as cf
from curvfluence.study.cells import run_cells
from curvfluence.truth import Optimizer, Recipe, grid, random_subsets, sgd, train
from tests.problems import mlp, seeded

X, Y = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 3
NET = mlp(5, 4, 3).float()
Any_: Any = cf


def problem(**changes: Any) -> cf.Problem:
    seeded()
    given: dict[str, Any] = {
        "model": NET, "loss": cf.CrossEntropy(), "train": (X, Y), "queries": (X[:3], Y[:3]),
        **changes,
    }  # fmt: skip
    return cf.Problem(**given)


def recipe(**changes: Any) -> Recipe:
    given: dict[str, Any] = {
        "architecture": lambda: mlp(5, 4, 3), "loss": cf.CrossEntropy(), "optimizer": sgd(0.1),
        "batch_size": 4, "epochs": 1, **changes,
    }  # fmt: skip
    return Recipe(**given)


def scores() -> Any:
    return cf.influence(problem(), cf.KFAC())


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


STATE = {name: value.numpy() for name, value in NET.state_dict().items()}

REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    # a problem
    "no problem": (lambda: Any_.influence(None, cf.KFAC()), "problem must be a curvfluence"),
    "a model": (lambda: Any_.fit(NET, cf.KFAC()), "seen Sequential"),
    "self": (lambda: Any_.self_influence(None, cf.KFAC()), "problem must be"),
    "plan": (lambda: Any_.plan(None, cf.KFAC()), "problem must be"),
    "no model": (lambda: problem(model=None), "model must be an nn.Module; seen NoneType"),
    "a function": (lambda: problem(model=lambda x: x), "model must be an nn.Module"),
    "parallel": (lambda: problem(model=nn.DataParallel(NET)), "model.module"),
    "script": (lambda: problem(model=torch.jit.trace(NET, X[:1])), "TorchScript"),
    "lazy": (lambda: problem(model=Lazy()), "layer.weight has no shape yet"),
    "decoupled": (lambda: problem(decoupled_decay="no"), "decoupled_decay must be True or False"),
    "unmodelled": (lambda: problem(unmodelled=3), "unmodelled must be a text"),
    "unmodelled ones": (lambda: problem(unmodelled=["a", 3]), "must be texts; seen 3"),
    "decay of text": (lambda: problem(weight_decay="0.1"), "weight_decay must be a finite number"),
    "a decay": (lambda: problem(weight_decay={"0.weight": "a"}), "weight_decay of 0.weight"),
    "decay True": (lambda: problem(weight_decay=True), "seen True"),
    "weights": (lambda: problem(weights=[1, 2]), "weights must be a mapping"),
    "a weight": (lambda: problem(weights={**STATE, "0.weight": "a"}), r"weights\['0.weight'\]"),
    "remember": (lambda: problem(remember=1.5), "remember"),
    "to a name": (lambda: problem().to("float64"), "torch.float64, not 'float64'"),
    "to a place": (lambda: problem().to("floaty"), "device must be one of torch's"),
    # data
    "ragged": (lambda: problem(train=([[1.0], [1.0, 2.0]], [0, 1])), "inputs must be a tensor"),
    "strings": (lambda: problem(train=(X, ["a"] * 20)), "targets must be a tensor"),
    "sparse": (lambda: problem(train=(X.to_sparse(), Y)), r"inputs must be dense.*to_dense"),
    "meta": (lambda: problem(train=(X.to("meta"), Y)), "no values"),
    "complex": (lambda: problem(train=(X, Y + 0j)), "targets must be real"),
    "one": (lambda: problem(train=X), "expected .inputs, targets."),
    "example weights": (lambda: problem(sample_weight="a"), "weights must be a tensor"),
    # dampings
    "λ of text": (lambda: cf.Absolute(Any_.__name__), "Absolute damping must be a finite number"),
    "λ True": (lambda: cf.Relative(True), "seen True"),
    "λ None": (lambda: cf.Absolute(None), "seen None"),  # pyright: ignore
    "a number": (lambda: Any_.influence(problem(), cf.KFAC(), damping=0.1), "such as Relative"),
    "solve": (lambda: Any_.fit(problem(), cf.KFAC()).solve(torch.zeros(39), 0.1), "such as"),
    "truth": (lambda: Any_.BestOf((cf.Absolute(1.0),), truth=3), "able to judge"),
    "candidate": (lambda: Any_.BestOf((0.1,), truth=3), "a candidate is a damping"),
    # rungs
    "joint": (lambda: Any_.KFAC(joint_bias="no"), "joint_bias must be True or False"),
    "fisher": (lambda: Any_.KFAC("type2"), "fisher must be Type2"),
    "draws": (lambda: Any_.MonteCarlo(2.5), "draws must be a whole number"),
    "seed": (lambda: Any_.MonteCarlo(2, seed=-1), "seed must be a whole number >= 0"),
    "strict": (lambda: Any_.fit(problem(), cf.KFAC(), strict="yes"), "strict must be"),
    "vectors": (
        lambda: cf.fit(problem(), cf.KFAC()).matvec(torch.zeros(39).double()), "one dtype",
    ),
    # scores
    "compress": (lambda: Any_.influence(problem(), cf.KFAC(), compress="a"), "compress must be"),
    "inverse": (
        lambda: Any_.influence(problem(), cf.KFAC(), inverse_error="a"),
        "inverse_error must be",
    ),
    "tolerance": (lambda: Any_.influence(problem(), cf.GGN(), tolerance="a"), "tolerance must be"),
    "bound": (
        lambda: Any_.influence(problem(), cf.GGN(), bound_tolerance="a"),
        "bound_tolerance must be",
    ),
    "leverage": (lambda: Any_.influence(problem(), cf.GGN(), leverage=1), "leverage must be"),
    "top": (lambda: scores().top(2.5), "k must be a whole number"),
    "no group": (lambda: scores().for_group(None), "group must be a tensor"),
    "NaN group": (lambda: scores().for_group(torch.full((1, 20), torch.nan)), "weight of group"),
    "certificate": (lambda: scores().certificate(dtype="float64"), "dtype must be a dtype"),
    "label": (lambda: Any_.LogProbability(1.5), "label must be a whole number"),
    # truth
    "keep": (lambda: random_subsets(20, keep=float("nan"), count=2, seed=0), "keep must be"),
    "count": (lambda: Any_.truth.random_subsets(20, keep=0.5, count=1.5, seed=0), "count must be"),
    "torch loss": (lambda: recipe(loss=nn.L1Loss()), "loss must be a curvfluence loss"),
    "torch optimiser": (lambda: recipe(optimizer=torch.optim.SGD), "such as sgd"),
    "architecture": (lambda: recipe(architecture=3), "must be a function"),
    "epochs": (lambda: recipe(epochs=1.5), "epochs must be a whole number"),
    "clip": (lambda: recipe(clip_norm="a"), "clip_norm must be a finite number"),
    "tuple": (lambda: train(recipe(), (X, Y), grid([0], [0])), "curvfluence.Examples"),  # pyright: ignore
    "jobs": (lambda: run_cells([], [], jobs=0), "jobs must be a whole number"),
    "no recipe": (lambda: train(None, cf.Examples(X, Y), grid([0], [0])), "Recipe"),  # pyright: ignore
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_the_wrong_kind_is_refused(name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(cf.errors.InputError, match=said):
        call()


class TestAccepted:
    """What is as good is taken."""

    def test_arrays_and_lists(self) -> None:
        wanted = cf.influence(problem(), cf.KFAC()).values
        x, y = X.numpy(), Y.numpy()
        for train_set in ((x, y), (x.tolist(), y.tolist()), cf.Examples(x, y)):  # pyright: ignore
            found = cf.influence(problem(train=train_set), cf.KFAC()).values
            torch.testing.assert_close(found, wanted)

    def test_an_array_that_runs_backwards(self) -> None:
        given = problem(train=(X.numpy()[::-1], Y.numpy()[::-1]))
        assert torch.equal(given.train.inputs, X.flip(0))

    def test_weights_of_arrays(self) -> None:
        assert all(v.equal(NET.state_dict()[n]) for n, v in problem(weights=STATE).theta.items())

    def test_numbers_of_numpy(self) -> None:
        assert cf.Absolute(np.float64(0.1)) == cf.Absolute(0.1)
        assert cf.MonteCarlo(np.int64(2)).name == "mc(2)"  # pyright: ignore[reportArgumentType]

    def test_an_optimizer(self) -> None:
        assert recipe(optimizer=Optimizer(torch.optim.SGD, {"lr": 0.1})).optimizer.lr == 0.1
