"""Sweeps: what their studies share, and where they go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

import curvfluence as cf
from curvfluence.study import Results, StudySpec, run_study
from curvfluence.study.cells import batches
from curvfluence.study.climb import climb
from curvfluence.study.run import run_together
from curvfluence.study.sweep import cell_folder, run_sweep
from curvfluence.study.variant import Variant


def timeless(results: Results) -> object:
    """Results less what a clock or the system says."""
    measured = {"fit_seconds", "score_seconds", "peak_bytes", "pareto", "seconds"}
    drop = measured | {"study_seconds", "report_seconds", "threads"}

    def clean(value: object) -> object:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in drop}
        return [clean(v) for v in value] if isinstance(value, list | tuple) else value

    return clean(msgspec.to_builtins(results))


class TestSweep:
    BASE = StudySpec("wine", subsets=4, models=2, replicates=200, dampings=(1e-3, 1e-1))

    def test_table(self, tmp_path: Path) -> None:
        axes = {"depth": [1, 2], "epochs": [2]}
        base = replace(self.BASE, fishers=("empirical",))
        found = run_sweep(base, axes, tmp_path, jobs=1)
        table = pq.read_table(tmp_path / "table.parquet").to_pylist()
        assert {row["depth"] for row in table} == {1, 2}
        ladder = [row["rung"] for row in table if row["depth"] == 1 and row["kind"] == "rung"]
        assert ladder == list(base.plan.rungs(0))
        for swept in found.studies:
            spec = replace(base, variant=Variant(**swept.cell))
            own = run_study(spec, tmp_path / f"own{swept.cell['depth']}")
            assert [r.lds for r in own.results.rungs] == [r.lds for r in swept.results.rungs]
        steps = pq.read_table(tmp_path / "steps.parquet").to_pylist()
        assert {row["fisher"] for row in steps} == {"type2", "empirical"}

    def test_cells_of_other_alphas_share_models_and_ladder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The climb runs once for all alphas, and every number is that of a study alone."""
        climbs: list[float] = []

        def counted(spec: StudySpec, *arguments: object) -> object:
            climbs.append(spec.alpha)
            return climb(spec, *arguments)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr("curvfluence.study.run.climb", counted)
        axes = {"alpha": [0.5, 0.7, 0.9]}
        found = run_sweep(self.BASE, axes, tmp_path / "sweep", jobs=1)
        assert climbs == [0.5]
        for swept in found.studies:
            cell = swept.cell
            own = run_study(replace(self.BASE, **cell), tmp_path / f"{cell}")
            assert timeless(own.results) == timeless(swept.results)
            folder = cell_folder(tmp_path / "sweep", replace(self.BASE, **cell))
            for path in (own.path / "arrays").iterdir():
                assert path.read_bytes() == (folder / "arrays" / path.name).read_bytes(), path.name

    def test_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        """Cells that are there already are read back, in batches with others too."""
        axes = {"alpha": [0.5, 0.7]}
        first = run_sweep(self.BASE, {"alpha": [0.7]}, tmp_path, jobs=1).studies[0].results
        time_of = next(tmp_path.glob("cells/*/results.json")).stat().st_mtime_ns
        found = run_sweep(self.BASE, axes, tmp_path, jobs=2)
        assert found.studies[1].results == first
        folder = cell_folder(tmp_path, replace(self.BASE, alpha=0.7))
        assert (folder / "results.json").stat().st_mtime_ns == time_of
        again = run_sweep(self.BASE, axes, tmp_path, jobs=2)
        assert [one.results for one in again.studies] == [one.results for one in found.studies]

    def test_batches_leave_no_process_idle(self) -> None:
        alphas = [replace(self.BASE, alpha=alpha) for alpha in (0.5, 0.6, 0.7)]
        assert batches(alphas, 1) == [(0, 1, 2)]
        assert batches(alphas, 2) == [(0, 2), (1,)]
        other = [replace(spec, seed=1) for spec in alphas]
        assert batches([*alphas, *other], 2) == [(0, 1, 2), (3, 4, 5)]
        assert sorted(batches([*alphas, *other], 4)) == [(0, 2), (1,), (3, 5), (4,)]

    def test_only_alpha_is_shared(self, tmp_path: Path) -> None:
        specs = [self.BASE, replace(self.BASE, seed=1)]
        with pytest.raises(cf.errors.InputError, match="alpha alone"):
            run_together(specs, [tmp_path / "a", tmp_path / "b"])

    @pytest.mark.parametrize(
        ("axes", "said"),
        [
            ({"depht": [1]}, "no axis 'depht'"),
            ({"depth": []}, "different values"),
            ({"depth": [1, 1]}, "different values"),
            ({"depth": [1], "width": [16, 4000]}, "impossible cell.*4000"),
            ({"alpha": [0.5, 1.5]}, "impossible cell"),
        ],
    )
    def test_refused_before_anything_runs(self, axes: dict, said: str, tmp_path: Path) -> None:
        with pytest.raises(cf.errors.InputError, match=said):
            run_sweep(self.BASE, axes, tmp_path / "sweep")
        assert not (tmp_path / "sweep").exists()
