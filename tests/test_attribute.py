"""Answers, how far they are believed, examples as a person sees them, and the command."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.stats import spearmanr
from torch import nn
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app
from curvfluence.curvature.named import damping_named, rung_named
from curvfluence.errors import CurvfluenceWarning, InputError
from curvfluence.explore import Answers, answer, believed, companion
from curvfluence.problem.problem import Problem
from curvfluence.problem.tree import Tree, batched
from curvfluence.report.examples.cards import cards, label, scales
from curvfluence.report.examples.seen import Features, Picture, Text, Words, seen_as
from curvfluence.report.examples.shown import by_shape, shown
from curvfluence.report.explorer import write_explorer
from curvfluence.report.explorer.data import embedded
from curvfluence.report.explorer.terminal import lists
from curvfluence.report.explorer.trust import measures, verdict
from curvfluence.report.explorer.words import notes, what_values_are
from curvfluence.score.agreement import Agreement, agreement, spearman
from curvfluence.score.certificate import Certificate
from curvfluence.study.problems.given import Given, given
from curvfluence.study.words import short
from tests.problems import chain_problem, make, seeded


@pytest.fixture(scope="module")
def asked() -> Given:
    return Given("chain", "A chain", chain_problem())


@pytest.fixture(scope="module")
def found(asked: Given) -> Answers:
    return answer(asked, rung=cf.EKFAC(), beside=cf.GGN(), damping=cf.Absolute(0.1), top=4)


class TestAgreement:
    def test_against_scipy_with_ties(self) -> None:
        problem = chain_problem()
        a = cf.influence(problem, cf.KFAC(), damping=cf.Absolute(0.1))
        b = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.1))
        a.values[0, :5] = a.values[0, 0].clone()
        b.values[1] = 0.0
        told = agreement(a, b, 3)
        for q in (0, 2, 3):
            wanted = spearmanr(a.values[q].numpy(), b.values[q].numpy()).statistic
            assert float(told.correlation[q]) == pytest.approx(wanted, abs=1e-12)
        assert torch.isnan(told.correlation[1])
        for q in range(4):
            tops = [set(s.top(3).indices[q].tolist()) for s in (a, b)]
            assert int(told.top[q]) == len(tops[0] & tops[1])

    def test_two_examples(self) -> None:
        a, b = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 3.0])
        assert (spearman(a, a), spearman(a, b)) == (1.0, -1.0)
        assert math.isnan(spearman(a, torch.ones(2)))

    def test_other_shapes_are_refused(self) -> None:
        scores = cf.influence(chain_problem(), cf.KFAC())
        with pytest.raises(InputError, match="same queries and examples"):
            agreement(scores, scores[:2])


class TestAnswers:
    def test_scores_are_those_of_influence(self, asked: Given, found: Answers) -> None:
        for one, rung in zip(found.answers, (cf.EKFAC(), cf.GGN()), strict=True):
            whole = cf.influence(asked.problem, rung, damping=cf.Absolute(0.1))
            assert torch.equal(one.scores.values, whole.values)
            assert one.certificate is not None
            wanted = whole.certificate().residuals
            assert one.certificate.residuals == pytest.approx(wanted, abs=1e-9)

    def test_some_queries_by_number(self, asked: Given, found: Answers) -> None:
        some = answer(asked, [3, 1], rung=cf.EKFAC(), damping=cf.Absolute(0.1), top=2)
        assert some.queries == (3, 1)
        torch.testing.assert_close(some.asked.values, found.asked.values[[3, 1]])

    def test_what_is_not_there_is_refused(self, asked: Given) -> None:
        with pytest.raises(InputError, match="there are 4 queries, 0 to 3; seen 9"):
            answer(asked, [9], rung=cf.EKFAC())
        with pytest.raises(InputError, match="top must be at most 12"):
            answer(asked, rung=cf.EKFAC(), top=13)

    def test_a_gradient_product_has_no_certificate(self, asked: Given) -> None:
        alone = answer(asked, rung=cf.Identity(), top=2)
        assert alone.answers[0].certificate is None
        assert alone.agreement is None

    def test_the_rung_beside(self, asked: Given) -> None:
        assert companion(asked.problem, cf.EKFAC())[0] == cf.GGN()
        assert companion(asked.problem, cf.GGN())[0] == cf.BlockGGN()
        nothing, why = companion(asked.problem, cf.EKFAC(), seconds=1e-9)
        assert nothing is None
        assert "no other rung" in why

    def test_tokens_add_up_to_the_examples(self) -> None:
        seeded()
        net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
        x = torch.randint(0, 7, (9, 5))
        problem = Problem(net, cf.CausalLM(), (x[:7], x[:7]), (x[7:], x[7:]), weight_decay=0.01)
        made = answer(Given("lm", "LM", problem), rung=cf.EKFAC(), top=2)
        for q, (examples, values) in enumerate(made.tokens):
            assert values.shape == (len(examples), 4)
            torch.testing.assert_close(values.sum(1), made.asked.values[q][list(examples)])


class TestNames:
    def test_rungs_and_dampings(self) -> None:
        assert rung_named("ekfac") == cf.EKFAC()
        assert rung_named("EK-FAC[mc(2)]") == cf.EKFAC(fisher=cf.MonteCarlo(2))
        assert rung_named("GGN") == cf.GGN()
        assert damping_named("1e-3") == cf.Absolute(1e-3)
        assert damping_named("relative(0.1)") == cf.Relative(0.1)
        assert str(cf.Relative(0.1)) == "Relative(0.1)"

    @pytest.mark.parametrize("text", ["", "big", "relative(", "1e", "nan", "-1"])
    def test_dampings_that_are_none(self, text: str) -> None:
        with pytest.raises(InputError):
            damping_named(text)

    @pytest.mark.parametrize("text", ["EKFACC", "GGN[mc(1)]", "EKFAC[many]", ""])
    def test_rungs_that_are_none(self, text: str) -> None:
        with pytest.raises(InputError):
            rung_named(text)


class TestSeen:
    def test_kinds(self) -> None:
        assert seen_as("hello") == Text("hello")
        assert seen_as(["a", "b"]) == Words(("a", "b"))
        row = seen_as({"age": torch.tensor(3), "size": np.float32(0.5), "city": "Bern", "ok": True})
        assert row == Features((("age", 3.0), ("size", 0.5), ("city", "Bern"), ("ok", "True")))
        for image in (
            torch.rand(3, 8, 9),
            np.full((8, 9, 3), 7, np.uint8),
            Image.new("RGB", (9, 8)),
        ):
            made = seen_as(image)
            assert isinstance(made, Picture)
            assert made.pixels.shape == (8, 9, 3)
        gray = seen_as(torch.rand(1, 8, 9))
        assert isinstance(gray, Picture)
        assert gray.pixels.shape == (8, 9)

    @pytest.mark.parametrize("value", [None, 3, torch.rand(4), torch.rand(2, 2) + 5, [1, 2], {3}])
    def test_what_nobody_can_show(self, value: object) -> None:
        with pytest.raises(InputError, match="`show` must return"):
            seen_as(value)

    def test_a_show_that_fails_names_the_example(self) -> None:
        def show(inputs: object, target: object) -> str:
            raise KeyError("text")

        with pytest.raises(InputError, match="`show` failed on training example 3: KeyError"):
            shown(Given("chain", "A chain", chain_problem(), show=show), "train", [3])
        one = Given("chain", "A chain", chain_problem(), show=lambda x, y: 7)
        with pytest.raises(InputError, match="query 2: `show` must return"):
            shown(one, "queries", [2])

    def test_by_shape(self) -> None:
        seeded()
        net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
        images = make(net, cf.CrossEntropy(), shape=(3, 4, 4))
        (first,) = shown(Given("i", "I", images), "train", [2])
        assert isinstance(first, Picture)
        rows = shown(Given("c", "C", chain_problem()), "queries", [0, 3])
        assert all(isinstance(row, Features) for row in rows)


def one_example(**leaves: object) -> Tree:
    whole = batched({name: torch.tensor([value]) for name, value in leaves.items()}, "x")
    assert isinstance(whole, Tree)
    return whole.each(lambda leaf: leaf[0])


class TestTargets:
    def test_of_a_container_each_number_stands_behind_its_own_name(self) -> None:
        assert label(one_example(cls=0, reg=-1.395)) == ["cls 0", "reg −1.395"]
        assert label(one_example(reg=[0.5, -2.0], cls=3, box=[7])) == [
            "reg[0] 0.5",
            "reg[1] −2",
            "cls 3",
            "box 7",
        ]
        assert label(one_example(cls=0, mask=[0.0] * 12)) is None

    def test_of_a_tensor(self) -> None:
        assert label(torch.tensor(2)) == 2
        assert label(torch.tensor([1.5, -0.25]), (1.0, 2.0)) == [4.0, 0.5]
        assert label(torch.tensor([3, 4])) is None  # positions


class TestFeatures:
    def test_whole_numbers_are_codes_without_a_mean(self) -> None:
        rows = [
            by_shape(one_example(number=[0.5, k], code=[k, 3], kind=k), ends=None)  # pyright: ignore[reportArgumentType]
            for k in range(3)
        ]
        assert rows[2] == Features(
            (("number[0]", 0.5), ("number[1]", 2.0), ("code[0]", 2), ("code[1]", 3), ("kind", 2))
        )
        assert scales(rows) == {"number[0]": [0.5, 0.0], "number[1]": [1.0, 0.816]}

    def test_one_number_that_is_no_whole_one_makes_a_column_a_measurement(self) -> None:
        assert scales([Features((("a", 1),)), Features((("a", 2.0),))]) == {"a": [1.5, 0.5]}

    def test_a_year_stays_a_year(self) -> None:
        (card,) = cards([Features((("built", 2023.0), ("size", 12.345)))])
        assert card == {"row": [["built", 2023.0], ["size", 12.3]]}


def told(found: Answers, residuals: tuple[float, float], top: int, bottom: int) -> Answers:
    """These answers, had their inverses these residuals and their lists of 10 so much in common."""
    made = tuple(
        replace(one, certificate=Certificate(one.scores.rung, "GGN", (residual,) * 4, "float64"))
        for one, residual in zip(found.answers, residuals, strict=True)
    )
    agreed = Agreement(
        torch.full((4,), 0.565), torch.full((4,), top), torch.full((4,), bottom), k=10
    )
    return replace(found, answers=made, agreement=agreed)


class TestTrust:
    def test_lists_as_long_as_those_that_are_shown(self, found: Answers) -> None:
        a, b = (one.scores for one in found.answers)
        assert found.agreement is not None
        assert found.agreement.k == 4
        shared = len(set(a.top(4).indices[1].tolist()) & set(b.top(4).indices[1].tolist()))
        one = measures(found, 1)[-2]
        assert (one.name, one.value) == ("The 4 most helpful by EKFAC and GGN", f"{shared} in both")
        assert one.share == shared / 4

    @pytest.mark.parametrize(
        ("residuals", "top", "bottom", "said"),
        [
            ((1.4, 1e-7), 5, 5, "its inverse is no better than nothing (relative residual 1.4)"),
            ((1.0, 1e-7), 9, 9, "its inverse is no better than nothing (relative residual 1)"),
            ((0.5, 1e-7), 4, 5, "GGN names only 4 of its 10 most helpful"),
            (
                (float("nan"), 1e-7), 4, 3,
                "its inverse is no better than nothing (relative residual ∞); GGN names only 4 of "
                "its 10 most helpful and 3 of its 10 most harmful",
            ),
        ],
    )  # fmt: skip
    def test_lists_that_should_not_be_trusted(
        self, found: Answers, residuals: tuple[float, float], top: int, bottom: int, said: str
    ) -> None:
        made = told(found, residuals, top, bottom)
        assert (
            verdict(made, 0, 2) == f"These lists of EKFAC are doubtful: {said}. Ask for --rung GGN."
        )
        assert verdict(made, 1, 2) == ""  # the other names few of them, but its inverse is exact

    def test_nothing_is_said_where_nothing_speaks_against_them(self, found: Answers) -> None:
        assert verdict(told(found, (0.99, 1e-7), 5, 5), 0, 0) == ""

    def test_where_both_inverses_are_bad_the_exact_one_is_named(self, found: Answers) -> None:
        made = told(found, (1.4, 2.0), 9, 9)
        assert verdict(made, 0, 0).endswith("Ask for --rung GGN.")
        assert verdict(made, 1, 0).endswith("Ask for a larger --damping.")

    def test_words(self, found: Answers) -> None:
        made = measures(told(found, (1.35, 2e-7), 4, 10), 0)
        assert [(one.value, one.words) for one in made] == [
            ("residual 1.35", "no better than nothing"),
            ("residual 2·10⁻⁷", "as good as exact"),
            ("correlation 0.56", "a similar order"),  # 0.565 in float32 is below it
            ("4 in both", "fewer than half"),
            ("10 in both", "all"),
        ]
        assert [one.share for one in made] == pytest.approx([0, 1, 0.565, 0.4, 1], abs=1e-6)

    def test_bounds_prove_signs(self, asked: Given) -> None:
        rough, exact = cf.KFAC(), cf.GGN()
        bounded = answer(
            asked, rung=rough, beside=exact, damping=cf.Absolute(0.1), top=4, bounds=True
        )
        of_rough, of_exact = (m for m in measures(bounded, 0) if m.name.startswith("Scores of"))
        bounds = bounded.answers[0].scores.error_bounds()
        assert of_rough.value == f"off by at most {short(float(bounds.worst[0]))} nats"
        row = bounded.asked[0]
        ends = {*row.top(4).indices[0].tolist(), *row.bottom(4).indices[0].tolist()}
        proven = [n for n in ends if abs(float(row.values[0, n])) > float(bounds.values[0, n])]
        assert of_rough.words == f"the sign of {len(proven)} of the {len(ends)} listed is proven"
        assert of_rough.share == len(proven) / len(ends)
        assert of_exact.share == 1, "an exact inverse proves what it says"
        assert not any("Scores of" in m.name for m in measures(answer(asked, rung=rough), 0))

    def test_a_page_has_the_words_of_the_terminal(self, found: Answers) -> None:
        data = embedded(found).data
        for k in range(4):
            wanted = [(one.name, one.value, one.words) for one in measures(found, k)]
            assert [(name, value, words) for name, value, _, words in data["trust"][k]] == wanted
            assert [row[k] for row in data["verdicts"]] == [verdict(found, r, k) for r in (0, 1)]

    def test_notes_name_their_rung_and_stand_once(self, found: Answers, tmp_path: Path) -> None:
        said = (("said by one", "said by all"), ("said by the other", "said by all"))
        made = replace(
            found,
            answers=tuple(
                replace(one, scores=replace(one.scores, notes=texts))
                for one, texts in zip(found.answers, said, strict=True)
            ),
        )
        assert notes(made) == ("EKFAC: said by one", "said by all", "GGN: said by the other")
        page = write_explorer(made, tmp_path / "p.html").path.read_text()
        for text in ("said by one", "said by all", "said by the other"):
            assert page.count(text) == 1

    def test_units(self, found: Answers) -> None:
        scores = found.asked
        assert what_values_are(scores) == "influence on the loss, in nats"
        own = replace(scores, unit="loss")
        assert what_values_are(own) == "influence on the loss"
        alone = replace(found, answers=(replace(found.answers[0], scores=own),), agreement=None)
        made = embedded(alone).data
        assert (made["unit"], made["scaledUnit"]) == ("", "of the loss")
        assert "no unit" in what_values_are(replace(scores, unit="none (a gradient dot product)"))


def test_a_line_of_the_terminal_to_an_example(found: Answers) -> None:
    out = StringIO()
    lists(found, 0, 4, 100).show(Console(file=out, width=100))
    head, *lines = out.getvalue().splitlines()
    assert head.split() == ["helpful", "influence", "label", "harmful", "influence", "label"]
    ranked = found.asked[0]
    for place, line in enumerate(lines):
        helps, harms = (int(end.indices[0, place]) for end in (ranked.top(4), ranked.bottom(4)))
        assert re.fullmatch(
            rf"{place + 1} .*no. {helps} .* · x0=.*…? +no. {harms} .* · x0=.*", line
        )
    assert len(lines) == 4


class TestPage:
    def test_lists_are_those_of_the_scores(self, asked: Given, found: Answers) -> None:
        data = embedded(found).data
        labels = asked.problem.train.labels
        assert labels is not None
        for one, rung in zip(found.answers, data["rungs"], strict=True):
            for end, ranked in enumerate((one.scores.top(4), one.scores.bottom(4))):
                assert rung["examples"][end] == ranked.indices.tolist()
            for c in range(3):
                members = (labels == c).nonzero()[:, 0]
                for q in range(4):
                    help_n = one.scores.help[q, members]
                    wanted = members[help_n.argsort(descending=True)[:5]].tolist()
                    assert rung["within"]["examples"][0][c][q] == wanted
        assert set(data["train"]) >= set(found.asked.top(4).indices.flatten().tolist())

    def test_higher_is_better_turns_the_lists(self) -> None:
        plain = chain_problem()
        problem = Problem(
            plain.model, plain.loss, plain.train, plain.queries, measurement=cf.Margin()
        )
        made = answer(Given("m", "M", problem), rung=cf.KFAC(), top=3)
        rung = embedded(made).data["rungs"][0]
        assert rung["values"][0][0][0] < 0  # what helps lowers the margin when it is left out
        labels = problem.train.labels
        assert labels is not None
        members = (labels == 0).nonzero()[:, 0]
        wanted = members[made.asked.values[0, members].argsort()[:5]].tolist()
        assert rung["within"]["examples"][0][0][0] == wanted

    def test_a_page_of_too_much_leaves_queries_out_and_says_so(
        self, found: Answers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("curvfluence.report.explorer.data.BYTES", 4_000)
        held = embedded(found)
        assert held.left_out > 0
        page = write_explorer(found, tmp_path / "p.html")
        assert f"{held.left_out} of 4 queries are left out" in page.path.read_text()

    def test_features_that_are_no_numbers(self, asked: Given, tmp_path: Path) -> None:
        odd = Given(
            "odd", "Odd", asked.problem, show=lambda x, y: {"v": float("nan"), "w": float("inf")}
        )
        page = write_explorer(answer(odd, rung=cf.KFAC(), top=2), tmp_path / "odd.html")
        assert '["v","nan"],["w","inf"]' in page.path.read_text()

    def test_outputs_are_probabilities(self, asked: Given) -> None:
        said = believed(asked.problem, asked.problem.queries, [2, 0])
        assert said is not None
        wanted = asked.problem.forward(asked.problem.queries.inputs[[2, 0]]).softmax(1)
        torch.testing.assert_close(said.values, wanted.detach())


FILE = """
import torch
from torch import nn

import curvfluence as cf

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(5, 2)

    def forward(self, number, city):
        return self.out(torch.cat([number, self.embed(city)], 1))


inputs = {"number": torch.randn(30, 2), "city": torch.randint(0, 5, (30,))}
labels = torch.randint(0, 2, (30,))
cities = ["Bern", "Basel", "Chur", "Genf", "Zug"]
problem = cf.Problem(
    Net(),
    cf.CrossEntropy(),
    ({k: v[:24] for k, v in inputs.items()}, labels[:24]),
    ({k: v[24:] for k, v in inputs.items()}, labels[24:]),
    weight_decay=0.01,
)
class_names = ["no", "yes"]


def show(inputs, target):
    return {"number": inputs["number"][0], "city": cities[inputs["city"]]}
"""


class TestCommand:
    def test_a_file_without_a_recipe(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(FILE)
        page, table = tmp_path / "e.html", tmp_path / "t.csv"
        call = ["attribute", str(tmp_path / "mine.py"), "--query", "3", "--top", "4"]
        call += ["--out", str(page), "--table", str(table), "--no-progress"]
        done = CliRunner().invoke(app, call)
        assert done.exit_code == 0, done.output
        assert "query 3: label " in done.output
        assert re.search(r" · number=\S+, city=(Bern|Basel|Chur|Genf|Zug)", done.output)
        assert "Ranks by EKFAC and GGN: correlation " in done.output
        assert "The 4 most helpful by EKFAC and GGN: " in done.output
        text = page.read_text()
        data = json.loads(re.search(r'answers-data">(.*?)</script>', text, re.DOTALL)[1])  # pyright: ignore[reportOptionalSubscript]
        assert data["queries"] == [3]
        assert data["classes"] == ["no", "yes"]
        asked = given(str(tmp_path / "mine.py"))
        whole = cf.influence(asked.problem, cf.EKFAC())
        assert data["rungs"][0]["examples"][0][0] == whole.top(4).indices[3].tolist()
        assert 'class="query-pick" hidden' in text  # one query: nothing to pick
        assert 'id="of-class"' not in text
        rows = table.read_text().splitlines()
        assert len(rows) == 5
        assert rows[1].startswith("3,")

    def test_without_a_query_three_of_each(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(FILE)
        call = ["attribute", str(tmp_path / "mine.py"), "--out", str(tmp_path / "e.html")]
        done = CliRunner().invoke(app, [*call, "--no-progress"])
        assert done.exit_code == 0, done.output
        for q, printed in enumerate((True, True, True, False)):
            assert (f"query {q}: " in done.output) == printed
        rows = [line for line in done.output.splitlines() if re.match(r"\d+ +no\. ", line)]
        assert [row.split()[0] for row in rows] == ["1", "2", "3"] * 3
        assert "On the page: 3 more queries, with 10 examples at either end of each." in done.output

    def test_a_built_in_problem(self, tmp_path: Path) -> None:
        call = ["attribute", "wine", "--query", "0", "--query", "2", "--beside", "none"]
        done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "e.html"), "--no-progress"])
        assert done.exit_code == 0, done.output
        assert "query 2" in done.output
        assert "Ranks by" not in done.output

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            ("problem = 3", "`problem` must be the cf.Problem"),
            ("show = 3", "`show` must be a function of"),
            ("class_names = 'no'", "`class_names` must be a list of strings"),
            ("flipped = [99]", "`flipped` must be numbers of training examples, 0 to 23"),
            ("flipped = [True, False]", "flipped"),
            ("flipped = [1.5]", "flipped"),
            ("del problem", "defines no `problem`"),
        ],
    )
    def test_files_that_lack_something(self, tmp_path: Path, change: str, what: str) -> None:
        (tmp_path / "mine.py").write_text(f"{FILE}\n{change}\n")
        with pytest.raises(InputError, match=re.escape(what)):
            given(str(tmp_path / "mine.py"))

    def test_no_such_problem(self) -> None:
        with pytest.raises(InputError, match="there is no problem 'digts'; built in are digits"):
            given("digts")


def test_the_random_state_and_the_model_are_left_alone(asked: Given) -> None:
    state, mode = torch.get_rng_state(), asked.problem.model.training
    with pytest.warns(CurvfluenceWarning, match="surprising labels"):
        answer(asked, rung=cf.EKFAC(fisher=cf.MonteCarlo(1)), beside=cf.KFAC(), top=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert asked.problem.model.training == mode
    assert all(p.grad is None for p in asked.problem.model.parameters())


def test_some_examples_by_token_are_those_of_all() -> None:
    seeded()
    net = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)).double()
    x, y = torch.randint(0, 7, (8, 5)), torch.randint(0, 7, (8, 5))
    loss = cf.Positions(cf.CrossEntropy())
    problem = Problem(net, loss, (x[:6], y[:6]), (x[6:], y[6:]), weight_decay=0.01)
    every = cf.token_influence(problem, cf.KFAC())
    some = cf.token_influence(problem, cf.KFAC(), examples=[4, 1])
    torch.testing.assert_close(some, every[:, [4, 1]])
    with pytest.raises(InputError, match="examples are numbers of training examples"):
        cf.token_influence(problem, cf.KFAC(), examples=[6])
