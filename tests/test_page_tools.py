"""The pages that a person works on, of answers and of an audit, in a real browser, offline."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab
from torch import nn

import curvfluence as cf
from curvfluence.explore import Answers, answer, believed
from curvfluence.report.audit import write_audit
from curvfluence.report.explorer import write_explorer
from curvfluence.report.explorer.trust import measures, verdict
from curvfluence.study.problems.given import Given, given
from curvfluence.study.words import short
from tests.problems import chain_problem
from tests.test_report_browser import (
    ALONE,
    CONTRAST,
    SCHEMES,
    WIDE,
    WIDTHS,
    Opened,
    browser,  # noqa: F401 - a fixture
    require_outline,
    show,
)

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("page_tools")]
NAMES = (
    "images",
    "rows",
    "words",
    "outputs",
    "single",
    "many",
    "audit",
    "audit-rows",
    "audit-many",
)


def words() -> Given:
    """A language model of letters, whose examples are lists of tokens."""
    torch.manual_seed(0)
    text = "the quick brown fox jumps over the lazy dog and runs away from all of it "
    ids = torch.tensor([[ord(c) - 32 for c in text[k : k + 12]] for k in range(40)])
    net = nn.Sequential(nn.Embedding(96, 6), nn.Linear(6, 96))
    problem = cf.Problem(net, cf.CausalLM(), (ids[:34], ids[:34]), (ids[34:], ids[34:]))

    def letters(inputs: torch.Tensor, target: torch.Tensor) -> list[str]:
        return [chr(32 + int(c)) for c in inputs]

    return Given("words", "Letters", problem, show=letters)


def outputs() -> Given:
    """A regression with outputs of both signs, whose examples have a code among their features."""
    torch.manual_seed(0)
    x = torch.randn(24, 2)
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.bias.copy_(torch.tensor([2.0, -1.0, 0.5]))
    y = x[:, :1].repeat(1, 3)
    problem = cf.Problem(net, cf.MSE(), (x[:20], y[:20]), (x[20:], y[20:]))

    def features(inputs: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
        return {"a": float(inputs[0]), "code": int(inputs[0] > 0), "b": float(inputs[1])}

    return Given("outputs", "Outputs", problem, show=features)


@cache
def many() -> Given:
    """A hundred thousand examples behind the lists."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100_020, 4, generator=generator)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    train, queries = (x[:100_000], y[:100_000]), (x[100_000:], y[100_000:])
    problem = cf.Problem(net, cf.CrossEntropy(), train, queries)
    return Given("many", "A hundred thousand rows", problem)


@pytest.fixture(scope="module")
def answers() -> dict[str, Answers]:
    chain = Given("chain", "A chain of three layers", chain_problem())
    noisy = given("digits-noisy")
    return {
        "images": answer(noisy, range(0, 180, 9), rung=cf.EKFAC(), beside=cf.KFAC()),
        "rows": answer(chain, rung=cf.EKFAC(), beside=cf.GGN(), top=5),
        "words": answer(words(), rung=cf.EKFAC(), top=4),
        "outputs": answer(outputs(), rung=cf.KFAC(), top=3),
        "single": answer(chain, [2], rung=cf.EKFAC(), beside=cf.GGN(), top=5, bounds=True),
        "many": answer(many(), rung=cf.KFAC(), beside=cf.Diagonal(), top=10),
    }


@pytest.fixture(scope="module")
def pages(answers: dict[str, Answers], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    made = {
        name: write_explorer(found, root / f"{name}.html", command=f"curvfluence attribute {name}")
        for name, found in answers.items()
    }
    noisy = answers["images"].given
    audit = cf.audit(noisy.problem, cf.KFAC(), flipped=noisy.flipped)
    made["audit"] = write_audit(audit, noisy, root / "audit.html", command="curvfluence audit x")
    x = torch.arange(30.0).reshape(10, 3)
    x[7], x[9] = x[2], x[2]
    y = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 0])
    few = cf.Problem(nn.Sequential(nn.Linear(3, 2)), cf.CrossEntropy(), (x, y), (x[:2] + 50, y[:2]))
    large = cf.audit(many().problem, cf.KFAC(), examined=100)
    made["audit-many"] = write_audit(large, many(), root / "many-audit.html")
    rows = Given("few", "Few rows", few)
    made["audit-rows"] = write_audit(cf.audit(few, cf.KFAC(), k=3), rows, root / "few.html")
    return {name: report.path for name, report in made.items()}


@pytest.fixture(scope="module")
def tabs(browser: Browser, pages: dict[str, Path]) -> Callable[[str], Opened]:  # noqa: F811
    return cache(lambda name: show(browser, pages[name]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_opens_offline_and_is_legible(
    tabs: Callable[[str], Opened], pages: dict[str, Path], name: str, scheme: Any, width: int
) -> None:
    opened = tabs(name)
    tab = opened.tab
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    assert opened.said == []
    asked = [url for url in opened.asked if not url.startswith("data:")]
    assert asked == [pages[name].as_uri()]
    for state in ("false", "true"):
        tab.evaluate(f"document.querySelectorAll('details').forEach(d => d.open = {state})")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(WIDE) == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    for selector in ("h1", ".lead p", "#status", ".small"):
        assert tab.evaluate(CONTRAST, [selector, "body"]) >= 4.5, selector
    require_outline(tab)
    assert tab.evaluate(ALONE) == []


def listed(tab: Tab, end: int) -> list[int]:
    items = tab.locator(f"#answer-{end} li[data-example]")
    return [int(n) for n in items.evaluate_all("all => all.map(e => e.dataset.example)")]


def test_answers_are_those_of_the_scores(
    tabs: Callable[[str], Opened], answers: dict[str, Answers]
) -> None:
    tab, found = tabs("images").tab, answers["images"]
    place = 4
    tab.get_by_label("Query", exact=True).select_option(str(place))
    for r, one in enumerate(found.answers):
        tab.get_by_label("Rung").select_option(str(r))
        assert listed(tab, 0) == one.scores.top(10).indices[place].tolist()
        assert listed(tab, 1) == one.scores.bottom(10).indices[place].tolist()
    tab.get_by_label("Rung").select_option("0")
    tab.get_by_label("Example label").select_option("3")
    labels = found.given.problem.train.labels  # pyright: ignore[reportAttributeAccessIssue]
    members = (labels == 3).nonzero()[:, 0]
    best = found.asked.values[place, members].argsort(descending=True)[:5]
    assert listed(tab, 0) == members[best].tolist()
    assert "among examples labelled 3" in tab.locator("#status").inner_text()
    tab.get_by_label("Example label").select_option("")


def test_a_link_leads_to_its_query(
    browser: Browser,  # noqa: F811
    pages: dict[str, Path],
    answers: dict[str, Answers],
) -> None:
    opened = show(browser, pages["images"])
    tab, found = opened.tab, answers["images"]
    tab.goto(f"{pages['images'].as_uri()}#query=81&rung=KFAC&labelled=2")
    tab.reload()
    assert tab.locator("#asked h2").inner_text() == "Query 81"
    assert tab.get_by_label("Rung").input_value() == "1"
    assert tab.get_by_label("Example label").input_value() == "2"
    tab.get_by_label("Example label").select_option("")
    tab.get_by_role("button", name="Next query").click()
    here = tab.evaluate("location.hash")
    shown = int(tab.locator("#asked h2").inner_text().split()[1])
    assert f"query={shown}" in here
    assert shown in found.queries
    assert opened.said == []
    tab.context.close()


def test_queries_of_one_class(tabs: Callable[[str], Opened]) -> None:
    tab = tabs("images").tab
    every = tab.locator("#query option").count()
    tab.get_by_label("Query label").select_option("7")
    some = tab.locator("#query option").all_inner_texts()
    assert 0 < len(some) < every
    assert all(": 7" in text for text in some)
    tab.get_by_label("Query label").select_option("")


def test_trust_is_on_the_page(tabs: Callable[[str], Opened], answers: dict[str, Answers]) -> None:
    tab, told = tabs("rows").tab, answers["rows"].agreement
    assert told is not None
    tab.get_by_label("Query", exact=True).select_option("1")
    text = tab.locator("#trust").inner_text()
    for one in measures(answers["rows"], 1):
        assert one.name in text
        assert one.value in text
        assert one.words in text
    assert text.count("0 is exact, 1 no better than nothing") == 1
    widths = tab.locator("#trust .bar i").evaluate_all("all => all.map(e => e.style.width)")
    wanted = [100 * one.share for one in measures(answers["rows"], 1)]
    assert [float(width[:-1]) for width in widths] == pytest.approx(wanted, abs=0.06)


def test_a_list_that_should_not_be_trusted_is_called_so(
    tabs: Callable[[str], Opened], answers: dict[str, Answers]
) -> None:
    tab, found = tabs("rows").tab, answers["rows"]
    for r, k in ((0, 1), (1, 1)):
        tab.get_by_label("Query", exact=True).select_option(str(k))
        tab.get_by_label("Rung").select_option(str(r))
        assert tab.locator("#verdict").inner_text() == verdict(found, r, k)
        assert tab.locator("#verdict").is_visible() == bool(verdict(found, r, k))
    assert verdict(found, 0, 1)
    tab.get_by_label("Rung").select_option("0")


def test_numbers_are_those_of_the_terminal(tabs: Callable[[str], Opened]) -> None:
    tab = tabs("rows").tab
    values = [0, 0.565, -1.346, 8.114e-4, 1e-3, 2e-7, 1234.4, 99.96, 123456.0, -2.5e6, 1e5, 0.0427]
    assert tab.evaluate("all => all.map(v => parts.shown(v))", values) == list(map(short, values))


def test_harm_has_its_own_colour(tabs: Callable[[str], Opened]) -> None:
    tab, colour = tabs("rows").tab, "e => getComputedStyle(e).borderBottomColor"
    tab.emulate_media(color_scheme="light")
    ends = [tab.locator(f"#answer-{end} h2").evaluate(colour) for end in (0, 1)]
    assert ends == ["rgb(0, 158, 115)", "rgb(230, 159, 0)"]


def test_outputs_below_zero_grow_to_the_left(
    tabs: Callable[[str], Opened], answers: dict[str, Answers]
) -> None:
    tab = tabs("outputs").tab
    tab.get_by_label("Query", exact=True).select_option("0")
    problem = answers["outputs"].given.problem
    said = believed(problem, problem.queries, [0])
    assert said is not None
    values = said.values[0].tolist()
    assert min(values) < 0 < max(values)
    bars = tab.locator("#asked .bar i").evaluate_all(
        "all => all.map(e => [parseFloat(e.style.left), parseFloat(e.style.width)])"
    )
    for value, (left, width) in zip(values, bars, strict=True):
        length = 50 * abs(value) / max(map(abs, values))
        assert width == pytest.approx(length, abs=0.01)
        assert left == pytest.approx(50 - length if value < 0 else 50, abs=0.01)


def test_codes_and_words_are_written_out(tabs: Callable[[str], Opened]) -> None:
    item = tabs("outputs").tab.locator("#answer-0 li").first
    assert item.locator(".spelt").inner_text().startswith("code=")
    titles = item.locator(".strip i").evaluate_all("all => all.map(e => e.title)")
    assert [title.split(":")[0] for title in titles] == ["a", "b"]


def test_menus_of_one_entry_are_hidden(tabs: Callable[[str], Opened]) -> None:
    tab = tabs("single").tab
    assert not tab.locator("#query").is_visible()
    assert not tab.locator("#next").is_visible()
    assert tab.locator("#of-class").count() == 0
    assert tab.locator("#asked h2").inner_text() == "Query 2"
    assert "opens" not in tab.locator("#status").inner_text()


def test_why_it_opens_where_it_does(
    browser: Browser,  # noqa: F811
    pages: dict[str, Path],
) -> None:
    opened = show(browser, pages["images"])
    tab = opened.tab
    assert (
        ": the first that it gets wrong, where this page opens."
        in tab.locator("#status").inner_text()
    )
    first = tab.locator("#query optgroup").first
    assert first.get_attribute("label") == "The model is wrong: label → its answer"
    tab.context.close()


@pytest.mark.parametrize("width", [390, 1000, 1300])
def test_measures_are_named_in_full(tabs: Callable[[str], Opened], width: int) -> None:
    """No word of a measure's name is broken, however wide its value is (bounds are)."""
    tab = tabs("single").tab
    tab.set_viewport_size({"width": width, "height": 900})
    names = tab.locator("#trust .name")
    assert any("Scores of" in text for text in names.all_inner_texts())
    broken = """all => all.filter(e => {
        const words = e.textContent.split(" ").length;
        const range = document.createRange(); range.selectNodeContents(e);
        const tops = new Set(Array.from(range.getClientRects(), r => Math.round(r.top)));
        return tops.size > words || tops.size > 2 || e.scrollWidth > e.clientWidth + 1;
    }).length"""
    assert names.evaluate_all(broken) == 0


@pytest.mark.parametrize("width", [390, 1400])
def test_neighbours_are_named_in_full(tabs: Callable[[str], Opened], width: int) -> None:
    for name in ("audit", "audit-rows", "audit-many"):
        tab = tabs(name).tab
        tab.set_viewport_size({"width": width, "height": 900})
        texts = tab.locator("#list .near .small")
        assert all(re.fullmatch(r"[↑↓] no\. \d+: \d", text) for text in texts.all_inner_texts())
        cut = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert texts.count() > 0
        assert texts.evaluate_all(cut) == 0
        tab.locator("#list details").last.evaluate("d => d.open = true")
        tab.locator("#list details").evaluate_all("all => all.forEach(d => d.open = true)")
        assert tab.locator("#list > li").evaluate_all(cut) == 0, "a card holds what is in it"
        cell = tab.locator("#list details").last.locator("td .small").last
        assert cell.inner_text().startswith("place ")
        lines = """e => { const range = document.createRange(); range.selectNodeContents(e);
            return range.getClientRects().length }"""
        assert cell.evaluate(lines) == 1


def test_tokens_are_coloured(tabs: Callable[[str], Opened], answers: dict[str, Answers]) -> None:
    """The deepest colour is at the target of the largest influence; the first letter is nobody's
    target."""
    tab = tabs("words").tab
    tab.get_by_label("Query", exact=True).select_option("0")
    examples, values = answers["words"].tokens[0]
    row, at = divmod(int(values.abs().argmax()), values.shape[1])
    item = tab.locator(f"[data-example='{examples[row]}'] .token")
    titles = item.evaluate_all("all => all.map(e => e.title)")
    assert titles[0] == ""
    assert "1 of the largest" in titles[at + 1]
    assert titles[at + 1].startswith("helps" if values[row, at] > 0 else "harms")


def test_an_audit_is_worked_through(
    browser: Browser,  # noqa: F811
    pages: dict[str, Path],
) -> None:
    opened = show(browser, pages["audit"])
    tab = opened.tab
    assert tab.get_by_role("button", name="Save as JSON").is_disabled()
    first = [int(n) for n in tab.locator("#list > li").evaluate_all(
        "all => all.map(e => e.dataset.example)")]  # fmt: skip
    assert len(first) == 30
    tab.locator(f"#example-{first[3]} input").check()
    tab.locator(f"#example-{first[0]} input").check()
    tab.get_by_role("button", name="Show more").click()
    assert tab.locator("#list > li").count() == 60
    tab.get_by_label("Listed by").select_option("loss")
    assert "by loss" in tab.locator("#status").inner_text()
    tab.get_by_label("Show", exact=True).select_option("marked")
    with tab.expect_download() as kept:
        tab.get_by_role("button", name="Save as JSON").click()
    assert json.loads(Path(kept.value.path()).read_text()) == {
        "examples": sorted([first[0], first[3]])
    }
    with tab.expect_download() as kept:
        tab.get_by_role("button", name="Save as CSV").click()
    rows = Path(kept.value.path()).read_text().splitlines()
    assert rows[0] == "example,label,suggested"
    assert [int(row.split(",")[0]) for row in rows[1:]] == sorted([first[0], first[3]])
    tab.get_by_label("Show", exact=True).select_option("")
    tab.get_by_label("Label", exact=True).select_option("4")
    labels = tab.locator("#list .label").all_inner_texts()
    assert set(labels) == {"label 4"}
    assert "labelled=4" in tab.evaluate("location.hash")
    assert opened.said == []
    tab.context.close()


def test_duplicates_are_shown(tabs: Callable[[str], Opened]) -> None:
    text = tabs("audit-rows").tab.locator("#duplicates").inner_text()
    assert "3 examples in 1 group of equal inputs, 1 of them with different targets" in text
    assert "no. 2" in text
    assert "no. 9" in text


def test_a_hundred_thousand_examples(
    browser: Browser,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Lists of the ends alone are embedded, so the page stays small and quick."""
    torch.manual_seed(0)
    x, y = torch.randn(100_040, 8), torch.randint(0, 4, (100_040,))
    net = nn.Sequential(nn.Linear(8, 4))
    problem = cf.Problem(net, cf.CrossEntropy(), (x[40:], y[40:]), (x[:40], y[:40]))
    found = answer(Given("many", "Many", problem), rung=cf.EKFAC(), beside=cf.KFAC())
    report = write_explorer(found, tmp_path / "many.html")
    assert report.bytes < 20_000_000
    opened = show(browser, report.path)
    assert listed(opened.tab, 0) == found.asked.top(10).indices[
        int(opened.tab.get_by_label("Query", exact=True).input_value())
    ].tolist()  # fmt: skip
    assert opened.said == []
    opened.tab.context.close()
