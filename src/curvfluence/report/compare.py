"""Studies side by side: LDS by rung, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table as Columns

from curvfluence.errors import InputError
from curvfluence.report.axes import Point, rows
from curvfluence.report.figure import Figure, render
from curvfluence.report.html import MARK, render_page, write_page
from curvfluence.report.measured import flat
from curvfluence.report.style import INK, series
from curvfluence.report.table import Table
from curvfluence.study.finished import Finished, read_study
from curvfluence.study.words import NONE, dampings, interval, number, plain


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two studies or more, each with a label of its own."""

    studies: tuple[Finished, ...]
    labels: tuple[str, ...]

    @property
    def rungs(self) -> list[tuple[str, list[dict[str, Any] | None]]]:
        """Every rung that any study has, from the top down, with what each study says of it."""
        names = dict.fromkeys(rung["full_name"] for study in self.studies for rung in study.rungs)
        found = [{rung["full_name"]: rung for rung in study.rungs} for study in self.studies]
        return [(name, [rungs.get(name) for rungs in found]) for name in names]

    @property
    def lds(self) -> Table:
        """LDS and interval of each rung, a column for each study."""
        return Table(
            "LDS by rung, with 95% interval",
            ("Rung", *self.labels),
            (
                *((name, *map(_cell, found)) for name, found in self.rungs),
                ("best that noise allows", *map(_best, self.studies)),
            ),
            open=True,
            text=tuple(range(1, len(self.studies) + 1)),
        )

    @property
    def dampings(self) -> Table:
        """The damping that each rung was given."""
        rows = tuple(
            (name, *(NONE if rung is None else dampings(rung["dampings"]) for rung in found))
            for name, found in self.rungs
        )
        return Table("The chosen λ", ("Rung", *self.labels), rows)

    @property
    def settings(self) -> Table:
        """What the studies do not have in common."""
        seen = [_settings(study) for study in self.studies]
        keys = dict.fromkeys(key for settings in seen for key in settings)
        differing = [key for key in keys if len({s.get(key, "none") for s in seen}) > 1]
        return Table(
            "Where the studies differ",
            ("Setting", *self.labels),
            tuple((key, *(s.get(key, "none") for s in seen)) for key in differing),
            open=True,
            text=tuple(range(1, len(seen) + 1)),
        )

    def show(self, console: Console) -> None:
        """Both tables on a terminal."""
        for table in (self.lds, self.dampings, self.settings):
            if not table.rows:
                continue
            columns = Columns(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for k, name in enumerate(table.columns):
                columns.add_column(name, style="bold" if k == 0 else None)
            for row in table.rows:
                columns.add_row(*row)
            console.print(columns)
            console.print()


def compare_studies(folders: Sequence[Path]) -> Comparison:
    """Read the studies in `folders`.

    Errors: `InputError` for fewer than two folders, the same folder twice, or a folder that holds
    no finished study of this version.
    """
    if len(folders) < 2:
        raise InputError(f"name two studies or more to compare; seen {len(folders)}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("the same folder is named twice: name different studies")
    studies = tuple(read_study(folder) for folder in folders)
    return Comparison(studies, _labels(folders))


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """One page like a report's. Errors: `InputError` where `out` is anybody else's file."""
    if out.suffix != ".html":
        raise InputError(f"--out names the page to write, which ends in .html; seen {out}")
    if out.is_dir() or (out.is_file() and MARK not in out.read_text(errors="replace")[:200]):
        raise InputError(f"{out} exists and is no page of curvfluence: name another file")
    figure = _figure(comparison)
    page = render_page(
        "compare.html",
        f"{len(comparison.studies)} studies side by side",
        comparison=comparison,
        figure_shown=figure,
        drawn={figure.name: render(figure)},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, page)
    return out


def _figure(comparison: Comparison) -> Figure:
    look = series(len(comparison.studies))
    found = comparison.rungs
    best = [max(study.ladder, key=lambda rung: rung["lds"]) for study in comparison.studies]
    reading = "Highest: " + "; ".join(
        f"{rung['full_name']} at {number(rung['lds'])} in {label}"
        for rung, label in zip(best, comparison.labels, strict=True)
    )
    count = len(look)
    gap = min(0.24, 0.7 / count)

    def draw(canvas: Canvas) -> None:
        axes = canvas.subplots()
        points = [
            [
                Point(rung["lds"], rung["interval"], look[k], shift=(k - (count - 1) / 2) * gap)
                for k, rung in enumerate(each)
                if rung is not None
            ]
            for _, each in found
        ]
        rows(axes, [name for name, _ in found], points)
        lowest = min(rung["interval"][0] for _, each in found for rung in each if rung)
        axes.set_xlim(min(0.0, lowest), 1.02)
        axes.set_xlabel("LDS, with 95% interval")
        handles = [
            Line2D(
                [], [], color=mine.colour, marker=mine.marker, ms=4.6, mec=INK, mew=0.5, label=name
            )
            for mine, name in zip(look, comparison.labels, strict=True)
        ]
        canvas.legend(handles=handles, loc="outside lower left", ncols=1)

    return Figure(
        name="compare",
        title="LDS by rung, side by side",
        reading=f"{reading}.",
        description="Points with 95% intervals for each rung, one for each study. " + reading,
        columns=comparison.lds.columns,
        rows=comparison.lds.rows,
        draw=draw,
        height=0.8 + (0.16 + 0.1 * count) * len(found) + 0.17 * count,
    )


def _labels(folders: Sequence[Path]) -> tuple[str, ...]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(str(folder) for folder in folders)


def _cell(rung: dict[str, Any] | None) -> str:
    if rung is None:
        return NONE
    return f"{number(rung['lds'])} ({interval(rung['interval'])})"


def _best(study: Finished) -> str:
    return number(study.results["truth"].get("best_lds", {}).get("matched"), 2)


def _settings(study: Finished) -> dict[str, str]:
    results = study.results
    truth = {k: results["truth"].get(k) for k in ("train", "queries", "measurement")}
    versions = {k: v for k, v in results["environment"].items() if k not in ("hashes", "command")}
    hashes = {f"{k} hash": v for k, v in results["environment"].get("hashes", {}).items()}
    return {
        k: plain(v) for k, v in {**flat(results["spec"]), **truth, **versions, **hashes}.items()
    }
