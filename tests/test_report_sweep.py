"""The page of a sweep: its numbers, its intervals, its files, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

import curvfluence as cf
from curvfluence.cli import main
from curvfluence.fidelity import Interval
from curvfluence.report import write_sweep_report
from curvfluence.report.parts.repeat import sweep_call, sweep_command
from curvfluence.report.parts.style import Look
from curvfluence.report.sweep.effects import effects
from curvfluence.report.sweep.figures import eigenvalue_step, lds
from curvfluence.report.sweep.grid import Grid, Line, estimate, t_interval
from curvfluence.report.sweep.tables import BEST, TIED, heat, overview, step_counts
from curvfluence.report.sweep.verdict import verdict
from curvfluence.store import records
from curvfluence.store.folder import MadeBy
from curvfluence.study.results import Decomposition, DecompositionStep, Results, Step
from curvfluence.study.spec import GRID, StudySpec
from curvfluence.study.study import read_study
from curvfluence.study.sweep import (
    STUDY_AXES,
    Cell,
    Sweep,
    SweptStudy,
    is_sweep,
    read_sweep,
    run_sweep,
)
from curvfluence.study.sweep.index import INDEX, SweepIndex
from curvfluence.study.sweep.run import index_of
from curvfluence.study.variant import Variant
from curvfluence.study.words import number
from tests.studies import around, make_results, make_study, reseal, with_rung, write
from tests.test_report import Page, run

pytestmark = pytest.mark.xdist_group("report_sweep")  # its fixtures are made once

SEEDED = {"depth": [1, 2, 4], "epochs": [3, 30], "seed": [0, 1, 2]}
OWN = {"depth": [1, 2], "width": [16, 32]}
WIDE = {"depth": [1, 2], "width": [16, 32, 64], "epochs": [3, 30, 300]}
ONLY_SEEDS = {"seed": [0, 1, 2, 3]}
KINDS = ("lds", "share", "norm-share", "eigenvalue-lost", "lost")


def make_sweep(root: Path, axes: dict[str, list[Any]], *, split: bool = True) -> Sweep:
    """A finished sweep of made-up studies, each with numbers of its own."""
    rng = np.random.default_rng(0)
    studies: list[SweptStudy] = []
    names: list[str] = []
    for k, values in enumerate(product(*axes.values())):
        cell: Cell = dict(zip(axes, values, strict=True))
        names.append(f"study{k}")
        folder = root / "cells" / names[-1]
        results = make_study(folder, full=False, train=20, queries=6)
        results = _varied(results, cell, rng, split=split)
        results = write(folder, results)
        studies.append(SweptStudy(cell, results))
    sweep = Sweep(tuple(studies), root)
    records.write(root / INDEX, index_of(sweep, axes, names))
    return sweep


def _varied(results: Results, cell: Cell, rng: np.random.Generator, *, split: bool) -> Results:
    own: dict[str, Any] = {name: cell[name] for name in STUDY_AXES if name in cell}
    changes: dict[str, Any] = {name: value for name, value in cell.items() if name not in own}
    spec = StudySpec(
        "made-up",
        30,
        models=2,
        fishers=("mc(1)",),
        bregman=False,
        variant=Variant(**changes),
        **own,
    )
    lds = {rung.name: float(rung.lds + rng.normal(0, 0.03)) for rung in results.rungs}
    rungs = (
        replace(rung, lds=lds[rung.name], interval=around(lds[rung.name], 0.05, 0.04))
        for rung in results.rungs
    )
    steps = tuple(
        Step(a, b, lds[a] - lds[b], around(lds[a] - lds[b], 0.02)) for a, b in pairwise(lds)
    )
    shares = (("type2", 0.2), ("mc(1)", 0.6)) if split else ()
    return replace(
        results,
        spec=spec.settings,
        rungs=tuple(rungs),
        steps=steps,
        decompositions=tuple(
            Decomposition(fisher, GRID, (_shared(steps[3], float(share + rng.normal(0, 0.02))),))
            for fisher, share in shares
        ),
    )


def _shared(step: Step, share: float) -> DecompositionStep:
    return DecompositionStep(
        step.above,
        step.below,
        step.lds_lost,
        step.interval,
        distance_squared=1.0,
        share=share,
        share_models=(share - 0.05, share + 0.05),
        norm_share=share + 0.1,
        norm_share_models=(share + 0.04, share + 0.16),
    )


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    sweep = make_sweep(tmp_path_factory.mktemp("runs") / "seeded", SEEDED)
    return sweep, write_sweep_report(sweep, figures=False).path.read_text()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    sweep = make_sweep(tmp_path_factory.mktemp("runs") / "own", OWN)
    return sweep, write_sweep_report(sweep).path.read_text()


def rows(text: str, figure: str) -> dict[str, dict[str, str]]:
    """The data of a figure by row and column."""
    head, *body = Page(text).tables[f"figure-{figure}"]
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def _inside(results: Results) -> Results:
    """The results with the best λ of every rung inside the grid."""
    rungs = tuple(replace(r, damping_on_edge=False) for r in results.rungs)
    return replace(results, rungs=rungs)


def lds_of(results: Results, name: str) -> float:
    rung = results.rung(name)
    assert rung is not None
    return rung.lds


def share_of(results: Results, fisher: str) -> float:
    step = results.eigenvalue_step(fisher)
    assert step is not None
    assert step.share is not None
    return step.share


def one_study(root: Path) -> tuple[Sweep, Results]:
    """A sweep of one study, and its results."""
    sweep = make_sweep(root, {"depth": [1]})
    return sweep, sweep.studies[0].results


def with_results(sweep: Sweep, results: Results) -> Sweep:
    """The sweep of one study with other results."""
    return Sweep((replace_results(sweep.studies[0], results),), sweep.path)


def replace_results(study: SweptStudy, results: Results) -> SweptStudy:
    return SweptStudy(study.cell, results)


class TestIntervals:
    def test_t_interval_is_scipys(self) -> None:
        values = [0.3, 0.5, 0.45, 0.2]
        found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert t_interval(values) == pytest.approx((found.low, found.high))

    def test_over_seeds_alone_and_over_settings(self) -> None:
        base = make_results(full=False, train=4, queries=2)
        line = Line("x", Look("", "", ""), lambda r: r.study_seconds, lambda r: Interval(-1.0, 1.0))

        def studied(x: float | None, **cell: int) -> SweptStudy:
            return SweptStudy({**cell}, replace(base, study_seconds=x))

        alone = estimate([studied(0.5, seed=0)], line)
        assert alone is not None
        assert (alone.value, alone.bar) == (0.5, (-1.0, 1.0))
        assert alone.open
        several = estimate([studied(0.5, depth=1), studied(0.7, depth=2)], line)
        assert several is not None
        assert several.value == pytest.approx(0.6)
        assert several.bar == (0.5, 0.7)
        assert not several.open
        seeds = estimate(
            [studied(x, seed=s) for s, x in ((0, 0.1), (0, 0.3), (1, 0.4), (1, 0.8))], line
        )
        assert seeds is not None
        assert seeds.seeds == pytest.approx((0.2, 0.6))
        assert seeds.bar == pytest.approx(t_interval([0.2, 0.6]))
        assert estimate([studied(0.5, seed=0), studied(None, seed=1)], line) is None


class TestPage:
    def test_every_figure_is_drawn_named_and_saved(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        page = Page(text)
        names = {f"{kind}-{axis}" for kind in KINDS for axis in ("depth", "width")} | {"effects"}
        assert set(page.tables) == {f"figure-{name}" for name in names}
        assert len(page.ids) == len(set(page.ids))
        assert all(a.startswith(("#", "data:")) for a in page.addresses)
        assert str(sweep.path) not in text
        for name in names:
            drawing = text[text.index(f'id="figure-{name}"') :]
            drawing = drawing[drawing.index("<svg") : drawing.index("</svg>")]
            assert re.search(rf'<desc id="{name}-desc">[^<]{{40,}}', drawing)
            colours = set(re.findall(r"(?:fill|stroke): ?([^;\"]+)", drawing))
            assert all(c == "none" or c.startswith(("var(--", "url(#")) for c in colours), colours
            assert (sweep.path / "figures" / f"{name}.svg").read_text().startswith("<?xml")
            assert (sweep.path / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")

    def test_what_decides_a_sign(self, own: tuple[Sweep, str]) -> None:
        """A row for each value of each axis: the mean over all studies that have it."""
        sweep, text = own
        rows = Page(text).tables["figure-effects"]
        for axis in ("depth", "width"):
            for value in sorted({study.cell[axis] for study in sweep.studies}):
                gaps = [
                    pair.difference
                    for study in sweep.studies
                    if study.cell[axis] == value
                    and (pair := study.results.difference("EKFAC", "KFAC")) is not None
                ]
                row = next(row for row in rows if row[0] == f"{axis} {value}")
                assert row[1].startswith(number(fmean(gaps), signed=True))

    def test_a_sign_by_where_damping_was_chosen(self, own: tuple[Sweep, str]) -> None:
        """Studies whose K-FAC has its best λ inside the grid beside those that have it at the end;
        no such rows where all are alike, as in the sweep as it was made."""
        sweep, text = own
        assert not any("best λ" in row[0] for row in Page(text).tables["figure-effects"])
        inside = sweep.studies[1:3]
        studies = tuple(
            dataclasses.replace(study, results=_inside(study.results)) if study in inside else study
            for study in sweep.studies
        )
        figure = effects(Grid(dataclasses.replace(sweep, studies=studies)))
        assert figure is not None
        told = {row[0]: row[1] for row in figure.data.rows}
        rest = [study for study in sweep.studies if study not in inside]
        for label, some in (("inside the grid", inside), ("at its end", rest)):
            gaps = [
                pair.difference for s in some if (pair := s.results.difference("EKFAC", "KFAC"))
            ]
            assert len(gaps) == len(some)
            assert told[f"best λ {label}"].startswith(number(fmean(gaps), signed=True))

    def test_numbers_over_seeds(self, seeded: tuple[Sweep, str]) -> None:
        sweep, text = seeded
        values = [
            lds_of(study.results, "GGN")
            for study in sweep.studies
            if (study.cell["depth"], study.cell["epochs"]) == (2, 30)
        ]
        assert len(values) == 3
        low, high = t_interval(values)
        wanted = f"{fmean(values):.3f} ({low:.3f} to {high:.3f})"
        assert rows(text, "lds-depth")["depth 2, epochs 30"]["GGN"] == wanted
        assert rows(text, "lds-epochs")["epochs 30, depth 2"]["GGN"] == wanted
        assert "95% t-interval over 3 seeds" in text

    def test_numbers_of_one_study_with_its_own_bars(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        cell = {"depth": 2, "width": 16}
        results = next(study.results for study in sweep.studies if study.cell == cell)
        kfac = lds_of(results, "KFAC")
        found = rows(text, "lds-depth")["depth 2, width 16"]["KFAC"]
        assert found == f"{kfac:.3f} ({kfac - 0.05:.3f} to {kfac + 0.04:.3f})"
        share = share_of(results, "mc(1)")
        found = rows(text, "share-depth")["depth 2, width 16"]["mc(1)"]
        assert found == f"{share:.0%} ({share - 0.05:.0%} to {share + 0.05:.0%})"
        assert "each study’s own 95% bootstrap interval" in text
        assert "lowest to highest of 2 influence models" in text
        assert "One seed: each interval is one study’s own" in text

    def test_a_number_goes_from_results_json_to_the_page(self, tmp_path: Path) -> None:
        root = tmp_path / "sweep"
        sweep = make_sweep(root, {"width": [16, 32]})
        changed = with_rung(
            sweep.studies[1].results, "GGN", lds=0.71828, interval=Interval(0.70123, 0.73456)
        )
        write(root / "cells" / "study1", changed)
        text = write_sweep_report(read_sweep(root), figures=False).path.read_text()
        found = rows(text, "lds-width")["width 32"]["GGN"]
        assert found == "0.718 (0.701 to 0.735)"

    def test_the_verdict_counts(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        title = re.search(r'<h1 id="verdict-title">(.*?)</h1>', text)
        assert title is not None
        for fisher in ("type2", "mc(1)"):
            values = [share_of(study.results, fisher) for study in sweep.studies]
            assert f"{min(values):.0%} to {max(values):.0%} under {fisher}" in title[1]
        assert "in 0 of 4 studies under type2" in text
        assert "in 4 of 4 studies under mc(1)" in text
        order = {one.step.pair: one for one in step_counts(Grid(sweep))}
        lost = [
            step.lds_lost
            for study in sweep.studies
            if (step := study.results.step("GGN", "BlockGGN")) is not None
        ]
        one = order["GGN", "BlockGGN"]
        assert one.ahead == sum(v > 0 for v in lost)
        assert one.resolved_ahead == sum(v > 0.02 for v in lost)
        assert one.resolved_behind == sum(v < -0.02 for v in lost)

    def test_steps_resolved_over_seeds(self, seeded: tuple[Sweep, str]) -> None:
        sweep = seeded[0]
        counts = {one.step.pair: one for one in step_counts(Grid(sweep))}
        one = counts["BlockGGN", "EKFAC"]
        resolved = 0
        for depth, epochs in product(SEEDED["depth"], SEEDED["epochs"]):
            lost = [
                study.results.steps[2].lds_lost
                for study in sweep.studies
                if (study.cell["depth"], study.cell["epochs"]) == (depth, epochs)
            ]
            assert len(lost) == 3
            resolved += t_interval(lost).low > 0
        assert one.settings == 6
        assert one.seeds_resolved_ahead == resolved

    def test_the_best_of_each_row_is_marked(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        table = heat(Grid(sweep))
        for (_, cells), study in zip(table.rows, sweep.studies, strict=True):
            best = study.results.best
            marked = [n for n, c in zip(table.rungs, cells, strict=True) if c.mark == BEST]
            assert marked == [best.name]
            tied = {n for n, c in zip(table.rungs, cells, strict=True) if c.mark == TIED}
            gaps = {name: study.results.difference(best.name, name) for name in table.rungs}
            assert tied == {n for n, g in gaps.items() if g is not None and not g.interval.resolved}
        assert text.count(f'aria-hidden="true">{BEST}</span>') == len(sweep.studies)

    def test_many_settings_are_averaged_and_said_so(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "sweep", WIDE)
        over = {figure.name: figure for figure in lds(Grid(sweep))}
        values = [lds_of(s.results, "GGN") for s in sweep.studies if s.cell["depth"] == 2]
        assert len(values) == 9
        wanted = f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        data = over["lds-depth"].data
        row = next(row for row in data.rows if row[0] == "depth 2")
        assert row[data.columns.index("GGN")] == wanted
        marks = over["lds-depth"].marks
        assert marks == "mean over 9 settings of width and epochs; bars: their lowest to highest"
        assert marks in over["lds-depth"].description
        doubts = " ".join(verdict(Grid(sweep)).cautions)
        assert "average over 9 settings of width and epochs" in doubts
        assert len(over["lds-width"].data.rows) == 3 * 6

    def test_seeds_alone(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "sweep", ONLY_SEEDS)
        text = write_sweep_report(sweep, figures=False).path.read_text()
        assert set(Page(text).tables) == {f"figure-{kind}" for kind in KINDS}
        values = [lds_of(study.results, "EKFAC") for study in sweep.studies]
        low, high = t_interval(values)
        found = rows(text, "lds")["all studies"]["EKFAC"]
        assert found == f"{fmean(values):.3f} ({low:.3f} to {high:.3f})"

    def test_without_a_decomposition(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "s", OWN, split=False)
        text = write_sweep_report(sweep, figures=False).path.read_text()
        assert "Not computed here: the decomposition." in text
        assert "has the highest mean LDS over the grid" in text

    def test_a_number_that_no_study_has_hides_no_other(self, tmp_path: Path) -> None:
        sweep, results = one_study(tmp_path / "s")
        fewer = tuple(
            replace(
                one,
                steps=tuple(replace(s, norm_share=None, norm_share_models=None) for s in one.steps),
            )
            for one in results.decompositions
        )
        grid = Grid(with_results(sweep, replace(results, decompositions=fewer)))
        names = [figure.name for figure in eigenvalue_step(grid)]
        assert names == ["share", "eigenvalue-lost"]

    def test_hostile_names_stay_text(self, tmp_path: Path) -> None:
        hostile = "</title><script>alert(1)</script>"
        sweep, results = one_study(tmp_path / "s")
        changed = with_rung(results, "GGN", full_name=hostile, notes=(hostile,))
        changed = replace(changed, problem=hostile, description=hostile, protocol=hostile)
        report = write_sweep_report(with_results(sweep, changed), figures=False)
        text = report.path.read_text()
        assert "<script>alert" not in text
        assert "alert(1)" in text

    def test_pairs_of_model_and_query_are_counted_over_the_studies(
        self, own: tuple[Sweep, str]
    ) -> None:
        changed = tuple(
            replace_results(study, with_rung(study.results, "EKFAC", undefined=5))
            for study in own[0].studies
        )
        grid = Grid(Sweep(changed, own[0].path))
        (doubt,) = (text for text in verdict(grid).cautions if "pairs" in text)
        assert doubt.startswith("Of 48 pairs of model and query")
        assert doubt.endswith("20 for EKFAC.")
        assert "queries" not in doubt


class TestRepeat:
    def test_the_command(self, seeded: tuple[Sweep, str]) -> None:
        sweep, text = seeded
        wanted = (
            "curvfluence sweep made-up --depth 1,2,4 --epochs 3,30 --seed 0,1,2 --subsets 30 "
            "--models 2 --protocol clean --fisher 'mc(1)'"
        )
        grid = Grid(sweep)
        assert sweep_command(grid.first.spec, grid.given) == wanted
        assert wanted.replace("'", "&#39;") in text
        assert "cd701d92feef0d51" in text

    def test_no_command_for_what_it_cannot_say(self, tmp_path: Path) -> None:
        sweep, results = one_study(tmp_path / "s")
        spec, axes = replace(results.spec, dampings=(0.1,)), Grid(sweep).given
        assert sweep_command(spec, axes) == ""
        assert "dampings=(0.1,)" in sweep_call(spec, axes)
        assert "axes = {\n    'depth': [1],\n}" in sweep_call(spec, axes)


def same(a: Sweep, b: Sweep) -> bool:
    """Whether two sweeps have the same cells and results."""
    pairs = zip(a.studies, b.studies, strict=True)
    return all((x.cell, x.results) == (y.cell, y.results) for x, y in pairs)


class TestFolder:
    def test_a_real_sweep_lists_itself(self, tmp_path: Path) -> None:
        base = StudySpec("wine", subsets=4, models=2, replicates=200, dampings=(1e-3, 1e-1))
        sweep = run_sweep(base, {"epochs": [2], "seed": [0, 1]}, tmp_path, jobs=1)
        found = read_sweep(tmp_path)
        assert same(found, sweep)
        text = write_sweep_report(found, figures=False).path.read_text()
        values = [lds_of(study.results, "GGN") for study in sweep.studies]
        assert rows(text, "lds")["all studies"]["GGN"].startswith(f"{fmean(values):.3f} (")

    def test_is_read_back_whole(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "s", OWN)
        assert is_sweep(sweep.path)
        found = read_sweep(sweep.path)
        assert found.path == sweep.path
        assert same(found, sweep)
        index = records.read(sweep.path / INDEX, SweepIndex)
        assert index is not None
        assert index_of(found, index.axes, [f"study{k}" for k in range(4)]) == index

    def test_the_report_command_rebuilds_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweep = make_sweep(tmp_path / "s", ONLY_SEEDS)
        monkeypatch.setattr("sys.argv", ["curvfluence", "report", str(sweep.path)])
        with pytest.raises(SystemExit) as done:
            main()
        assert done.value.code == 0
        assert "a sweep of 4 studies" in (sweep.path / "report.html").read_text()

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda root: (root / "sweep.json").unlink(), "unfinished sweep.*sweep.json"),
            (lambda root: (root / "cells/study2/results.json").unlink(), "unfinished study"),
            (
                lambda root: (root / "cells/study1/arrays/truth.npy").unlink(),
                r"truth\.npy is missing",
            ),
            (lambda root: _edit(root, curvfluence="0.0.1"), "made by curvfluence 0.0.1"),
            (lambda root: _edit(root, cells=[]), "at cells: expected `array` of length >= 1"),
            (
                lambda root: _edit(root, cells=[{"settings": {}}]),
                r"at cells\[0\]: .*missing required field `folder`",
            ),
            (lambda root: _edit(root, axes={"depth": [1, 2, 3]}), "lists 4 studies.*make 3"),
            (lambda root: _swap(root), "is a study of width 32, where sweep.json speaks of 16"),
            (lambda root: _outside(root), "outside of its own"),
            (lambda root: _other_code(root), "2 versions of the code"),
        ],
    )
    def test_refused_with_the_reason(self, change: Any, said: str, tmp_path: Path) -> None:
        root = make_sweep(tmp_path / "s", OWN).path
        change(root)
        with pytest.raises(cf.errors.InputError, match=said):
            read_sweep(root)
        assert not (root / "report.html").exists()

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("{", "", "is not readable as JSON"),
            ('"depth": [', '"depth": "', "is not readable as JSON"),
            ('"depth": 1', '"depth": NaN', "settings.depth = nan"),
            ('"depth": 1', '"depth": "deep"', "no value of its axis"),
            ('"depth": 1', '"depth": 1, "depth": 2', "depth twice at cells[0].settings"),
            ('"axes"', '"extra": 1, "axes"', "unknown field `extra`"),
            ('"axes"', f'"axes": {"[" * 40}{"]" * 40}, "other"', "more than 24 levels"),
            (f'"{cf.__version__}"', '"9.9"', "made by curvfluence 9.9"),
        ],
    )
    def test_a_malformed_index_is_one_clear_error(
        self,
        old: str,
        new: str,
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: Any,
    ) -> None:
        root = make_sweep(tmp_path / "s", {"depth": [1]}).path
        text = (root / INDEX).read_text()
        assert old in text
        (root / INDEX).write_text(text.replace(old, new, 1))
        code, out, err = run(["report", str(root)], monkeypatch, capsys)
        assert code == 2
        assert out == ""
        assert err.startswith(f"error: {root / INDEX}")
        assert said in err
        assert "Traceback" not in err
        assert len(err.strip().splitlines()) == 1
        assert not (root / "report.html").exists()

    def test_no_studies(self, tmp_path: Path) -> None:
        with pytest.raises(cf.errors.InputError, match="no studies has no report"):
            write_sweep_report(Sweep((), tmp_path))

    def test_no_sweep(self, tmp_path: Path) -> None:
        with pytest.raises(cf.errors.InputError, match="holds no sweep"):
            read_sweep(tmp_path)

    def test_somebody_elses_page_is_left(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "s", {"depth": [1]})
        (sweep.path / "report.html").write_text("mine")
        with pytest.raises(cf.errors.InputError, match="no page of curvfluence"):
            write_sweep_report(sweep)
        assert (sweep.path / "report.html").read_text() == "mine"


def _edit(root: Path, **changes: Any) -> None:
    index = json.loads((root / "sweep.json").read_text())
    reseal(root / "sweep.json", {**index, **changes})


def _swap(root: Path) -> None:
    cells = json.loads((root / "sweep.json").read_text())["cells"]
    for name in ("folder", "digest"):
        cells[0][name], cells[1][name] = cells[1][name], cells[0][name]
    _edit(root, cells=cells)


def _outside(root: Path) -> None:
    cells = json.loads((root / "sweep.json").read_text())["cells"]
    cells[0]["folder"] = "../other"
    _edit(root, cells=cells)


def _other_code(root: Path) -> None:
    folder = root / "cells/study3"
    found = read_study(folder).results
    write(folder, replace(found, made_by=MadeBy("fedcba9876543210", found.made_by.torch)))


def test_the_terminal_shows_axes_of_names(tmp_path: Path) -> None:
    """An activation or a yes is a value of an axis as a number is."""
    sweep = make_sweep(tmp_path / "x", OWN)
    named_cells = tuple(
        dataclasses.replace(study, cell={"activation": name, "bias": k > 1})
        for k, (study, name) in enumerate(
            zip(sweep.studies, ("gelu", "tanh", "gelu", "tanh"), strict=True)
        )
    )
    table = overview(dataclasses.replace(sweep, studies=named_cells))
    assert [row[:2] for row in table.rows] == [
        ("gelu", "no"), ("tanh", "no"), ("gelu", "yes"), ("tanh", "yes"),
    ]  # fmt: skip
