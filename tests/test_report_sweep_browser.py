"""The page of a sweep in a real browser, offline: drawn, legible, quiet, never too wide."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from curvfluence.report import write_sweep_report
from tests.test_report_browser import (
    CONTRAST,
    FAULTS,
    SCHEMES,
    WIDE,
    WIDTHS,
    browser,
    require_outline,
    show,
)
from tests.test_report_sweep import KINDS, ONLY_SEEDS, OWN, SEEDED, make_sweep
from tests.test_report_sweep import WIDE as AVERAGED

__all__ = ["browser"]  # the fixture

pytestmark = pytest.mark.browser
GRIDS = {"seeded": SEEDED, "own": OWN, "averaged": AVERAGED, "seeds": ONLY_SEEDS}
AXES = {"seeded": 2, "own": 2, "averaged": 3, "seeds": 1}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    sweeps = {name: make_sweep(root / name, axes) for name, axes in GRIDS.items()}
    return {n: write_sweep_report(sweep, figures=False).path for n, sweep in sweeps.items()}


@pytest.mark.parametrize("name", list(GRIDS))
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_opens_offline_and_is_legible(
    browser: Browser, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    opened = show(browser, pages[name], width, scheme)
    tab = opened.tab
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(WIDE) == []
    drawings = tab.locator("figure svg")
    assert drawings.count() == AXES[name] * len(KINDS)
    for drawing in drawings.all():
        box = drawing.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 150
        assert drawing.evaluate(FAULTS) == []
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    for selector in ("h1", ".prose p", "figure .reading", "figure svg text", ".heat tbody th"):
        assert tab.evaluate(CONTRAST, [selector, "body"]) >= 4.5, selector
    require_outline(tab)
    for details in tab.locator("details").all():
        details.evaluate("d => d.open = true")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(WIDE) == []
    tab.context.close()


def test_the_heat_table_is_reached_by_keyboard_and_marks_without_colour(
    browser: Browser, pages: dict[str, Path]
) -> None:
    opened = show(browser, pages["seeded"], 400)
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
