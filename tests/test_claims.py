"""Claims: numbers, intervals and verdicts against closed forms; the command on a tiny problem."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app, main
from curvfluence.report import again, write_claims
from curvfluence.report.claims import show_claims
from curvfluence.report.claims import text as text_of
from curvfluence.study.claims import Claims, Settings, read_claims, run_claims
from curvfluence.study.claims.claim import FAILS, HOLDS, OPEN, Rule, claims
from curvfluence.study.claims.estimate import TAIL, Drawn, OverModels, Share, Smallest
from curvfluence.study.claims.plan import plan
from curvfluence.study.problems import BUILT_IN, MLP, StudyProblem, load

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.filterwarnings("ignore::curvfluence.errors.CurvfluenceWarning"),
    pytest.mark.xdist_group("claims"),
]


def normal(mean: float, scale: float = 0.1, seed: int = 0, size: int = 4000) -> Drawn:
    return Drawn(mean, mean + scale * np.random.default_rng(seed).standard_normal(size))


class TestEstimates:
    def test_percentiles_of_draws(self) -> None:
        draws = np.arange(1001.0)
        found = Drawn(500.0, draws)
        assert (found.low(TAIL), found.high(TAIL)) == pytest.approx((25.0, 975.0))

    def test_t_over_models(self) -> None:
        values = [0.3, 0.5, 0.45, 0.2]
        wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        found = OverModels(values)
        assert (found.low(TAIL), found.high(TAIL)) == pytest.approx((wanted.low, wanted.high))
        assert OverModels([0.3]).low(TAIL) == -np.inf

    def test_a_share_of_what_is_always_lost_is_the_percentile_interval_of_the_ratio(self) -> None:
        whole = normal(1.0, 0.1)
        part = Drawn(0.4, 0.4 * whole.draws + normal(0.0, 0.05, seed=1).draws)
        assert whole.draws.min() > 0
        found = Share(part, whole)
        ratio = part.draws / whole.draws
        assert found.value == pytest.approx(0.4)
        assert found.low(TAIL) == pytest.approx(np.quantile(ratio, TAIL), abs=1e-3)
        assert found.high(TAIL) == pytest.approx(np.quantile(ratio, 1 - TAIL), abs=1e-3)

    def test_a_share_whose_whole_is_sometimes_nothing_is_fiellers(self) -> None:
        """Against the closed form for normal part and whole, which divides nowhere."""
        mean_p, mean_w, s_p, s_w = 0.5, 1.0, 0.1, 0.4
        whole, part = normal(mean_w, s_w, size=400_000), normal(mean_p, s_p, 1, size=400_000)
        z = stats.norm.ppf(0.975)
        a = mean_w**2 - z**2 * s_w**2
        b = mean_p * mean_w
        c = mean_p**2 - z**2 * s_p**2
        root = np.sqrt(b * b - a * c)
        found = Share(part, whole)
        assert (whole.draws <= 0).any()
        assert found.low(TAIL) == pytest.approx((b - root) / a, rel=0.02)
        assert found.high(TAIL) == pytest.approx((b + root) / a, rel=0.02)

    def test_a_share_of_nothing_is_no_number(self) -> None:
        found = Share(normal(0.1), normal(0.05))
        assert (found.value, found.low(TAIL), found.high(TAIL)) == (None, -np.inf, np.inf)
        # one setting without a share: "in every one" can be refuted by another, and never hold
        every = Smallest((found, OverModels([0.2, 0.21, 0.19])))
        assert every.value == pytest.approx(0.2)
        assert every.low(TAIL) == -np.inf
        assert Rule.MAJORITY.verdict(every.low(TAIL), every.high(TAIL)) == FAILS
        every = Smallest((found, OverModels([0.8, 0.81, 0.79])))
        assert Rule.MAJORITY.verdict(every.low(TAIL), every.high(TAIL)) == OPEN

    def test_the_smallest_of_several_is_covered(self) -> None:
        """The interval of the minimum of three numbers, one of them far above, holds it in 95% of
        3,000 experiments; that of the smallest value alone would not."""
        rng = np.random.default_rng(0)
        means, n = np.array([0.0, 0.0, 1.0]), 8
        inside = naive = 0
        for _ in range(3000):
            sample = means + rng.standard_normal((n, 3))
            parts = tuple(OverModels(column) for column in sample.T.tolist())
            found = Smallest(parts)
            inside += found.low(TAIL) <= 0 <= found.high(TAIL)
            least = min(parts, key=lambda part: part.value)
            naive += least.low(TAIL) <= 0 <= least.high(TAIL)
        assert inside / 3000 >= 0.94
        assert naive < inside


class TestRules:
    @pytest.mark.parametrize(
        ("rule", "low", "high", "verdict"),
        [
            (Rule.GREATER, 0.01, 0.1, HOLDS),
            (Rule.GREATER, -0.01, 0.1, OPEN),
            (Rule.GREATER, -0.1, -0.01, FAILS),
            (Rule.NOT_LESS, -0.01, 0.01, HOLDS),
            (Rule.NOT_LESS, -0.03, 0.01, OPEN),
            (Rule.NOT_LESS, -0.015, -0.005, FAILS),
            (Rule.MAJORITY, 0.51, 0.7, HOLDS),
            (Rule.MAJORITY, 0.4, 0.7, OPEN),
            (Rule.MAJORITY, 0.1, 0.49, FAILS),
            (Rule.MAJORITY, -np.inf, np.inf, OPEN),
        ],
    )
    def test_the_interval_decides(self, rule: Rule, low: float, high: float, verdict: str) -> None:
        assert rule.verdict(low, high) == verdict

    def test_a_sampled_ladder_has_ekfac_twice(self) -> None:
        assert len(claims("clean")) == 9
        texts = [claim.text for claim in claims("paper")]
        assert len(texts) == len(set(texts)) == 12
        assert "EK-FAC (exact eigenvalues) ≫ K-FAC" in texts
        assert "EK-FAC (sampled eigenvalues) ≫ K-FAC" in texts


class TestPlan:
    def test_one_thing_is_changed_at_a_time(self) -> None:
        found = plan("digits", "clean", Settings())
        labels = {axis: [s.label for s in settings] for axis, settings in found.axes.items()}
        assert labels == {
            "width": ["8", "16", "24"], "depth": ["1", "2", "4"], "epochs": ["3", "10", "30"],
        }  # fmt: skip
        assert len(found.work) == 7
        assert all(spec.models == 8 for spec in found.work)
        assert found.axes["depth"][1].spec == found.base
        assert found.base.bregman
        variant = found.axes["width"][0].spec
        assert (variant.variant.width, variant.subsets, variant.bregman) == (8, 40, False)

    def test_a_wide_net_is_varied_where_it_is_narrow(self) -> None:
        found = plan("digits-large", "paper", Settings())
        assert [s.label for s in found.axes["width"]] == ["8", "16", "own"]
        assert [str(s.spec.variant) for s in found.axes["depth"]] == [
            "depth 1, width 16", "width 16", "depth 4, width 16",
        ]  # fmt: skip
        assert [s.label for s in found.axes["epochs"]] == ["10", "33", "100"]
        assert found.axes["epochs"][2].spec == found.axes["width"][1].spec
        assert found.axes["depth"][1].spec == found.axes["width"][1].spec


def tiny() -> StudyProblem:
    wine = load("wine")
    recipe = replace(wine.recipe, architecture=MLP((13, 4, 3)), epochs=10)
    return replace(wine, name="tiny", recipe=recipe)


SMALL = Settings(
    models=2,
    subsets=6,
    variant_subsets=5,
    replicates=200,
    dampings=(1e-2, 1e-1),
    queries=20,
    axes=("width", "epochs"),
)


@pytest.fixture(scope="module")
def claimed(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("claims") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BUILT_IN, "tiny", tiny)
        made = run_claims(["tiny"], out, SMALL, jobs=1)
        write_claims(made, figures=False)
        yield made


class TestTable:
    def test_rows_again_from_the_studies(self, claimed: Claims) -> None:
        """The base study's numbers, from its results and draws by hand."""
        out = claimed.path
        for protocol in ("clean", "paper"):
            folder = out / f"tiny-{protocol}"
            results = json.loads((folder / "results.json").read_text())
            lds = {rung["name"]: rung["lds"] for rung in results["rungs"]}
            draws = {name: np.load(folder / "arrays" / f"draws.{name}.npy") for name in lds}
            own = {
                row.claim: row
                for row in claimed.rows("tiny")
                if (row.protocol, row.scope) == (protocol, "base")
            }
            row = own["GGN ≫ block GGN"]
            assert row.measured == pytest.approx(lds["GGN"] - lds["BlockGGN"])
            wanted = np.quantile(draws["GGN"] - draws["BlockGGN"], [0.025, 0.975])
            assert row.interval == pytest.approx(tuple(wanted))
            pair = next(
                d for d in results["differences"] if (d["a"], d["b"]) == ("GGN", "BlockGGN")
            )
            assert row.interval == pytest.approx(tuple(pair["interval"]))
            last = results["decomposition"]["steps"]
            shares = [s["share_models"] for s in last if s["share"] is not None][-1]
            assert results["truth"]["queries"] == 20
            row = own[
                "The eigenvalue mismatch is the majority of the approximation error, squared norms"
            ]
            assert row.measured == pytest.approx(np.mean(shares))

    def test_every_row_has_its_fields_and_stands_in_the_reports(self, claimed: Claims) -> None:
        table = json.loads((claimed.path / "claims.json").read_text())
        found = table["problems"]["tiny"]["claims"]
        assert len(found) == (9 + 12) * 3
        for row in found:
            assert set(row) == {
                "claim", "protocol", "measured", "interval", "verdict", "detail", "scope", "share",
            }  # fmt: skip
            assert row["verdict"] in (HOLDS, FAILS, OPEN)
        for protocol in ("clean", "paper"):
            folder = claimed.path / f"tiny-{protocol}"
            assert json.loads((folder / "results.json").read_text())["claims"] == found
            page = (folder / "report.html").read_text()
            cells = re.sub(r"\s*</?t[dhr][^>]*>\s*", "|", page)
            assert re.search(r"\|GGN ≫ block GGN\|+clean\|+width\|", cells)
            assert "No claims were tested" not in page

    def test_resumes(self, claimed: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(BUILT_IN, "tiny", tiny)
        monkeypatch.setattr("curvfluence.study.run.climb", None)  # nothing is computed again
        before = {p: p.stat().st_mtime_ns for p in claimed.path.rglob("results.json")}
        again = run_claims(["tiny"], claimed.path, SMALL, jobs=1)
        assert again.table.problems == claimed.table.problems
        assert read_claims(claimed.path).table == again.table
        assert before == {p: p.stat().st_mtime_ns for p in claimed.path.rglob("results.json")}

    def test_pages(self, claimed: Claims, capsys: pytest.CaptureFixture[str]) -> None:
        show_claims(claimed, Console(width=160))
        shown = capsys.readouterr().out
        text = text_of(claimed).markdown("figures")
        assert "✓ holds, ✗ does not hold, ? not resolved" in shown
        for row in claimed.rows("tiny"):
            assert f"| {row.statement} | {row.protocol} | {row.place} |" in text
            assert row.statement in shown
        widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| Claim | p")}
        assert widths == {2, 6}


class TestBesideThePapersCells:
    def test_they_stand_first(self, claimed: Claims, tmp_path: Path) -> None:
        """The cells that are kept in the documentation, and one small problem."""
        parts = sorted((ROOT / "docs" / "table1").glob("*.json"))
        made = again.text_of([claimed.path, *parts])
        page = tmp_path / "both.md"
        made.write(page, "both")
        read = page.read_text()
        own = text_of(claimed).markdown("both")
        for heading in ("# Claims\n", "## In the paper's own setting\n", "## Problems of this "):
            assert read.count(heading) == 1
        assert read.index("own setting") < read.index("## Problems of") < read.index("## tiny")
        assert read.endswith(own[own.index("## Problems of") :])
        assert "(both/lds.svg)" in read
        assert (tmp_path / "both" / "lds.svg").is_file()


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["claims", "digitz"], "'digitz'"),
            (["claims", "wine", "wine"], "each problem once"),
            (["claims", "wine", "--models", "4"], "8 influence models"),
            (["claims", "wine", "--docs", "nowhere/claims.md"], "nowhere is no folder"),
            (["claims", "wine", "--variant-subsets", "2"], "subsets must be at least 3"),
        ],
    )
    def test_before_anything_runs(
        self,
        arguments: list[str],
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["curvfluence", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert said in " ".join(capsys.readouterr().err.split())
        assert not list(tmp_path.iterdir())

    def test_help(self) -> None:
        shown = CliRunner().invoke(app, ["claims", "--help"])
        for option in ("--models", "--subsets", "--docs", "--jobs", "--out"):
            assert option in shown.stdout

    def test_an_axis_that_a_problem_has_not_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A net of one's own has no width to change: the row says so, and is not resolved."""
        own = replace(tiny(), recipe=replace(tiny().recipe, architecture=lambda: MLP((13, 4, 3))()))
        monkeypatch.setitem(BUILT_IN, "tiny", lambda: own)
        found = run_claims(["tiny"], tmp_path / "x", replace(SMALL, axes=("width",)), jobs=1)
        row = next(row for row in found.rows("tiny") if row.scope == "width")
        assert row.verdict == OPEN
        assert "architecture of its own" in row.detail
        with pytest.raises(cf.errors.InputError, match="name each problem once"):
            run_claims([], tmp_path / "y", SMALL)
