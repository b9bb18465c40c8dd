"""The report without a browser: its numbers, its words, its files, and what it refuses."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app, main
from curvfluence.errors import NonFiniteError
from curvfluence.fidelity import Interval
from curvfluence.report import compare_studies, with_report, write_comparison, write_report
from curvfluence.report.again import text_of
from curvfluence.report.parts.cautions import cautions
from curvfluence.report.parts.labels import spread
from curvfluence.report.parts.repeat import study_command
from curvfluence.report.study.explorer import explore
from curvfluence.report.study.figures.cost import front
from curvfluence.report.study.figures.ladder import steps
from curvfluence.report.study.tables import rung_table
from curvfluence.report.study.verdict import chosen, verdict
from curvfluence.store import records
from curvfluence.store.folder import RESULTS
from curvfluence.study.results import ClaimRow, NegativePart, Results, SweepPoint
from curvfluence.study.spec import StudySpec
from curvfluence.study.study import Study, read_study
from curvfluence.study.variant import Variant
from curvfluence.study.words import flops, number, seconds, short
from tests.studies import (
    HYBRIDS,
    LDS,
    MADE_BY,
    make_results,
    make_study,
    reseal,
    restock,
    with_rung,
    write,
)

pytestmark = pytest.mark.xdist_group("report")  # its fixtures are made once

FIGURES = {
    "ladder", "steps", "sweep", "shares", "errors", "hybrids", "bregman", "eigenvalues",
    "effective-dimension", "overlap", "pareto", "operations", "memory", "inverses", "calibration",
    "calibration-curve",
}  # fmt: skip
ALWAYS = {"ladder", "steps", "sweep", "pareto", "memory"}


class Page(HTMLParser):
    """Tables by the id of their figure, ids, and every address that the page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self._figure, self._cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(given["id"] or "")
        self.addresses += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action")
        ]
        if tag == "figure":
            self._figure = given["id"] or ""
        if tag == "tr" and self._figure:
            self.tables.setdefault(self._figure, []).append([])
        self._cell = tag in ("th", "td") and bool(self._figure)
        if self._cell:
            self.tables[self._figure][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "figure":
            self._figure = ""
        if tag in ("th", "td"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[self._figure][-1][-1] += data


@pytest.fixture(scope="module")
def results() -> Results:
    return make_results()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "full"
    make_study(folder)
    return folder, write_report(folder).path.read_text()


@pytest.fixture(scope="module")
def least(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "least"
    make_study(folder, full=False)
    return folder, write_report(folder).path.read_text()


class TestPage:
    def test_says_where_it_is_and_how_large(self, tmp_path: Path) -> None:
        make_study(tmp_path / "x", full=False)
        done = write_report(tmp_path / "x", figures=False)
        assert not (tmp_path / "x" / "figures").exists()
        assert done.path == tmp_path / "x" / "report.html"
        assert done.bytes == done.path.stat().st_size < 5e6
        assert done.seconds > 0
        assert not list(tmp_path.rglob("*.tmp"))

    def test_names_no_address_outside_itself(self, full: tuple[Path, str]) -> None:
        folder, text = full
        assert all(a.startswith(("#", "data:")) for a in Page(text).addresses)
        assert set(re.findall(r"url\((.)", text)) <= {"#", "d"}
        assert "default-src 'none'" in text
        assert str(folder) not in text

    def test_every_figure_is_drawn_named_and_described(self, full: tuple[Path, str]) -> None:
        folder, text = full
        page = Page(text)
        assert set(page.tables) == {f"figure-{name}" for name in FIGURES}
        assert len(page.ids) == len(set(page.ids))
        for name in FIGURES:
            drawing = text[text.index(f'id="figure-{name}"') :]
            drawing = drawing[drawing.index("<svg") : drawing.index("</svg>")]
            assert f'role="img" aria-labelledby="{name}-title" aria-describedby' in drawing
            assert re.search(rf'<desc id="{name}-desc">[^<]{{40,}}', drawing)
            assert "<text" in drawing
            assert "<style" not in drawing
            colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", drawing))
            assert all(c == "none" or c.startswith(("var(--", "url(#")) for c in colours), colours
            svg = (folder / "figures" / f"{name}.svg").read_text()
            assert svg.startswith("<?xml")
            assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")

    def test_numbers_come_from_the_results(self, tmp_path: Path) -> None:
        folder = tmp_path / "x"
        results = make_study(folder, full=False)
        write(folder, with_rung(results, "GGN", lds=0.71828, interval=Interval(0.70123, 0.73456)))
        text = write_report(folder, figures=False).path.read_text()
        rows = {row[0]: row for row in Page(text).tables["figure-ladder"]}
        assert rows["GGN"][1:3] == ["0.718", "0.701 to 0.735"]
        assert "0.718 (95% interval 0.701 to 0.735)" in text
        for name, lds in LDS.items():
            if name not in ("GGN", "Hessian"):
                assert rows[name][1] == f"{lds:.3f}"

    def test_errors_of_inverses(self, full: tuple[Path, str]) -> None:
        """Means over models; a rung without an inverse at one model has none; what each step adds
        sums to the whole."""
        _, text = full
        rows = {row[0]: row for row in Page(text).tables["figure-inverses"]}
        first = rows[next(iter(k for k in rows if k.startswith("10")))]
        names = rows["λ"]
        assert first[names.index("KFAC")] == "–"
        assert first[names.index("EKFAC")] == "36.8"
        assert "over 500 training gradients and 180 of queries; 3 gradients are 0" in text
        assert "BlockGGN → EKFAC → KFAC" in text
        assert "+5.25, +5.25 = +10.5" in text

    def test_what_was_not_computed_is_named(
        self, least: tuple[Path, str], full: tuple[Path, str]
    ) -> None:
        text = least[1]
        assert {f"figure-{name}" for name in ALWAYS} == set(Page(text).tables)
        absent = text[text.index("Not computed here: ") :]
        absent = absent[: absent.index("</p>")]
        for said in (
            "the decomposition",
            "the proximal Bregman response (the study left it out)",
            "hybrids",
            "spectra",
            "calibration",
            "operations and peak memory",
            "claims of the paper",
        ):
            assert said in absent
        assert "Not computed here" not in full[1]

    def test_is_the_same_again(self, least: tuple[Path, str]) -> None:
        folder, text = least
        before = {p.name: p.read_bytes() for p in (folder / "figures").iterdir()}
        assert write_report(folder).path.read_text() == text
        assert before == {p.name: p.read_bytes() for p in (folder / "figures").iterdir()}

    def test_a_step_without_any_error_is_left_out(self, tmp_path: Path) -> None:
        """Two rungs may have no λ in common at which both have an inverse."""
        folder = tmp_path / "x"
        results = make_study(folder)
        part = results.decompositions[0]
        none = (None,) * len(part.dampings)
        first = replace(part.steps[0], inverse_error=none, score_error=none)
        second = replace(part.steps[1], inverse_error=(None, *part.steps[1].inverse_error[1:]))
        changed = replace(part, steps=(first, second, *part.steps[2:]))
        records.write(
            folder / RESULTS,
            replace(results, decomposition=changed, decompositions=(changed,)),
        )
        text = html.unescape(write_report(folder).path.read_text())
        assert "At the smallest λ with an inverse" in text
        assert f"{second.name}, error of inverse" in text
        assert f"{first.name}, error of inverse" not in text

    def test_hostile_names_stay_text(self, tmp_path: Path) -> None:
        folder = tmp_path / "x"
        results = make_study(folder)
        assert results.display is not None
        hostile = "</script><script>alert(1)</script>"
        results = replace(
            results,
            decomposition=None,
            decompositions=(),
            overlap=None,
            bregman=None,
            problem=hostile,
            title=hostile,
            description=hostile,
            protocol=hostile,
            bregman_missing=hostile,
            recipe={hostile: {"kind": hostile}, "loss": hostile},
            environment=replace(results.environment, command=hostile, system=hostile),
            display=replace(results.display, classes=tuple(f"</script><b>{k}" for k in range(10))),
            truth=replace(
                results.truth,
                notes=("<img src=http://example.org/x>",),
                unit=hostile,
                measurement=hostile,
            ),
        )
        write(folder, with_rung(results, "GGN", full_name=hostile, notes=(hostile,)))
        text = write_report(folder, figures=False).path.read_text()
        assert "<script>alert" not in text
        assert "</script><b>" not in text
        assert "<img" not in text
        assert "alert(1)" in text

    def test_all_settings_and_the_command(self, full: tuple[Path, str]) -> None:
        text = full[1]
        for said in ("cd701d92feef0d51", "47bebee5f09808f2", "torch.optim.sgd.SGD", "3.16228"):
            assert said in text
        assert "<code>curvfluence study made-up</code>" in text
        assert "run_study(StudySpec(" in text

    def test_a_ladder_of_one_rung(self, tmp_path: Path) -> None:
        folder = tmp_path / "x"
        results = make_study(folder, full=False)
        write(folder, only(results, "Identity"))
        text = write_report(folder, figures=False).path.read_text()
        assert "Identity was the only curvature approximation measured" in text
        assert set(Page(text).tables) == {"figure-ladder"}

    def test_without_seconds_nothing_is_said_of_what_accuracy_costs(self, tmp_path: Path) -> None:
        results = make_study(tmp_path / "x")
        rungs = tuple(replace(rung, score_seconds=None) for rung in results.rungs)
        write(tmp_path / "x", replace(results, rungs=rungs))
        text = write_report(tmp_path / "x", figures=False).path.read_text()
        assert "More time buys" not in text
        assert "More can be had" not in text
        assert "best cheaper rung" not in text
        assert 'id="figure-pareto"' not in text

    def test_the_seconds_of_the_page_are_kept_once(self, tmp_path: Path) -> None:
        make_study(tmp_path / "x", full=False)
        done = with_report(read_study(tmp_path / "x"))
        assert done.results.report_seconds is not None
        assert read_study(tmp_path / "x").results == done.results
        assert with_report(done) is done
        (tmp_path / "x" / "report.html").unlink()
        assert with_report(done) is not done
        assert (tmp_path / "x" / "report.html").is_file()


def only(results: Results, name: str) -> Results:
    """The results with one rung alone."""
    rungs = tuple(rung for rung in results.rungs if rung.name == name)
    return replace(results, rungs=rungs, hybrids=(), steps=(), differences=())


def test_claims_across_variants_stand_below_those_of_the_problem(tmp_path: Path) -> None:
    results = make_study(tmp_path / "x", full=False)
    claims = (
        ClaimRow("A > B", "clean", 0.1, (0.05, 0.2), "holds", ""),
        ClaimRow("A > B, across width", "clean", 0.1, (None, 0.2), "holds", "", scope="width"),
        ClaimRow("C", "clean", 0.1, None, "not resolved", ""),
    )
    write(tmp_path / "x", replace(results, claims=claims))
    text = write_report(tmp_path / "x", figures=False).path.read_text()
    assert "(3 rows; holds: 2 and not resolved: 1)" in text
    assert "−∞ to +0.200" in text
    own, across = text.index("Claims and what was measured"), text.index("Across width, depth")
    assert own < text.index("A &gt; B<", own) < across
    below = text[across:]
    assert below.index("A &gt; B<") < below.index(">width<")


class TestVerdict:
    def said(self, results: Results) -> str:
        return " ".join(text for _, text in verdict(results).findings)

    def test_the_cheaper_of_two_that_tie(self, results: Results) -> None:
        assert chosen(results).name == "GGN"
        said = verdict(results)
        assert said.headline == (
            "Of 7 curvature approximations, GGN is the one to use here: its predictions follow "
            "real retraining with a rank correlation of 0.64, where noise allows about 0.98."
        )
        text = self.said(results)
        assert "66% of what the noise in the truth allows" in text
        assert "0.598, 68% of what is allowed there" in text
        assert "Hessian(abs), 2.3 times the time for −0.002 (−0.014 to +0.010)" in text
        assert "best cheaper rung is BlockGGN: 1.4 times faster, and 0.074 of LDS lost" in text
        assert "Hessian → GGN and EKFAC → KFAC are not resolved" in text

    def test_a_resolved_gain_is_worth_its_time(self, results: Results) -> None:
        first = replace(results.differences[0], difference=0.017, interval=Interval(0.005, 0.03))
        changed = replace(
            with_rung(results, "Hessian", lds=0.66),
            differences=(first, *results.differences[1:]),
        )
        assert chosen(changed).name == "Hessian"

    def test_an_open_difference_that_is_large_is_no_tie(self, results: Results) -> None:
        """A few subsets resolve nothing; that does not make the cheapest rung as good."""
        wide = (replace(found, interval=Interval(-1.0, 1.0)) for found in results.differences)
        changed = replace(results, differences=tuple(wide))
        assert chosen(changed).name == "GGN"
        assert "lost (−1.000 to 1.000, not resolved)" in self.said(changed)

    def test_a_rung_without_units_claims_no_size(self, results: Results) -> None:
        assert "carry no units" in self.said(only(results, "Identity"))

    def test_what_to_doubt(self, results: Results) -> None:
        assert results.bregman is not None
        kfac = results.rung("KFAC")
        assert kfac is not None
        covered = (replace(kfac.coverage[0], fallback=True, rule="dense"),)
        changed = with_rung(results, "KFAC", coverage=covered)
        changed = with_rung(changed, "BlockGGN", undefined=3)
        changed = replace(
            changed,
            truth=replace(
                changed.truth, notes=("no noise ceiling for the matched question: r = 1",)
            ),
            bregman=replace(results.bregman, converged=False, groups=26, groups_dropped=4),
        )
        doubts = " ".join(verdict(changed).cautions)
        for part in ("r = 1", "3 for BlockGGN", "KFAC covers by a fallback: 0 (dense)",
                     "edge of its grid for KFAC", "did not converge for 4 groups"):  # fmt: skip
            assert part in doubts

    def test_hybrids_are_doubted_as_rungs_are(self, results: Results) -> None:
        mixed = results.hybrids[0]
        covered = (replace(mixed.coverage[0], fallback=True),)
        mixed = replace(
            mixed, undefined=2, damping_on_edge=True, notes=("a note",), coverage=covered
        )
        doubts = cautions([replace(results, hybrids=(mixed, *results.hybrids[1:]))])
        found = [doubt for doubt in doubts if mixed.full_name in doubt]
        assert len(found) == 4
        assert f"{mixed.full_name}: a note." in found

    def test_a_response_that_did_not_converge_counts_no_groups_it_has_not_lost(
        self, results: Results
    ) -> None:
        assert results.bregman is not None
        changed = replace(results, bregman=replace(results.bregman, converged=False))
        assert "The proximal Bregman response did not converge." in cautions([changed])

    def test_pairs_of_model_and_query_are_not_called_queries(self, results: Results) -> None:
        """More pairs may be undefined than there are queries."""
        changed = with_rung(results, "GGN", undefined=31)
        (doubt,) = (text for text in cautions([changed]) if "GGN" in text)
        assert doubt.startswith("Of 40 pairs of model and query")
        assert doubt.endswith("31 for GGN.")
        assert "queries" not in doubt
        (both,) = (text for text in cautions([changed, changed]) if "GGN" in text)
        assert both.startswith("Of 80 pairs of model and query")
        assert both.endswith("62 for GGN.")

    @pytest.mark.parametrize(
        ("ends", "resolved"),
        [
            ((0.001, 0.02), True),
            ((-0.02, -0.001), True),
            ((-0.01, 0.01), False),
            ((0.0, 0.02), False),
            ((-0.02, 0.0), False),
        ],
    )
    def test_one_rule_says_what_is_resolved(
        self, results: Results, ends: tuple[float, float], resolved: bool
    ) -> None:
        """An interval that holds 0, at an end too, is not resolved, wherever it is spoken of."""
        found = Interval(*ends)
        assert found.resolved is resolved
        assert (-found).resolved is resolved
        step = replace(results.steps[0], interval=found)
        assert step.resolved is resolved
        changed = replace(
            results,
            steps=(step, *results.steps[1:]),
            differences=(
                replace(results.differences[0], interval=found),
                *results.differences[1:],
            ),
        )
        drawn = steps(changed)
        assert drawn is not None
        assert ("Hessian → GGN" in drawn.reading) is not resolved
        lost = next(
            text for about, text in verdict(changed).findings if about == "Where it is lost"
        )
        assert ("Hessian → GGN and EKFAC → KFAC are not resolved" in lost) is not resolved
        top = with_rung(changed, "Hessian", lds=0.644)
        assert (chosen(top).name == "Hessian") is resolved


class TestExplorer:
    def test_examples_are_the_ends_of_the_scores(self, full: tuple[Path, str]) -> None:
        study = read_study(full[0])
        found = explore(study, "GGN")
        assert found is not None
        assert found.data["first"] == ["GGN", "KFAC"]
        assert [rung["name"] for rung in found.data["rungs"]] == [*LDS, *HYBRIDS]
        scores = study.array("scores.GGN")
        assert scores is not None
        rung = found.data["rungs"][1]
        for q in range(scores.shape[1]):
            order = np.argsort(-scores[0, q], kind="stable")
            assert rung["examples"][q] == [order[:6].tolist(), order[::-1][:6].tolist()]
            values = [scores[0, q][order[:6]], scores[0, q][order[::-1][:6]]]
            np.testing.assert_allclose(rung["values"][q], values, rtol=6e-3)

    def test_help_turns_where_higher_is_better(self, tmp_path: Path) -> None:
        results = make_study(tmp_path / "x")
        loss = explore(Study(tmp_path / "x", results), "GGN")
        truth = replace(results.truth, lower_is_better=False)
        margin = explore(Study(tmp_path / "x", replace(results, truth=truth)), "GGN")
        assert loss is not None
        assert margin is not None
        mine, theirs = (e.data["rungs"][1]["examples"][0] for e in (loss, margin))
        assert mine == theirs[::-1]

    def test_probabilities_and_wrong_labels(self, full: tuple[Path, str]) -> None:
        found = explore(read_study(full[0]), "GGN")
        assert found is not None
        assert found.data["outputs"]["kind"] == "probability"
        np.testing.assert_allclose(np.sum(found.data["outputs"]["values"], 1), 1, atol=0.02)
        assert found.data["wrong"]
        assert set(found.data["wrong"].items()) <= {(n, (n + 1) % 10) for n in range(0, 150, 15)}

    def test_large_images_still_fit(self, tmp_path: Path) -> None:
        """4,500 images of noise, which no format makes smaller."""
        make_study(tmp_path / "x", train=4500, queries=120, side=28)
        found = explore(read_study(tmp_path / "x"), "GGN")
        assert found is not None
        assert found.train_sprite is not None
        assert found.query_sprite is not None
        embedded = len(found.train_sprite) + len(found.query_sprite) + len(json.dumps(found.data))
        assert embedded < 4.2e6
        assert "of the 120 queries" in found.note


def lose_results(folder: Path) -> None:
    (folder / "results.json").unlink()


def lose_settings(folder: Path) -> None:
    (folder / "study.json").unlink()


def break_json(folder: Path) -> None:
    text = (folder / "results.json").read_text()
    (folder / "results.json").write_text(text[: len(text) // 2])


def lose_array(folder: Path) -> None:
    (folder / "arrays" / "scores.KFAC.npy").unlink()


def cut_array(folder: Path) -> None:
    file = folder / "arrays" / "truth.npy"
    file.write_bytes(file.read_bytes()[:-100])


def other_array(folder: Path) -> None:
    np.save(folder / "arrays" / "subsets.npy", np.ones((3, 3)))
    restock(folder)


def changed_json(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Damage results.json by hand, as no record would let itself be written."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / RESULTS).read_text())
        change(found)
        (folder / RESULTS).write_text(json.dumps(found))

    return damage


def damaged_text(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / RESULTS).read_text()
        assert old in text
        (folder / RESULTS).write_text(text.replace(old, new, 1))

    return damage


other_version = changed_json(lambda found: found["environment"].update(curvfluence="9.9"))
lose_section = changed_json(lambda found: found.pop("steps"))


def nested(depth: int) -> dict[str, Any]:
    return {"kind": nested(depth - 1)} if depth else {}


def begin_again(folder: Path) -> None:
    settings = {"key": "k", "spec": {}, "made_by": {"code": "f" * 16, "torch": MADE_BY.torch}}
    reseal(folder / "study.json", settings)


# What may be wrong with results.json, and what is said of it.
MALFORMED: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (break_json, "is not readable as JSON"),
    "empty": (lambda folder: (folder / RESULTS).write_text(""), "is not readable as JSON"),
    "no text": (lambda folder: (folder / RESULTS).write_bytes(b"\xff\xfe{"), "cannot be read"),
    "a list": (lambda folder: (folder / RESULTS).write_text("[]"), "of an unknown version"),
    "null": (lambda folder: (folder / RESULTS).write_text("null"), "of an unknown version"),
    "a folder": (lambda folder: _as_folder(folder / RESULTS), "cannot be read"),
    "a word for a number": (
        changed_json(lambda found: found["rungs"][1].update(lds="high")),
        'at rungs[1].lds: expected `float`, got `str`, seen "high"',
    ),
    "a list for an object": (
        changed_json(lambda found: found.update(truth=[])),
        "at truth: expected `object`, got `array`",
    ),
    "null for a number": (
        changed_json(lambda found: found["truth"].update(models=None)),
        "at truth.models: expected `int`, got `null`",
    ),
    "less than nothing": (
        changed_json(lambda found: found["truth"].update(models=-1)),
        "at truth.models: expected `int` >= 1, seen -1",
    ),
    "beyond what is counted": (
        changed_json(lambda found: found["truth"].update(train=10**400)),
        "at truth.train",
    ),
    "an interval of one end": (
        changed_json(lambda found: found["rungs"][0].update(interval=[0.1])),
        "at rungs[0].interval",
    ),
    "no rungs": (changed_json(lambda found: found.update(rungs=[])), "at rungs"),
    "an unknown key": (
        changed_json(lambda found: found["truth"].update(extra=1)),
        "at truth: object contains unknown field `extra`",
    ),
    "a missing key": (lose_section, "object missing required field `steps`"),
    "NaN": (
        changed_json(lambda found: found["rungs"][0].update(lds=float("nan"))),
        "rungs[0].lds = nan",
    ),
    "infinity": (
        changed_json(lambda found: found["truth"].update(retrained_loss=float("inf"))),
        "truth.retrained_loss = inf",
    ),
    "too large for a float": (
        damaged_text('"study_seconds": 15.2', '"study_seconds": 1e999'),
        "study_seconds = inf",
    ),
    "a key twice": (
        damaged_text('"problem": "made-up"', '"problem": "other", "problem": "made-up"'),
        "problem twice at its top",
    ),
    "deep": (
        changed_json(lambda found: found.update(recipe=nested(60))),
        "more than 24 levels",
    ),
    "deeper than a parser goes": (
        lambda folder: (folder / RESULTS).write_text("[" * 200_000),
        "is not readable as JSON",
    ),
    "another version": (other_version, f"made by curvfluence 9.9 and this is {cf.__version__}"),
    "a rung twice": (
        changed_json(lambda found: found["rungs"].append(found["rungs"][0])),
        "the rung 'Hessian' stands 2 times",
    ),
    "a rung that names another file": (
        changed_json(lambda found: found["rungs"][0].update(name="../../x")),
        "no rung can be named '../../x'",
    ),
}


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


class TestRefusals:
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lose_results, "unfinished study: there is no results.json"),
            (lose_settings, "holds no study: there is no study.json"),
            (break_json, "not readable as JSON"),
            (lose_array, "scores.KFAC.npy is missing"),
            (cut_array, "truth.npy is not what was written"),
            (other_array, r"subsets.npy has shape \(3, 3\)"),
            (other_version, f"made by curvfluence 9.9 and this is {cf.__version__}"),
            (lose_section, "missing required field `steps`"),
            (begin_again, "begun again and not finished"),
        ],
    )
    def test_refused_with_the_reason_and_nothing_written(
        self, damage: Callable[[Path], None], said: str, tmp_path: Path
    ) -> None:
        folder = tmp_path / "x"
        make_study(folder, full=False)
        damage(folder)
        before = sorted(p for p in folder.rglob("*"))
        with pytest.raises(cf.errors.InputError, match=said):
            write_report(folder)
        assert sorted(p for p in folder.rglob("*")) == before

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(cf.errors.InputError, match="is no folder"):
            write_report(tmp_path / "nothing")

    @pytest.mark.parametrize("name", MALFORMED)
    def test_malformed_results_are_one_clear_error(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        """As `curvfluence report` shows them: exit code 2, and no traceback."""
        damage, said = MALFORMED[name]
        folder = tmp_path / "x"
        make_study(folder, full=False, train=8, queries=2)
        damage(folder)
        before = sorted(folder.rglob("*"))
        code, out, err = run(["report", str(folder)], monkeypatch, capsys)
        assert code == 2
        assert out == ""
        assert err.startswith(f"error: {folder / RESULTS}")
        assert said in err
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1
        assert len(err) < 600
        assert sorted(folder.rglob("*")) == before


class TestRecords:
    @pytest.mark.parametrize("full", [True, False])
    def test_read_back_equal(self, full: bool, tmp_path: Path) -> None:
        results = make_results(full=full)
        records.write(tmp_path / RESULTS, results)
        found = records.read(tmp_path / RESULTS, Results)
        assert found == results
        text = (tmp_path / RESULTS).read_text()
        assert found is not None
        records.write(tmp_path / RESULTS, found)
        assert (tmp_path / RESULTS).read_text() == text
        assert [p.name for p in tmp_path.iterdir()] == [RESULTS]

    def test_what_is_no_number_is_never_written(self, tmp_path: Path) -> None:
        results = make_results(full=False)
        records.write(tmp_path / RESULTS, results)
        before = (tmp_path / RESULTS).read_text()
        for value in (float("nan"), float("inf")):
            with pytest.raises(NonFiniteError, match=r"rungs\[1\]\.lds"):
                records.write(tmp_path / RESULTS, with_rung(results, "GGN", lds=value))
        assert (tmp_path / RESULTS).read_text() == before
        assert [p.name for p in tmp_path.iterdir()] == [RESULTS]

    def test_no_file_is_none(self, tmp_path: Path) -> None:
        assert records.read(tmp_path / RESULTS, Results) is None

    def test_records_do_not_change(self) -> None:
        with pytest.raises(AttributeError):
            make_results(full=False).problem = "other"  # type: ignore[misc]


class TestCompare:
    @pytest.fixture
    def two(self, tmp_path: Path) -> list[Path]:
        make_study(tmp_path / "a", full=False)
        results = make_study(tmp_path / "b", full=False, seed=1)
        results = with_rung(results, "GGN", lds=0.5)
        spec = replace(results.spec, alpha=0.9)
        write(tmp_path / "b", replace(results, rungs=results.rungs[1:], spec=spec))
        return [tmp_path / "a", tmp_path / "b"]

    def test_side_by_side(self, two: list[Path]) -> None:
        found = compare_studies(two)
        rows = {row[0]: row[1:] for row in found.lds.rows}
        assert found.lds.columns == ("Rung", "a", "b")
        assert rows["GGN"][0].startswith("0.643 (")
        assert rows["GGN"][1].startswith("0.500 (")
        assert rows["Hessian(abs)"][1] == "–"
        settings = {row[0]: row[1:] for row in found.settings.rows}
        assert settings == {"seed": ("0", "1"), "alpha": ("0.5", "0.9")}

    def test_page(self, two: list[Path], tmp_path: Path) -> None:
        out = write_comparison(compare_studies(two), tmp_path / "pages" / "both.html").path
        text = out.read_text()
        assert Page(text).tables["figure-compare"][2][0] == "GGN"
        assert all(a.startswith(("#", "data:")) for a in Page(text).addresses)
        write_comparison(compare_studies(two), out)
        mine = tmp_path / "mine.html"
        mine.write_text("<p>years of work")
        with pytest.raises(cf.errors.InputError, match="no page of curvfluence"):
            write_comparison(compare_studies(two), mine)
        assert mine.read_text() == "<p>years of work"

    def test_same_names_in_different_folders(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            make_study(tmp_path / name / "digits", full=False)
        found = compare_studies([tmp_path / "one" / "digits", tmp_path / "two" / "digits"])
        assert found.labels == ("one/digits", "two/digits")

    def test_refusals(self, two: list[Path], tmp_path: Path) -> None:
        (tmp_path / "thesis").mkdir()
        for folders, said in (
            ([two[0]], "two studies or more"),
            ([two[0], two[0]], "named twice"),
            ([two[0], tmp_path / "thesis"], "holds no study"),
        ):
            with pytest.raises(cf.errors.InputError, match=said):
                compare_studies(folders)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of the command line."""
    monkeypatch.setattr("sys.argv", ["curvfluence", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


class TestCommands:
    def test_report(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        make_study(tmp_path / "x", full=False)
        code, out, _ = run(["report", str(tmp_path / "x")], monkeypatch, capsys)
        assert code == 0
        assert f"{tmp_path}/x/report.html" in out
        assert (tmp_path / "x" / "figures" / "ladder.pdf").is_file()

    def test_compare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        for seed in range(3):
            make_study(tmp_path / f"s{seed}", full=False, seed=seed)
        folders = [str(tmp_path / f"s{seed}") for seed in range(3)]
        page = tmp_path / "all.html"
        code, out, _ = run(["compare", *folders, "--out", str(page)], monkeypatch, capsys)
        assert code == 0
        assert out.count("0.643 (0.613 to 0.668)") == 3
        assert page.is_file()

    def test_bad_requests_end_with_2(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        make_study(tmp_path / "x", full=False)
        for arguments, said in (
            (["report", str(tmp_path)], "holds no study"),
            (["compare", str(tmp_path / "x")], "two studies or more"),
            (["compare"], "Missing argument"),
        ):
            code, out, err = run(arguments, monkeypatch, capsys)
            assert code == 2
            assert said in " ".join(err.replace("│", " ").split())
            assert out == ""


class TestWords:
    def test_numbers(self) -> None:
        assert number(-0.00049) == "0.000"
        assert number(-0.25, 2) == "−0.25"
        assert number(0.25, 2, signed=True) == "+0.25"
        assert number(None) == "–"
        assert [short(v) for v in (0, 1e-5, 3.16228e-3, 0.02, 9.999, 1234.5, 2e7, -0.5)] == [
            "0", "10⁻⁵", "0.00316", "0.02", "10", "1234", "2·10⁷", "−0.5",
        ]  # fmt: skip
        assert [seconds(v) for v in (None, 0.0123, 0.9999, 61.0)] == [
            "–",
            "12 ms",
            "1.0 s",
            "61.0 s",
        ]
        assert flops(10.5e9) == "10.5 GFLOP"

    @given(st.lists(st.floats(-50, 150), max_size=12))
    def test_labels_are_moved_apart_and_stay_in_order(self, values: list[float]) -> None:
        placed = spread(values, 8.0, 0.0, 100.0)
        ordered = sorted(placed)
        assert all(b - a >= 8 - 1e-6 for a, b in pairwise(ordered))
        assert np.all(np.diff(np.array(placed)[np.argsort(values, kind="stable")]) > 0)
        if 8.0 * len(values) <= 100:
            assert all(-1e-6 <= v <= 100 + 1e-6 for v in placed)

    def test_front(self) -> None:
        rung = make_results(full=False).rungs[0]
        priced = [(replace(rung, name=n, lds=y), x) for n, x, y in
                  (("a", 3.0, 0.5), ("b", 1.0, 0.2), ("c", 2.0, 0.1), ("d", 9.0, 0.5))]  # fmt: skip
        assert [found.name for found, _ in front(priced)] == ["b", "a"]

    def test_what_differs_by_rounding_alone_is_not_on_the_front(self) -> None:
        rung = make_results(full=False).rungs[0]
        priced = [
            (replace(rung, name="a", lds=0.5), 1.0),
            (replace(rung, name="b", lds=0.5001), 9.0),
        ]
        assert [found.name for found, _ in front(priced)] == ["a"]


class TestText:
    """Studies as Markdown: what a reader of the documentation sees."""

    def test_each_rung_with_what_it_costs(self, full: tuple[Path, str], tmp_path: Path) -> None:
        text_of([full[0]]).write(tmp_path / "costs.md", "costs")
        read = (tmp_path / "costs.md").read_text()
        results = read_study(full[0]).results
        stairs = {
            rung.name for rung, _ in front([(r, r.seconds) for r in results.rungs if r.seconds])
        }
        for rung in results.rungs:
            line = next(row for row in read.splitlines() if row.startswith(f"| {rung.full_name} |"))
            assert f"| {number(rung.lds)} |" in line
            assert line.endswith("| yes |" if rung.name in stairs else "|  |")
        picture = next((tmp_path / "costs").iterdir())
        assert f"](costs/{picture.name})" in read
        assert picture.read_text().startswith("<?xml")

    def test_several_have_a_line_each(self, full: tuple[Path, str]) -> None:
        text = text_of([full[0], full[0]]).markdown("x")
        assert text.count("on the front, from the cheapest up") == 1
        results = read_study(full[0]).results
        assert text.count(f"\n| {results.problem}: {results.heading} |") == 2

    def test_claims_go_on_another_page(self, full: tuple[Path, str]) -> None:
        parts = sorted((Path(__file__).parent.parent / "docs" / "table1").glob("*.json"))
        with pytest.raises(cf.errors.InputError, match="claims and studies go on pages of their "):
            text_of([full[0], *parts])

    @pytest.mark.parametrize(
        ("spec", "command"),
        [
            (StudySpec("wine", 60), "--subsets 60"),
            (
                StudySpec(
                    "wine",
                    60,
                    seed=3,
                    models=2,
                    variant=Variant(epochs=5),
                    bregman=False,
                    queries=9,
                ),
                "--seed 3 --models 2 --epochs 5 --subsets 60 --queries 9 --no-bregman",
            ),
            (
                StudySpec("wine", 60, protocol="frontier", rungs=("GGN", "GGN(samples)")),
                "--protocol frontier --subsets 60 --rungs 'GGN,GGN(samples)'",
            ),
            (StudySpec("wine", 60, replicates=300), ""),  # no option of the command
            (StudySpec("wine", 60, variant=Variant(bias=False)), ""),
        ],
    )
    def test_command_that_repeats_a_study(self, spec: StudySpec, command: str) -> None:
        words = study_command(spec.settings)
        assert words == (command and f"curvfluence study wine {command}")

    def test_the_command_makes_the_study(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The words that are shown give the settings that they were made of."""
        spec = StudySpec(
            "wine", 4, seed=1, models=1, alpha=0.7, dtype="float64", protocol="frontier",
            variant=Variant(depth=1, width=4, epochs=2), rungs=("GGN", "KFAC"), bregman=False,
            queries=5,
        )  # fmt: skip
        seen: list[StudySpec] = []
        monkeypatch.setattr(
            "curvfluence.study.run_study",
            lambda spec, *_, **__: seen.append(spec) or read_study(Path("nowhere")),
        )
        CliRunner().invoke(app, shlex.split(study_command(spec.settings))[1:])
        assert seen == [spec]


class TestNumbers:
    """What results say of themselves, against made-up numbers."""

    def test_negative_eigenvalues_within_rounding_are_no_finding(self) -> None:
        spectrum = make_results().rungs[0].spectrum
        assert spectrum is not None
        eps = 1e-7
        largest = spectrum.largest

        def indefinite(lowest: float, share: float) -> bool:
            part = NegativePart(count=3, lowest=lowest * largest, share=share)
            return replace(spectrum, negative=part).indefinite(eps)

        assert indefinite(-1e-3, 1e-2)
        assert not indefinite(-5 * eps, 1e-2)  # each within rounding of 0
        assert not indefinite(-1e-3, 5 * eps)  # together nothing beside the rest
        assert not indefinite(-5 * eps, 5 * eps)

    def test_the_change_beyond_either_end_of_the_grid(self) -> None:
        sweep = tuple(
            SweepPoint(damping=at, lds=lds)
            for at, lds in zip((1.0, 2.0, 3.0), (0.5, 0.4, 0.1), strict=True)
        )
        rung = make_results().rungs[0]
        low = replace(rung, sweep=sweep, dampings=(1.0, 1.0))
        high = replace(rung, sweep=sweep, dampings=(3.0, 3.0))
        assert low.beyond_edge == pytest.approx(0.4 - 0.5)
        assert high.beyond_edge == pytest.approx(0.4 - 0.1)

    def test_a_difference_is_had_in_either_order(self) -> None:
        results = make_results()
        pair = results.differences[0]
        one, other = results.difference(pair.a, pair.b), results.difference(pair.b, pair.a)
        assert one is not None
        assert other is not None
        assert one == pair
        assert (other.a, other.b, other.difference) == (pair.b, pair.a, -pair.difference)
        low, high = pair.interval
        assert other.interval == (-high, -low)


class TestTerminal:
    @pytest.mark.parametrize("width", [40, 60, 80, 110])
    def test_a_narrow_terminal_keeps_whole_names(self, width: int) -> None:
        """The first columns, each rung's name in one line, and the names of the others."""
        console = Console(width=width, record=True, file=io.StringIO())
        table = rung_table(make_results())
        table.show(console)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        for rung in LDS:
            row = next(line for line in lines if line.startswith(rung))
            assert f"{LDS[rung]:.3f}" in row
        said = " ".join(lines)
        assert all(name in said for name in table.columns)


def test_a_warning_in_a_terminal_has_no_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(_: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always", cf.errors.CurvfluenceWarning)
            warnings.warn("few labels", cf.errors.CurvfluenceWarning, stacklevel=1)

    before = warnings.showwarning
    monkeypatch.setattr("curvfluence.report.compare_studies", warn)
    monkeypatch.setattr("sys.argv", ["curvfluence", "compare", "a", "b"])
    with pytest.raises(AttributeError):  # there is nothing to show
        main()
    assert "warning: few labels" in capsys.readouterr().err
    assert warnings.showwarning is before


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    for name in "ab":
        make_study(tmp_path / name)
    found = compare_studies([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(cf.errors.InputError, match="cannot write to"):
        write_comparison(found, tmp_path / "a" / "results.json" / "x.html")
