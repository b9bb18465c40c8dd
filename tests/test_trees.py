"""Inputs and targets in containers: the same scores as the hand-packed tensor, every way in."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import curvfluence as cf
from curvfluence.problem.measurement import LossMeasurement
from curvfluence.problem.source import data_of
from curvfluence.problem.tree import Tree, batched, joined, leaves, paths_of, same, value_of
from curvfluence.study.costs import forecasts
from curvfluence.study.run import run_study
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Recipe, Run, Subsets, measure, random_subsets, sgd, train
from curvfluence.truth.paths import Path as TrainingPath
from tests.problems import seeded

N, Q = 24, 5
GENERATOR = torch.Generator().manual_seed(3)
AGE = torch.randn(N + Q, 3, generator=GENERATOR)
CITY = torch.randint(0, 4, (N + Q,), generator=GENERATOR)
MASK = torch.rand(N + Q, 2, generator=GENERATOR) > 0.3
LABEL = torch.randint(0, 3, (N + Q,), generator=GENERATOR)
OTHER = torch.randn(N + Q, generator=GENERATOR)


class Pair(NamedTuple):
    age: Tensor
    city: Tensor
    mask: Tensor


@dataclasses.dataclass
class Row:
    age: Tensor
    city: Tensor
    mask: Tensor


class Encoding(UserDict[str, Any]):
    """As `transformers.BatchEncoding`: a mapping that is no dict."""


class Answer(OrderedDict[str, Tensor]):
    """As `transformers.ModelOutput`: keys are attributes too."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]


class Net(nn.Module):
    """Numbers, a category and a mask."""

    def __init__(self, answer: Callable[[Tensor], Any] = lambda output: output) -> None:
        super().__init__()
        self.city = nn.Embedding(4, 3)
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)
        self.answer = answer

    def forward(self, age: Tensor, city: Tensor, mask: Tensor | None = None) -> Any:
        x = torch.cat([age, self.city(city)], dim=-1)
        h = torch.tanh(self.hidden(x))
        if mask is not None:
            h = h * nn.functional.pad(mask, (0, 3), value=True).to(h.dtype)
        return self.answer(self.head(h))


class Packed(nn.Module):
    """The same on one tensor, packed by hand."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :3], x[:, 3].long(), x[:, 4:] > 0.5)


def net(answer: Callable[[Tensor], Any] = lambda output: output) -> Net:
    seeded()
    return Net(answer).double()


def rows(at: slice, make: Callable[[Tensor, Tensor, Tensor], Any]) -> Any:
    return make(AGE[at], CITY[at], MASK[at])


TRAIN, QUERIES = slice(0, N), slice(N, N + Q)
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "tuple": lambda a, c, m: (a, c, m),
    "list": lambda a, c, m: [a, c, m],
    "named tuple": Pair,
    "mapping": lambda a, c, m: {"mask": m, "age": a, "city": c},
    "encoding": lambda a, c, m: Encoding(age=a, city=c, mask=m),
    "arrays": lambda a, c, m: {"age": a.numpy(), "city": c.numpy(), "mask": m.numpy()},
}
RUNGS = (
    cf.Identity(), cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.BlockGGN(), cf.GGN(), cf.Hessian(),
)  # fmt: skip


def scores(problem: cf.Problem, rung: cf.Rung) -> Tensor:
    damping = cf.Absolute(1.0 if isinstance(rung, cf.Identity) else 0.01)
    return cf.influence(problem, rung, damping=damping).values


def problem(
    make: Callable[[Tensor, Tensor, Tensor], Any], model: nn.Module | None = None, **options: Any
) -> cf.Problem:
    model = net() if model is None else model
    train = (rows(TRAIN, make), LABEL[TRAIN])
    queries = (rows(QUERIES, make), LABEL[QUERIES])
    return cf.Problem(model, cf.CrossEntropy(), train, queries, **options)


def packed(at: slice) -> Tensor:
    return torch.cat([AGE[at], CITY[at, None], MASK[at]], dim=1).double()


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    """Scores of the hand-packed problem, by rung."""
    by_hand = cf.Problem(
        Packed(net()),
        cf.CrossEntropy(),
        (packed(TRAIN), LABEL[TRAIN]),
        (packed(QUERIES), LABEL[QUERIES]),
    )
    return {type(rung).__name__: scores(by_hand, rung) for rung in RUNGS}


class TestForms:
    @pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: type(rung).__name__)
    @pytest.mark.parametrize("form", FORMS)
    def test_every_container_is_the_hand_packed_tensor(
        self, form: str, rung: cf.Rung, wanted: dict[str, Tensor]
    ) -> None:
        found = scores(problem(FORMS[form]), rung)
        assert torch.allclose(found, wanted[type(rung).__name__], rtol=1e-8, atol=1e-12)

    def test_a_dataclass_by_forward(self, wanted: dict[str, Tensor]) -> None:
        def forward(model: nn.Module, row: Row) -> Tensor:
            assert isinstance(row, Row)
            return model(row.age, row.city, mask=row.mask)

        found = scores(problem(Row, forward=forward), cf.GGN())
        assert torch.allclose(found, wanted["GGN"], rtol=1e-8, atol=1e-12)

    def test_nested(self, wanted: dict[str, Tensor]) -> None:
        def forward(model: nn.Module, x: dict[str, Any]) -> Tensor:
            return model(x["numbers"][0], x["rest"].city, x["rest"].mask)

        def nested(a: Tensor, c: Tensor, m: Tensor) -> dict[str, Any]:
            return {"numbers": [a], "rest": Pair(None, c, m)}  # type: ignore[arg-type]

        made = problem(nested, forward=forward)
        assert paths_of(made.train.inputs) == ("numbers[0]", "rest[1]", "rest[2]")
        assert torch.allclose(scores(made, cf.EKFAC()), wanted["EKFAC"], rtol=1e-8, atol=1e-12)

    def test_none_is_passed_on(self) -> None:
        without = problem(lambda a, c, m: {"age": a, "city": c, "mask": None})
        all_true = problem(lambda a, c, m: (a, c, torch.ones_like(m)))
        assert torch.allclose(scores(without, cf.GGN()), scores(all_true, cf.GGN()))

    def test_fewer_arguments(self) -> None:
        found = scores(problem(lambda a, c, m: (a, c)), cf.GGN())
        assert torch.allclose(found, scores(problem(lambda a, c, m: (a, c, None)), cf.GGN()))

    @pytest.mark.parametrize(
        ("answer", "options"),
        [
            (lambda f: Answer(logits=f), {}),
            (lambda f: {"logits": f, "hidden": f}, {}),
            (lambda f: {"scores": f}, {"output": "scores"}),
            (lambda f: (f, f + 1), {"output": lambda answer: answer[0]}),
        ],
        ids=["logits", "mapping", "name", "function"],
    )
    def test_outputs(self, answer: Any, options: dict[str, Any], wanted: dict[str, Tensor]) -> None:
        found = scores(problem(FORMS["tuple"], net(answer), **options), cf.GGN())
        assert torch.allclose(found, wanted["GGN"], rtol=1e-8, atol=1e-12)


class Items(Dataset[Any]):
    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


def _fields(i: int) -> dict[str, Tensor]:
    return {"age": AGE[i], "city": CITY[i], "mask": MASK[i]}


SOURCES: dict[str, Callable[[], Any]] = {
    "pairs": lambda: Items(lambda i: (_fields(i), LABEL[i])),
    "labels": lambda: Items(lambda i: {**_fields(i), "labels": int(LABEL[i])}),
    "tuples": lambda: Items(lambda i: ((AGE[i], CITY[i], MASK[i]), LABEL[i])),
    "loader": lambda: DataLoader(Items(lambda i: {**_fields(i), "labels": LABEL[i]}), batch_size=7),
    "collator": lambda: DataLoader(
        Items(lambda i: i),
        batch_size=7,
        collate_fn=lambda ids: Encoding(
            age=AGE[ids], city=CITY[ids], mask=MASK[ids], labels=LABEL[ids]
        ),
    ),
    "batch": lambda: {
        **dict(zip(Pair._fields, rows(TRAIN, Pair), strict=True)),
        "labels": LABEL[TRAIN],
    },
}


class TestSources:
    @pytest.mark.parametrize("source", SOURCES)
    def test_every_source(self, source: str, wanted: dict[str, Tensor]) -> None:
        queries = (rows(QUERIES, FORMS["mapping"]), LABEL[QUERIES])
        if source == "tuples":
            queries = (rows(QUERIES, FORMS["tuple"]), LABEL[QUERIES])
        made = cf.Problem(net(), cf.CrossEntropy(), SOURCES[source](), queries)
        assert torch.allclose(scores(made, cf.EKFAC()), wanted["EKFAC"], rtol=1e-8, atol=1e-12)

    def test_an_item_that_changes(self) -> None:
        noisy = Items(lambda i: ({**_fields(i), "age": torch.rand(3)}, LABEL[i]))
        with pytest.raises(cf.errors.InputError, match="the input of item 0 is another when it is"):
            data_of(noisy, "train")


class TestTargets:
    def test_two_tasks(self) -> None:
        """A class and a number, each with its loss: the same as two columns of one tensor."""

        def two(output: Tensor, target: Mapping[str, Tensor]) -> Tensor:
            label = nn.functional.cross_entropy(output, target["label"], reduction="none")
            return label + (output[:, 0] - target["value"]).square()

        def one(output: Tensor, target: Tensor) -> Tensor:
            return two(output, {"label": target[:, 0].long(), "value": target[:, 1]})

        def made(function: Any, pack: Callable[[slice], Any]) -> cf.Problem:
            train, queries = ((rows(at, FORMS["tuple"]), pack(at)) for at in (TRAIN, QUERIES))
            measurement = cf.CustomMeasurement(function, lower_is_better=True)
            loss = cf.CustomLoss(function)
            return cf.Problem(net(), loss, train, queries, measurement=measurement)

        apart = made(two, lambda at: {"label": LABEL[at], "value": OTHER[at]})
        stacked = made(one, lambda at: torch.stack([LABEL[at].double(), OTHER[at].double()], 1))
        for rung in RUNGS:
            assert torch.allclose(scores(apart, rung), scores(stacked, rung), rtol=1e-9)

    def test_a_built_in_loss_takes_one_tensor(self) -> None:
        targets = {"label": LABEL[TRAIN], "other": LABEL[TRAIN]}
        with pytest.raises(
            cf.errors.InputError,
            match=r"CrossEntropy takes targets of one tensor; seen label, other",
        ):
            cf.Problem(
                net(),
                cf.CrossEntropy(),
                (rows(TRAIN, FORMS["tuple"]), targets),
                (rows(QUERIES, FORMS["tuple"]), LABEL[QUERIES]),
            )


class TestRetraining:
    """Every path of training, on containers."""

    @staticmethod
    def recipe(**options: Any) -> Recipe:
        return Recipe(lambda: Net(), cf.CrossEntropy(), sgd(0.1), batch_size=8, epochs=3, **options)

    def test_paths_agree(self) -> None:
        examples = cf.Examples(rows(TRAIN, FORMS["mapping"]), LABEL[TRAIN])
        queries = cf.Examples(rows(QUERIES, FORMS["mapping"]), LABEL[QUERIES])
        by_hand = cf.Examples(packed(TRAIN).float(), LABEL[TRAIN])
        subsets: Subsets = random_subsets(N, keep=0.5, count=2, seed=0)
        runs = [Run(0, 1), Run(0, 1, 0), Run(3, 2, 1)]
        alone = Recipe(lambda: Packed(Net()), cf.CrossEntropy(), sgd(0.1), batch_size=8, epochs=3)
        wanted = train(alone, by_hand, runs, subsets)
        for path in (TrainingPath.FUNCTIONAL, TrainingPath.PROCESSES):
            found = train(self.recipe(), examples, runs, subsets, path=path)
            for name, value in found.theta.items():
                assert torch.allclose(value, wanted.theta[f"net.{name}"], atol=1e-5), (path, name)
            assert torch.allclose(found.final_loss, wanted.final_loss, atol=1e-5)
            loss = LossMeasurement(cf.CrossEntropy())
            values = measure(self.recipe(), found, queries, loss)
            q = cf.Examples(packed(QUERIES).float(), LABEL[QUERIES])
            assert torch.allclose(values, measure(alone, wanted, q, loss), atol=1e-5)

    def test_by_forward(self) -> None:
        examples = cf.Examples(rows(TRAIN, Row), LABEL[TRAIN])
        recipe = self.recipe(forward=lambda model, row: model(row.age, row.city, row.mask))
        found = train(recipe, examples, [Run(0, 1)])
        plain = cf.Examples(rows(TRAIN, FORMS["tuple"]), LABEL[TRAIN])
        wanted = train(self.recipe(), plain, [Run(0, 1)])
        for name, value in found.theta.items():
            assert torch.equal(value, wanted.theta[name])
        assert "calls" in recipe.describe()
        assert "calls" not in self.recipe().describe()


OWN = """
import torch
from torch import nn
import curvfluence as cf
from curvfluence.study.costs import forecasts
from curvfluence.study.run import run_study
from curvfluence.study.spec import StudySpec
from curvfluence.truth import Recipe, Run, sgd, train as train_all


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 3), nn.Linear(5, 3)

    def forward(self, numbers, kind):
        return {"scores": self.head(torch.cat([numbers, self.embed(kind)], dim=-1))}


def forward(model, x):
    return model(x["a"], x["b"])


generator = torch.Generator().manual_seed(0)
x = {"a": torch.randn(30, 2, generator=generator),
     "b": torch.randint(0, 4, (30,), generator=generator)}
y = torch.randint(0, 3, (30,), generator=generator)
train = cf.Examples({k: v[:24] for k, v in x.items()}, y[:24])
queries = cf.Examples({k: v[24:] for k, v in x.items()}, y[24:])
recipe = Recipe(Net, cf.CrossEntropy(), sgd(0.1), batch_size=8, epochs=2,
                forward=forward, output="scores")
trained = train_all(recipe, train, [Run(0, 0)])
problem = cf.Problem(recipe.build(0), cf.CrossEntropy(), train, queries,
                     weights=trained.weights(0), forward=forward, output="scores")
"""


def test_a_study_and_a_plan_of_ones_own(tmp_path: Path) -> None:
    """A file whose model is called in its own way: wherever a problem is made of it again."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert forecasts(str(file), ("KFAC",), queries=None, dtype="float32")[0].seconds > 0
    spec = StudySpec(
        str(file), 6, models=2, orders=1, rungs=("GGN", "KFAC"), dampings=(0.01, 0.1),
        replicates=200, bregman=False, hybrids=False, costs=False,
    )  # fmt: skip
    results = run_study(spec, tmp_path / "out", threads=1).results
    assert [rung.name for rung in results.rungs] == ["GGN", "KFAC"]
    assert results.display is not None
    assert results.display.names == ("a 0", "a 1", "b")


class TestTree:
    @pytest.mark.parametrize("form", [*FORMS, "dataclass"])
    def test_the_container_comes_back(self, form: str) -> None:
        given = rows(TRAIN, {**FORMS, "dataclass": Row}[form])
        tree = batched(given, "inputs")
        assert isinstance(tree, Tree)
        again = pickle.loads(pickle.dumps(tree))
        for each in (tree, again):
            value = value_of(each)
            assert type(value) is type(given)
            assert same(batched(value, "inputs"), tree)

    def test_a_mapping_that_makes_no_other_is_a_dict(self) -> None:
        given = defaultdict(list, {"age": AGE})
        assert type(value_of(batched(given, "inputs"))) is dict

    def test_parts_join_to_the_whole(self) -> None:
        tree = batched(rows(TRAIN, FORMS["mapping"]), "inputs")
        assert same(joined([tree[:7], tree[7:]]), tree)
        assert not same(tree[:7], tree[7:14])
        assert len(tree[torch.tensor([3, 5])]) == 2
        assert all(len(leaf) == 2 for leaf in leaves(tree[torch.tensor([3, 5])]))

    def test_lists_of_numbers_are_tensors(self) -> None:
        assert isinstance(batched([[1.0, 2.0], [3.0, 4.0]], "inputs"), Tensor)
        assert isinstance(batched(np.zeros(3), "inputs"), Tensor)

    def test_what_a_problem_depends_on(self) -> None:
        """A fingerprint tells the values and the names apart, and the way of the call."""
        make = FORMS["mapping"]
        one = problem(make).fingerprint
        assert problem(make).fingerprint == one
        assert problem(lambda a, c, m: make(a + 1e-3, c, m)).fingerprint != one
        assert problem(FORMS["tuple"]).fingerprint != one
        assert problem(make, output=lambda f: f).fingerprint != one

    def test_changed_in_place(self) -> None:
        made = problem(FORMS["mapping"])
        before = made.train.checksum, made.train.versions
        leaves(made.train.inputs)[1][0, 0] += 1
        assert made.train.checksum != before[0]
        assert made.train.versions != before[1]

    def test_distinct(self) -> None:
        twice = [torch.cat([part, part[:3]]) for part in (AGE, CITY, LABEL)]
        examples = cf.Examples((twice[0], twice[1]), twice[2])
        assert examples.distinct == N + Q
        twice[1][-1] = (twice[1][-1] + 1) % 4
        assert cf.Examples((twice[0], twice[1]), twice[2]).distinct == N + Q + 1


class Swallows(nn.Module):
    """Takes any key, as many models of Hugging Face do, and says what its padding is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)
        self.config = type("Config", (), {"pad_token_id": 0})()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Any:
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * torch.stack([attention_mask] * 4, dim=-1)  # read within a list
        return Answer(logits=self.head(x.mean(1)))


class TestSaid:
    """What runs, and looks wrong."""

    IDS = torch.randint(1, 9, (N + Q, 5), generator=torch.Generator().manual_seed(1))

    def made(self, ids: Tensor, **more: Tensor) -> cf.Problem:
        seeded()
        parts = [
            {"input_ids": ids[at], **{k: v[at] for k, v in more.items()}, "labels": LABEL[at]}
            for at in (TRAIN, QUERIES)
        ]
        return cf.Problem(Swallows(), cf.CrossEntropy(), *parts)

    def test_an_input_that_nobody_reads(self) -> None:
        with pytest.warns(cf.errors.CurvfluenceWarning, match="does not read the inputs' mask"):
            made = self.made(self.IDS, mask=torch.ones_like(self.IDS))
        assert made.unread == ("mask",)
        notes = cf.influence(made, cf.EKFAC()).notes
        assert any("(Swallows) does not read the inputs' mask" in note for note in notes)

    def test_padding_without_a_mask(self) -> None:
        ids = self.IDS.clone()
        ids[:7, -2:] = 0
        said = rf"7 of {N} examples end or begin in padding \(token 0\), and there is no"
        with pytest.warns(cf.errors.CurvfluenceWarning, match=said):
            self.made(ids)

    def test_padding_beyond_the_first_examples(self) -> None:
        ids = self.IDS.clone()
        ids[15, -1] = ids[15, 0] = 0
        with pytest.warns(cf.errors.CurvfluenceWarning, match=f"^1 of {N} examples"):
            self.made(ids)

    def test_nothing_is_said_of_what_is_right(self) -> None:
        ids = self.IDS.clone()
        ids[:7, -2:] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = self.made(ids, attention_mask=(ids > 0).float())
            self.made(self.IDS)
        assert made.unread == ()

    def test_queries_that_are_training_examples(self) -> None:
        train = (rows(TRAIN, FORMS["tuple"]), LABEL[TRAIN])
        at = torch.tensor([25, 7, 26, 3])
        asked = ((AGE[at], CITY[at], MASK[at]), LABEL[at])
        made = cf.Problem(net(), cf.CrossEntropy(), train, asked)
        notes = cf.influence(made, cf.EKFAC()).notes
        said = "2 queries are in the training set too (query 1 is example 7)"
        assert any(note.startswith(said) for note in notes)
        apart = cf.influence(problem(FORMS["tuple"]), cf.EKFAC()).notes
        assert not any("in the training set too" in note for note in apart)

    def test_ids_that_an_embedding_does_not_hold(self) -> None:
        with pytest.raises(cf.errors.InputError, match="Numbers that an embedding does not hold"):
            self.made(self.IDS + 20)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "lengths": (
        lambda: cf.Examples({"age": AGE, "city": CITY[:7]}, LABEL),
        r"one of each an example; seen 29 of inputs age, 7 of inputs city, 29 of targets",
    ),
    "a key that the model does not take": (
        lambda: problem(lambda a, c, m: {"age": a, "city": c, "height": a}),
        r"unexpected keyword argument 'height'.*seen the keys age, city, height.*forward takes",
    ),
    "a missing key": (
        lambda: problem(lambda a, c, m: {"age": a}),
        r"missing a required argument: 'city'",
    ),
    "too many": (
        lambda: problem(lambda a, c, m: (a, c, m, a)),
        r"too many positional arguments.*seen 4 inputs",
    ),
    "a dataclass without forward": (
        lambda: problem(Row),
        r"a Row is given to a model by forward alone.*forward=lambda model, inputs",
    ),
    "no labels": (
        lambda: data_of({"age": AGE, "label": LABEL}, "train"),
        r"train: a mapping needs the targets under 'labels'; seen age, label",
    ),
    "labels alone": (
        lambda: data_of({"labels": LABEL}, "train"),
        r"a mapping of 'labels' alone has no inputs",
    ),
    "three": (
        lambda: data_of((AGE, CITY, LABEL), "train"),
        r"seen a tuple of 3\. Several inputs stand together: \(\(first, second\), targets\)",
    ),
    "a string": (
        lambda: cf.Examples({"age": AGE, "name": "x"}, LABEL),
        r"inputs: name must be a tensor or an array of numbers",
    ),
    "empty": (lambda: cf.Examples({}, LABEL), r"inputs hold no tensor: seen an empty dict"),
    "not finite": (
        lambda: cf.Examples({"age": torch.where(AGE > 2, torch.nan, AGE)}, LABEL),
        r"input age of example \d+ is NaN or infinite",
    ),
    "forms that differ": (
        lambda: data_of(
            DataLoader(
                Items(lambda i: (_fields(i) if i else {"age": AGE[i]}, LABEL[i])), batch_size=None
            ),
            "train",
        ),
        r"examples must have one form throughout; seen \(age\) and \(age, city, mask\)",
    ),
    "no tensor of outputs": (
        lambda: problem(FORMS["tuple"], net(lambda f: (f, f))),
        r"must return a tensor of outputs, and returned a tuple of 2: say which of it they are",
    ),
    "no such output": (
        lambda: problem(FORMS["tuple"], net(lambda f: {"a": f}), output="b"),
        r"the model's answer has no 'b'; it is a dict of a",
    ),
    "no function": (
        lambda: problem(FORMS["tuple"], forward="model"),
        r"forward must be a function of \(model, inputs\)",
    ),
    "another model": (
        lambda: problem(FORMS["tuple"], (own := net()), forward=lambda _, x: own(*x)),
        r"a copy of the model still uses the model's own",
    ),
    "a forward that mixes examples": (
        lambda: scores(
            problem(
                FORMS["tuple"],
                forward=lambda model, x: model(x[0] - x[0].mean(0, keepdim=True), x[1], x[2]),
            ),
            cf.GGN(),
        ),
        r"an example's output depends on the others in its batch",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_inputs(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(cf.errors.CurvfluenceError, match=f"(?s){message}"):
        make()
