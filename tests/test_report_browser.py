"""The report in a real browser, offline: drawn, legible, quiet, and the explorer explores."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from curvfluence.report import (
    compare_studies,
    write_comparison,
    write_report,
    write_sweep_report,
)
from curvfluence.study.results import RungResult
from tests.studies import HYBRIDS, LDS, make_study, write
from tests.test_report import FIGURES
from tests.test_report_sweep import KINDS, ONLY_SEEDS, OWN, SEEDED, make_sweep
from tests.test_report_sweep import WIDE as AVERAGED

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("report_browser")]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS, SCHEMES = (390, 1400), ("light", "dark")
STUDIES = ("full", "rows", "least", "long")
GRIDS = {"seeded": SEEDED, "own": OWN, "averaged": AVERAGED, "seeds": ONLY_SEEDS}
# How many figures each page has.
DRAWINGS = {
    "full": len(FIGURES), "rows": len(FIGURES), "least": 5, "long": len(FIGURES), "compare": 1,
    "seeded": 2 * len(KINDS) + 1, "own": 2 * len(KINDS) + 1, "averaged": 3 * len(KINDS) + 1,
    "seeds": len(KINDS),
}  # fmt: skip

# Texts of one drawing that lie on each other, leave the drawing, or are too small to read.
FAULTS = """svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim());
  const boxes = texts.map(t => t.getBoundingClientRect());
  const found = [];
  boxes.forEach((a, i) => {
    const name = texts[i].textContent.trim();
    if (a.left < frame.left - 2 || a.right > Math.min(frame.right + 12, innerWidth)
      || a.top < frame.top - 2 || a.bottom > frame.bottom + 2) found.push(`${name} is cut`);
    const size = parseFloat(getComputedStyle(texts[i]).fontSize);
    if (size * frame.width / svg.viewBox.baseVal.width < 9) found.push(`${name} is too small`);
    boxes.slice(0, i).forEach((b, j) => {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (width > 1 && height > 3) found.push(`${name} lies on ${texts[j].textContent.trim()}`);
    });
  });
  return found;
}"""

# Elements that reach beyond the window and are not inside a box that scrolls by itself.
WIDE = """() => [...document.querySelectorAll("body *")]
  .filter(e => !e.closest("svg, .unseen, .skip, details:not([open])") || e.tagName === "svg")
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .filter(e => { for (let p = e; p; p = p.parentElement)
    if (getComputedStyle(p).overflowX === "auto" && p !== document.documentElement) return false;
    return true; })
  .map(e => `${e.tagName}.${e.className} ${e.textContent.slice(0, 40)}`)"""

# Headings that nothing follows before the next one of their own level or above, or the end.
ALONE = """() => {
  const all = [...document.querySelectorAll("h1, h2, h3, h4")].filter(e => e.offsetParent);
  const rest = [...document.querySelectorAll("main :is(p, li, table, svg, dl, pre)")];
  const after = (a, b) => a.compareDocumentPosition(b) & Node.DOCUMENT_POSITION_FOLLOWING;
  return all.filter((h, i) => {
    const end = all.slice(i + 1).find(e => e.tagName[1] <= h.tagName[1]);
    return !rest.some(e => after(h, e) && (!end || after(e, end)) && e.textContent.trim());
  }).map(e => e.textContent);
}"""

CONTRAST = """([selector, back]) => {
  const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number)
    .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const style = getComputedStyle(document.querySelector(selector));
  const behind = getComputedStyle(document.querySelector(back)).backgroundColor;
  const text = style.fill !== "rgb(0, 0, 0)" && selector.includes("svg") ? style.fill : style.color;
  const [a, b] = [light(text), light(behind)].sort((x, y) => y - x);
  return (a + .05) / (b + .05);
}"""


@dataclass
class Opened:
    """A page with everything it said and asked for."""

    tab: Tab
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("CI is set and there is no chromium: apt-get install -y chromium")
        pytest.skip("no chromium on the path: apt-get install -y chromium")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


def long_names(folder: Path) -> None:
    """A study whose every name is as long as somebody may make it."""
    results = make_study(folder)
    assert results.display is not None

    def named(rung: RungResult) -> RungResult:
        return replace(
            rung, full_name=f"{rung.name}, a rung whose name is of some length, {rung.name}"
        )

    truth = replace(
        results.truth,
        notes=("N" * 300,),
        measurement="log-probability of the true class",
        unit="units of the logarithm of a probability",
    )
    classes = tuple(f"class number {k} with a long name" for k in range(10))
    changed = replace(
        results,
        problem="p" * 90,
        title="T" * 120,
        rungs=tuple(map(named, results.rungs)),
        hybrids=tuple(map(named, results.hybrids)),
        display=replace(results.display, classes=classes),
        truth=truth,
    )
    write(folder, changed)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A full study of images, one of feature rows, the least a study can hold, one of long names,
    two compared, and sweeps of every kind; each page drawn once, without files for a paper."""
    root = tmp_path_factory.mktemp("runs")
    make_study(root / "full")
    make_study(root / "rows", kind="features")
    make_study(root / "least", full=False)
    long_names(root / "long")
    both = compare_studies([root / "full", root / "least"])
    return {
        **{name: write_report(root / name, figures=False).path for name in STUDIES},
        "compare": write_comparison(both, root / "compare.html").path,
        **{
            name: write_sweep_report(make_sweep(root / name, axes), figures=False).path
            for name, axes in GRIDS.items()
        },
    }


@pytest.fixture(scope="module")
def tabs(browser: Browser, pages: dict[str, Path]) -> Callable[[str], Opened]:
    """Each page opened once; its window and its scheme are then changed."""
    return cache(lambda name: show(browser, pages[name]))


def heading_levels(tab: Tab) -> list[int]:
    """Of every heading in its order, such as [1, 2, 3, 3]."""
    headings = tab.locator("h1, h2, h3, h4")
    return headings.evaluate_all("all => all.map(one => Number(one.tagName[1]))")


def require_outline(tab: Tab) -> None:
    """One title, and no level of heading left out on the way down."""
    levels = heading_levels(tab)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), levels


def show(browser: Browser, path: Path, width: int = 1400, scheme: Any = "light") -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    )
    opened = Opened(context.new_page())
    opened.tab.on("console", lambda message: opened.said.append(message.text))
    opened.tab.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.tab.on("request", lambda request: opened.asked.append(request.url))
    opened.tab.goto(path.as_uri())
    return opened


@pytest.fixture
def tab(browser: Browser, pages: dict[str, Path]) -> Generator[Tab]:
    opened = show(browser, pages["full"])
    yield opened.tab
    assert opened.said == []
    opened.tab.context.close()


@pytest.mark.parametrize("name", list(DRAWINGS))
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
    assert [url for url in opened.asked if not url.startswith("data:")] == [pages[name].as_uri()]
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(WIDE) == []
    drawings = tab.locator("figure svg")
    assert drawings.count() == DRAWINGS[name]
    boxes = drawings.evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON())")
    assert min(box["width"] for box in boxes) > 300
    assert min(box["height"] for box in boxes) > 150
    assert drawings.evaluate_all(f"all => all.flatMap({FAULTS})") == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    last = ".heat tbody th" if name in GRIDS else "caption"
    for selector in ("h1", ".prose p", "figure .reading", "figure svg text", last):
        assert tab.evaluate(CONTRAST, [selector, "body"]) >= 4.5, selector
    require_outline(tab)
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(WIDE) == []


@pytest.mark.parametrize("name", list(DRAWINGS))
def test_no_heading_stands_alone(tabs: Callable[[str], Opened], name: str) -> None:
    """Every heading has something below it, of its own part of the page."""
    tab = tabs(name).tab
    assert tab.evaluate(ALONE) == []


def test_the_page_leads_with_its_sentence_its_picture_and_the_explorer(
    tabs: Callable[[str], Opened],
) -> None:
    tab = tabs("full").tab
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        tops = [
            tab.locator(name).first.evaluate("e => e.getBoundingClientRect().top + scrollY")
            for name in ("h1", "#figure-ladder", "#explorer", "#rungs")
        ]
        assert tops == sorted(tops) or (width > 1000 and sorted(tops)[2:] == tops[2:])
        assert tops[1] < 900
    ladder = tab.locator("#figure-ladder").inner_text()
    assert not any(name in ladder for name in HYBRIDS)
    assert all(name in tab.locator("#lost").inner_text() for name in HYBRIDS)


def test_a_number_of_the_results_is_on_the_page(tab: Tab) -> None:
    tab.locator("#figure-ladder summary").click()
    row = tab.locator("#figure-ladder tr", has=tab.locator("th", has_text="BlockGGN").first).first
    assert row.locator("td").first.inner_text() == f"{LDS['BlockGGN']:.3f}"


def examples(tab: Tab, column: int, item: str = "li") -> list[list[str]]:
    """The examples named by the items of each list of a column."""
    named = f"list => [...list.querySelectorAll('{item}')].map(e => e.dataset.example)"
    return tab.locator(f"#answer-{column} ol").evaluate_all(f"all => all.map({named})")


def test_explorer_shows_the_ends_of_the_scores(tab: Tab, pages: dict[str, Path]) -> None:
    query = int(tab.locator("#asked h3").inner_text().split()[1])
    for column, rung in enumerate(("GGN", "KFAC")):
        scores = np.load(pages["full"].parent / "arrays" / f"scores.{rung}.npy")[0, query]
        order = np.argsort(-scores, kind="stable")
        wanted = [order[:6], order[::-1][:6]]
        assert examples(tab, column) == [[str(n) for n in end] for end in wanted]
        first = tab.locator(f"#answer-{column} .value").first.inner_text()
        assert first == f"+{scores[order[0]] * 1000:.2f}"


def test_explorer_follows_query_and_rungs(tab: Tab) -> None:
    before = [examples(tab, k) for k in (0, 1)]
    status = tab.locator("#status").inner_text()
    picture = tab.locator("#asked .tile").get_attribute("style")
    tab.get_by_label("Query", exact=True).select_option(index=3)
    after = [examples(tab, k) for k in (0, 1)]
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert tab.locator("#status").inner_text() != status
    assert tab.locator("#asked .tile").get_attribute("style") != picture
    tab.get_by_label("Second rung").select_option("Identity")
    assert examples(tab, 0) == after[0]
    assert examples(tab, 1) != after[1]
    assert tab.locator("#answer-1 h3").inner_text() == "Identity"
    assert "without units" in tab.locator("#answer-1").inner_text()
    tab.get_by_label("First rung").select_option("Identity")
    assert examples(tab, 0) == examples(tab, 1)
    assert tab.locator(".shared").count() == 0
    assert "Pick two different rungs" in tab.locator("#status").inner_text()


def test_explorer_marks_where_the_rungs_agree(tab: Tab) -> None:
    for index in range(20):
        tab.get_by_label("Query", exact=True).select_option(index=index)
        (a, b) = (examples(tab, k) for k in (0, 1))
        common = [sorted(set(x) & set(y)) for x, y in zip(a, b, strict=True)]
        for column in (0, 1):
            marked = examples(tab, column, "li.shared")
            assert [sorted(end) for end in marked] == common
        said = tab.locator("#status").inner_text()
        assert f"share {len(common[0])} of the 6 most helpful and {len(common[1])} of" in said


def test_explorer_by_keyboard_alone(tab: Tab) -> None:
    tab.locator("#query").focus()
    before = tab.locator("#asked h3").inner_text()
    tab.keyboard.press("ArrowDown")
    moved = tab.locator("#asked h3").inner_text()
    assert moved != before
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "next"
    tab.keyboard.press("Enter")
    assert tab.locator("#asked h3").inner_text() != moved
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "rung-0"
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_is_named_for_screen_readers(tab: Tab) -> None:
    for role, name in (
        ("combobox", "Query"),
        ("combobox", "First rung"),
        ("combobox", "Second rung"),
        ("button", "Previous query"),
        ("button", "Next query"),
        ("list", "Most helpful by GGN"),
        ("list", "Most harmful by KFAC"),
        ("img", "LDS by rung"),
        ("navigation", "Parts of this page"),
    ):
        assert tab.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]
    assert tab.get_by_role("status").get_attribute("aria-live") == "polite"
    assert tab.locator("#answer-0 .tile").first.get_attribute("aria-label", timeout=100)
    require_outline(tab)


def test_feature_rows(browser: Browser, pages: dict[str, Path]) -> None:
    tab = show(browser, pages["rows"]).tab
    assert tab.locator("#asked .strip i").count() == 13
    item = tab.locator("#answer-0 li").first
    item.locator("summary").click()
    assert item.locator("table.features tbody tr").count() == 13
    assert item.locator("thead").inner_text().split() == ["feature", "example", "query"]
    tab.context.close()


def test_without_images_or_outputs(browser: Browser, pages: dict[str, Path]) -> None:
    tab = show(browser, pages["least"]).tab
    assert len(examples(tab, 0)[0]) == 6
    assert "output was not kept" in tab.locator("#asked").inner_text()
    tab.context.close()


def test_the_heat_table_is_reached_by_keyboard_and_marks_without_colour(
    browser: Browser, pages: dict[str, Path]
) -> None:
    opened = show(browser, pages["seeded"], 390)
    table = opened.tab.locator(".heat")
    assert table.get_attribute("tabindex") == "0"
    assert table.get_attribute("aria-label")
    table.focus()
    before = table.evaluate("e => e.scrollLeft")
    for _ in range(5):
        opened.tab.keyboard.press("ArrowRight")
    opened.tab.wait_for_timeout(500)
    assert table.evaluate("e => e.scrollLeft") > before
    assert table.locator("td.best").count() == 18
    assert table.locator("td.best").first.inner_text().startswith("★")
    opened.tab.context.close()
