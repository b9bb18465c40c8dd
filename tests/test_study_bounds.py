"""`study --bounds`: what is proven of each rung's scores, in results, table, terminal and page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import curvfluence as cf
from curvfluence.cli import app
from curvfluence.report import write_report
from curvfluence.report.parts.repeat import study_command
from curvfluence.report.terminal import show_study
from curvfluence.runtime import journal
from curvfluence.store import records
from curvfluence.study import StudySpec, load, proven, run_study
from curvfluence.study.proven import prove
from curvfluence.study.results import ProvenError
from curvfluence.study.study import Study
from tests import oracles

pytestmark = pytest.mark.xdist_group("study_bounds")  # its fixture is made once

SPEC = StudySpec(
    "wine",
    subsets=6,
    models=2,
    replicates=200,
    dampings=(1e-3, 1e-2, 1e-1),
    rungs=("Hessian", "GGN", "EKFAC", "Identity"),
    bregman=False,
    costs=False,
    hybrids=False,
    spectra=False,
    bounds=True,
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_study(SPEC, tmp_path_factory.mktemp("bounds") / "wine")


def test_no_score_is_further_from_the_dense_ggn_s(study: Study) -> None:
    """Of the first model, from its weights alone: (1/N) g_qᵀ (GGN + λ)⁻¹ g_n in float64."""
    arrays = study.path / "arrays"
    problem = load("wine")
    weights = {
        name: torch.from_numpy(np.load(arrays / f"weights.{name}.npy")[0])
        for name, _ in problem.recipe.build(0).named_parameters()
    }
    exact = cf.Problem(
        problem.recipe.build(0, torch.float64).eval(),
        problem.recipe.loss,
        problem.train.to(torch.device("cpu"), torch.float64),
        problem.queries.to(torch.device("cpu"), torch.float64),
        measurement=problem.measurement,
        weight_decay=problem.recipe.weight_decay,
        weights={name: value.double() for name, value in weights.items()},
    )
    ggn, decay = oracles.dense_ggn(exact), exact.decay
    g_qp, g_np = oracles.query_gradients(exact), oracles.example_gradients(exact)
    halves = np.load(arrays / "query_halves.npy")
    for rung in study.results.rungs:
        if rung.name not in ("GGN", "EKFAC"):
            assert rung.proven is None  # another matrix, or none
            continue
        found = torch.from_numpy(np.load(arrays / f"scores.{rung.name}.npy")[0]).double()
        wanted = torch.stack(
            [
                g @ torch.linalg.solve(ggn + torch.diag(decay) + at * torch.eye(len(ggn)), g_np.T)
                for g, at in zip(g_qp, np.where(halves, *rung.dampings), strict=True)
            ]
        ) / len(g_np)
        error = (found - wanted).abs()
        assert rung.proven is not None
        assert float(error.max()) <= rung.proven.largest
        assert float(error.median()) <= rung.proven.median <= rung.proven.largest
        right = (found.sign() == wanted.sign()).double().mean()
        assert rung.proven.signs <= float(right)
        if rung.name == "GGN":  # solved in float32, and proven to be nearly that
            assert rung.proven.largest <= 1e-4 * float(wanted.abs().max())
            assert rung.proven.signs > 0.9
    assert study.results.bounds_missing is None
    assert study.results.seconds is not None
    assert study.results.seconds.bounds > 0


def test_it_goes_on_within_them(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each work is long enough to be kept; killed in the second rung's, the first's stand."""
    monkeypatch.setattr(journal, "SHORT", 0.0)
    made, seen = proven.error_bounds, list[str]()

    def dying(problem: cf.Problem, curvature: cf.Curvature, *rest: Any) -> Any:
        seen.append(curvature.rung)
        if curvature.rung == "EKFAC" and seen.count("EKFAC") == 1:
            made(problem, curvature, *rest)
            raise KeyboardInterrupt
        return made(problem, curvature, *rest)

    monkeypatch.setattr(proven, "error_bounds", dying)
    with pytest.raises(KeyboardInterrupt):
        run_study(SPEC, tmp_path / "wine")
    of_ggn = seen.count("GGN")
    again = run_study(SPEC, tmp_path / "wine")
    assert seen.count("GGN") == of_ggn > 0
    assert [rung.proven for rung in again.results.rungs] == [
        rung.proven for rung in study.results.rungs
    ]


def test_they_are_shown_and_can_be_repeated(study: Study) -> None:
    console = Console(record=True, width=120)
    show_study(study, console)
    text = console.export_text()
    assert "signs proven" in text
    assert "Proven at the first model" in text
    assert "signs proven" in write_report(study.path, figures=False).path.read_text()
    plain = StudySpec("wine", subsets=6, bounds=True).settings
    assert study_command(plain) == "curvfluence study wine --subsets 6 --bounds"


def test_a_study_without_them_keeps_its_key(tmp_path: Path) -> None:
    """So what was made before they were there is found again; and says that none were asked for."""
    words = ["study", "wine", "--subsets", "3", "--models", "1", "--rungs", "Diagonal"]
    made = CliRunner().invoke(app, [*words, "--no-bregman", "--out", str(tmp_path / "wine")])
    assert made.exit_code == 0, made.output
    assert '"bounds"' not in (tmp_path / "wine/study.json").read_text()
    assert "bounds on errors" not in (tmp_path / "wine/report.html").read_text()


def test_no_rung_that_stands_for_the_ggn_says_so() -> None:
    """Instead of a study that ends there: every other number is made."""
    x, y = torch.randn(5, 3), torch.arange(5)
    nothing: Any = None  # it looks at none of them
    few = cf.Problem(torch.nn.Linear(3, 5), cf.CrossEntropy(), (x, y), (x, y))
    found = prove(SPEC, few, (), nothing, nothing, nothing)
    assert found.missing == "none of the rungs stands for the GGN"


def test_a_bound_that_is_none() -> None:
    """Infinite where the GGN drowns in float64's rounding: no number, and shown as none."""
    none = ProvenError(None, None, 0.0, 3, 0.5)
    assert records.as_json(none)["largest"] is None
    assert proven._finite(torch.tensor(torch.inf)) is None  # pyright: ignore[reportPrivateUsage]
