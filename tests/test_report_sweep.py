"""The page of a sweep: its numbers, its intervals, its files, and what it refuses."""

from __future__ import annotations

import json
import re
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from curvfluence.report.sweep.measured import command, library_call
from scipy import stats

import curvfluence as cf
from curvfluence.cli import main
from curvfluence.report.sweep import is_sweep, read_sweep, write_sweep_report
from curvfluence.report.sweep.grid import Grid, Line, estimate, t_interval
from curvfluence.report.sweep.tables import BEST, heat, ordered
from curvfluence.study.spec import StudySpec
from curvfluence.study.sweep import STUDY_AXES, Sweep, run_sweep, write_index
from tests.studies import LDS, make_study, write
from tests.test_report import Page

SEEDED = {"depth": [1, 2, 4], "epochs": [3, 30], "seed": [0, 1, 2]}
OWN = {"depth": [1, 2], "width": [16, 32]}
WIDE = {"depth": [1, 2], "width": [16, 32, 64], "epochs": [3, 30, 300]}
ONLY_SEEDS = {"seed": [0, 1, 2, 3]}
KINDS = ("lds", "share", "norm-share", "eigenvalue-lost", "lost")


def make_sweep(root: Path, axes: dict[str, list[Any]], *, split: bool = True) -> Sweep:
    """A finished sweep of made-up studies, each with numbers of its own."""
    rng = np.random.default_rng(0)
    cells: list[tuple[dict[str, Any], dict[str, Any]]] = []
    names: list[str] = []
    for k, values in enumerate(product(*axes.values())):
        cell = dict(zip(axes, values, strict=True))
        names.append(f"study{k}")
        folder = root / "cells" / names[-1]
        results = make_study(folder, full=False, train=20, queries=6)
        _vary(results, cell, rng, split=split)
        write(folder, results)
        cells.append((cell, results))
    sweep = Sweep(tuple(cells), root)
    write_index(sweep, axes, names)
    return sweep


def _vary(
    results: dict[str, Any], cell: dict[str, Any], rng: np.random.Generator, *, split: bool
) -> None:
    own = {name: cell[name] for name in STUDY_AXES if name in cell}
    variant = {name: value for name, value in cell.items() if name not in own}
    results["spec"] |= {**own, "variant": variant, "fishers": ["mc(1)"], "protocol": "clean"}
    results["spec"]["rungs"] = [*LDS, *(f"{n}[mc(1)]" for n in ("EKFAC(exact)", "EKFAC", "KFAC"))]
    for rung in results["rungs"]:
        rung["lds"] = float(rung["lds"] + rng.normal(0, 0.03))
        rung["interval"] = [rung["lds"] - 0.05, rung["lds"] + 0.04]
    lds = {rung["name"]: rung["lds"] for rung in results["rungs"]}
    results["steps"] = [_step(a, b, lds[a] - lds[b]) for a, b in pairwise(lds)]
    if split:
        results["decompositions"] = [
            {"fisher": fisher, "steps": [_shared(results["steps"][3], share + rng.normal(0, 0.02))]}
            for fisher, share in (("type2", 0.2), ("mc(1)", 0.6))
        ]


def _step(a: str, b: str, lost: float) -> dict[str, Any]:
    return {"from": a, "to": b, "lds_lost": lost, "interval": [lost - 0.02, lost + 0.02]}


def _shared(step: dict[str, Any], share: float) -> dict[str, Any]:
    return {
        **step,
        "share": float(share),
        "share_models": [share - 0.05, share + 0.05],
        "norm_share": float(share) + 0.1,
        "norm_share_models": [share + 0.04, share + 0.16],
    }


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    sweep = make_sweep(tmp_path_factory.mktemp("runs") / "seeded", SEEDED)
    return sweep, write_sweep_report(sweep).path.read_text()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, str]:
    sweep = make_sweep(tmp_path_factory.mktemp("runs") / "own", OWN)
    return sweep, write_sweep_report(sweep).path.read_text()


def rows(text: str, figure: str) -> dict[str, dict[str, str]]:
    """The data of a figure by row and column."""
    head, *body = Page(text).tables[f"figure-{figure}"]
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def lds_of(results: dict[str, Any], name: str) -> float:
    return next(rung["lds"] for rung in results["rungs"] if rung["name"] == name)


class TestIntervals:
    def test_t_interval_is_scipys(self) -> None:
        values = [0.3, 0.5, 0.45, 0.2]
        found = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert t_interval(values) == pytest.approx((found.low, found.high))

    def test_over_seeds_alone_and_over_settings(self) -> None:
        line = Line("x", None, lambda r: r["x"], lambda r: r["bar"])  # type: ignore[arg-type]

        def studied(x: float | None, **cell: Any) -> tuple[dict, dict]:
            return cell, {"x": x, "bar": (-1.0, 1.0)}

        alone = estimate([studied(0.5, seed=0)], line)
        assert alone is not None
        assert (alone.value, alone.bar) == (0.5, (-1.0, 1.0))
        several = estimate([studied(0.5, depth=1), studied(0.7, depth=2)], line)
        assert several is not None
        assert several.value == pytest.approx(0.6)
        assert several.bar == (0.5, 0.7)
        seeds = estimate(
            [studied(x, seed=s) for s, x in ((0, 0.1), (0, 0.3), (1, 0.4), (1, 0.8))], line
        )
        assert seeds is not None
        assert seeds.seeds == pytest.approx((0.2, 0.6))
        assert seeds.bar == pytest.approx(t_interval([0.2, 0.6]))
        assert estimate([studied(0.5, seed=0), studied(None, seed=1)], line) is None


class TestPage:
    def test_every_figure_is_drawn_named_and_saved(self, seeded: tuple[Sweep, str]) -> None:
        sweep, text = seeded
        page = Page(text)
        names = {f"{kind}-{axis}" for kind in KINDS for axis in ("depth", "epochs")}
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

    def test_numbers_over_seeds(self, seeded: tuple[Sweep, str]) -> None:
        sweep, text = seeded
        values = [
            lds_of(results, "GGN")
            for cell, results in sweep.cells
            if (cell["depth"], cell["epochs"]) == (2, 30)
        ]
        assert len(values) == 3
        low, high = t_interval(values)
        wanted = f"{fmean(values):.3f} ({low:.3f} to {high:.3f})"
        assert rows(text, "lds-depth")["depth 2, epochs 30"]["GGN"] == wanted
        assert rows(text, "lds-epochs")["epochs 30, depth 2"]["GGN"] == wanted
        assert "95% t-interval over 3 seeds" in text

    def test_numbers_of_one_study_with_its_own_bars(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        results = next(r for c, r in sweep.cells if c == {"depth": 2, "width": 16})
        lds = lds_of(results, "KFAC")
        found = rows(text, "lds-depth")["depth 2, width 16"]["KFAC"]
        assert found == f"{lds:.3f} ({lds - 0.05:.3f} to {lds + 0.04:.3f})"
        share = results["decompositions"][1]["steps"][-1]["share"]
        found = rows(text, "share-depth")["depth 2, width 16"]["mc(1)"]
        assert found == f"{share:.0%} ({share - 0.05:.0%} to {share + 0.05:.0%})"
        assert "each study’s own 95% bootstrap interval" in text
        assert "lowest to highest of 2 influence models" in text
        assert "One seed: each interval is one study’s own" in text

    def test_a_number_goes_from_results_json_to_the_page(self, tmp_path: Path) -> None:
        root = tmp_path / "sweep"
        sweep = make_sweep(root, OWN)
        results = sweep.cells[1][1]
        results["rungs"][1] |= {"lds": 0.71828, "interval": [0.70123, 0.73456]}
        write(root / "cells" / "study1", results)
        text = write_sweep_report(read_sweep(root)).path.read_text()
        found = rows(text, "lds-width")["width 32, depth 1"]["GGN"]
        assert found == "0.718 (0.701 to 0.735)"

    def test_the_verdict_counts(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        shares = {
            k: [r["decompositions"][k]["steps"][-1]["share"] for _, r in sweep.cells]
            for k in (0, 1)
        }
        title = re.search(r'<h1 id="verdict-title">(.*?)</h1>', text)
        assert title is not None
        for values, fisher in ((shares[0], "type2"), (shares[1], "mc(1)")):
            assert f"{min(values):.0%} to {max(values):.0%} under {fisher}" in title[1]
        assert "in 0 of 4 studies under type2" in text
        assert "in 4 of 4 studies under mc(1)" in text
        order = {one.step: one for one in ordered(Grid(sweep))}
        lost = [s["lds_lost"] for _, r in sweep.cells for s in r["steps"] if s["from"] == "GGN"]
        one = order["GGN", "BlockGGN"]
        assert one.ahead == sum(v > 0 for v in lost)
        assert one.resolved_ahead == sum(v > 0.02 for v in lost)
        assert one.resolved_behind == sum(v < -0.02 for v in lost)

    def test_steps_resolved_over_seeds(self, seeded: tuple[Sweep, str]) -> None:
        sweep = seeded[0]
        one = {one.step: one for one in ordered(Grid(sweep))}["BlockGGN", "EKFAC"]
        resolved = 0
        for depth, epochs in product(SEEDED["depth"], SEEDED["epochs"]):
            lost = [
                r["steps"][2]["lds_lost"]
                for c, r in sweep.cells
                if (c["depth"], c["epochs"]) == (depth, epochs)
            ]
            resolved += t_interval(lost)[0] > 0
        assert one.settings == 6
        assert one.seeds_resolved_ahead == resolved

    def test_the_best_of_each_row_is_marked(self, own: tuple[Sweep, str]) -> None:
        sweep, text = own
        table = heat(Grid(sweep))
        for (_, cells), (_, results) in zip(table.rows, sweep.cells, strict=True):
            marked = [n for n, c in zip(table.rungs, cells, strict=True) if c.mark == BEST]
            best = max(results["rungs"], key=lambda rung: rung["lds"])
            assert marked == [best["name"]]
        assert text.count(f'aria-hidden="true">{BEST}</span>') == len(sweep.cells)

    def test_many_settings_are_averaged_and_said_so(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "sweep", WIDE)
        text = write_sweep_report(sweep).path.read_text()
        values = [lds_of(r, "GGN") for c, r in sweep.cells if c["depth"] == 2]
        assert len(values) == 9
        wanted = f"{fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
        assert rows(text, "lds-depth")["depth 2"]["GGN"] == wanted
        assert "mean over 9 settings of width and epochs; bars: their lowest to highest" in text
        assert "average over 9 settings of width and epochs" in text
        assert len(rows(text, "lds-width")) == 3 * 6

    def test_seeds_alone(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "sweep", ONLY_SEEDS)
        text = write_sweep_report(sweep).path.read_text()
        assert set(Page(text).tables) == {f"figure-{kind}" for kind in KINDS}
        values = [lds_of(r, "EKFAC") for _, r in sweep.cells]
        low, high = t_interval(values)
        found = rows(text, "lds")["EKFAC"]["LDS (bar)"]
        assert found == f"{fmean(values):.3f} ({low:.3f} to {high:.3f})"

    def test_without_a_decomposition(self, tmp_path: Path) -> None:
        text = write_sweep_report(make_sweep(tmp_path / "s", OWN, split=False)).path.read_text()
        assert "The studies hold no decomposition." in text
        assert "has the highest mean LDS over the grid" in text

    def test_hostile_names_stay_text(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "s", {"depth": [1]})
        sweep.cells[0][1]["problem"] = "</title><script>alert(1)</script>"
        assert "<script>alert" not in write_sweep_report(sweep).path.read_text()


class TestRepeat:
    def test_the_command(self, seeded: tuple[Sweep, str]) -> None:
        sweep, text = seeded
        wanted = (
            "curvfluence sweep made-up --depth 1,2,4 --epochs 3,30 --seed 0,1,2 --subsets 30 "
            "--models 2 --protocol clean --fisher 'mc(1)'"
        )
        assert command(Grid(sweep)) == wanted
        assert wanted.replace("'", "&#39;") in text
        assert "cd701d92feef0d51" in text

    def test_no_command_for_what_it_cannot_say(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "s", {"depth": [1]})
        sweep.cells[0][1]["spec"]["dampings"] = [0.1]
        assert command(Grid(sweep)) == ""
        assert "dampings=(0.1,)" in library_call(Grid(sweep))
        assert "axes = {\n    'depth': [1],\n}" in library_call(Grid(sweep))


class TestFolder:
    def test_a_real_sweep_lists_itself(self, tmp_path: Path) -> None:
        base = StudySpec("wine", subsets=4, models=2, replicates=200, dampings=(1e-3, 1e-1))
        sweep = run_sweep(base, {"epochs": [2], "seed": [0, 1]}, tmp_path, jobs=1)
        found = read_sweep(tmp_path)
        assert [list(cell) for cell in found.cells] == json.loads(json.dumps(sweep.cells))
        text = write_sweep_report(found).path.read_text()
        values = [lds_of(results, "GGN") for _, results in sweep.cells]
        assert rows(text, "lds")["GGN"]["LDS (bar)"].startswith(f"{fmean(values):.3f} (")

    def test_is_read_back_whole(self, tmp_path: Path) -> None:
        sweep = make_sweep(tmp_path / "s", OWN)
        assert is_sweep(sweep.path)
        found = read_sweep(sweep.path)
        assert found.path == sweep.path
        assert [list(cell) for cell in found.cells] == json.loads(json.dumps(sweep.cells))

    def test_the_report_command_rebuilds_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweep = make_sweep(tmp_path / "s", OWN)
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
            (lambda root: (root / "cells/study1/arrays/truth.npy").unlink(), "half written"),
            (lambda root: _edit(root, curvfluence="0.0.1"), "made by curvfluence 0.0.1"),
            (lambda root: _edit(root, cells=[]), "lacks cells"),
            (lambda root: _edit(root, cells=[{"settings": {}}]), "a cell lacks"),
            (lambda root: _edit(root, axes={"depth": [1, 2, 3]}), "lists 4 studies.*make 3"),
            (lambda root: _swap(root), "is a study of width 32, where sweep.json speaks of 16"),
            (lambda root: _outside(root), "outside of the sweep"),
            (lambda root: _other_code(root), "2 versions of the code"),
        ],
    )
    def test_refused_with_the_reason(self, change: Any, said: str, tmp_path: Path) -> None:
        root = make_sweep(tmp_path / "s", OWN).path
        change(root)
        with pytest.raises(cf.errors.InputError, match=said):
            read_sweep(root)
        assert not (root / "report.html").exists()

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
    (root / "sweep.json").write_text(json.dumps({**index, **changes}))


def _swap(root: Path) -> None:
    cells = json.loads((root / "sweep.json").read_text())["cells"]
    cells[0]["folder"], cells[1]["folder"] = cells[1]["folder"], cells[0]["folder"]
    _edit(root, cells=cells)


def _outside(root: Path) -> None:
    cells = json.loads((root / "sweep.json").read_text())["cells"]
    cells[0]["folder"] = "../other"
    _edit(root, cells=cells)


def _other_code(root: Path) -> None:
    for name in ("study.json", "results.json"):
        file = root / "cells/study3" / name
        found = json.loads(file.read_text())
        found["made_by"]["code"] = "fedcba9876543210"
        file.write_text(json.dumps(found))
