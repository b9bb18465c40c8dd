"""How a sweep was measured: every setting and version, and what repeats it."""

from __future__ import annotations

import shlex
from typing import Any

from curvfluence.errors import InputError
from curvfluence.report.measured import argument, flat
from curvfluence.report.sweep.grid import Grid, worded
from curvfluence.report.table import Table
from curvfluence.study.spec import StudySpec
from curvfluence.study.sweep import STUDY_AXES
from curvfluence.study.variant import Variant
from curvfluence.study.words import plain

LONG = 60  # characters up to which the different values of a setting are listed


def measured(grid: Grid) -> tuple[Table, ...]:
    """The axes; every setting, version and hash, and where the studies differ in them."""
    every = [results for _, results in grid.cells]
    apart = ("hashes", "command")
    return (
        _pairs("Axes", [{worded(k): values for k, values in grid.given.items()}]),
        _pairs("Settings", [flat(r["spec"]) for r in every]),
        _pairs("Training", [flat(r["recipe"]) for r in every]),
        _pairs("Truth", [_truth(r) for r in every]),
        _pairs(
            "Software and machine",
            [{k: v for k, v in r["environment"].items() if k not in apart} for r in every],
        ),
        _pairs(
            "Hashes",
            [{**r["environment"].get("hashes", {}), "code": _made_by(r)} for r in every],
        ),
    )


def _truth(results: dict[str, Any]) -> dict[str, Any]:
    kept = ("subsets", "alpha", "train", "queries", "models", "orders", "retrainings")
    found = {name: results["truth"].get(name) for name in (*kept, "measurement", "unit")}
    return {name: value for name, value in found.items() if value is not None}


def _made_by(results: dict[str, Any]) -> Any:
    return results.get("made_by", {}).get("code")


def _pairs(caption: str, every: list[dict[str, Any]]) -> Table:
    """Each setting with its value, or with its different values over the studies."""
    keys = dict.fromkeys(key for settings in every for key in settings)
    rows: list[tuple[str, str]] = []
    for key in keys:
        seen = list(dict.fromkeys(plain(settings.get(key)) for settings in every))
        text = " | ".join(seen)
        if len(seen) > 1 and (len(text) > LONG or "\n" in text):
            text = f"{len(seen)} different values, in results.json of each study"
        rows.append((worded(key), text))
    return Table(caption, ("", "value"), tuple(rows), open=True)


def command(grid: Grid) -> str:
    """The command that repeats the sweep, or "" where the library alone has its settings."""
    spec: dict[str, Any] = grid.cells[0][1]["spec"]
    axes = _all_axes(grid)
    words = ["curvfluence", "sweep", spec["problem"]]
    for name, values in axes.items():
        words += [f"--{name.replace('_', '-')}", ",".join(f"{value!r}" for value in values)]
    fishers = list(spec.get("fishers", []))
    words += ["--subsets", str(spec["subsets"]), "--models", str(spec["models"])]
    words += ["--protocol", spec.get("protocol", "clean"), "--fisher", ",".join(fishers)]
    cell = {name: values[0] for name, values in axes.items()}
    own = {name: cell.pop(name) for name in STUDY_AXES if name in cell}
    try:
        same = StudySpec(
            spec["problem"],
            spec["subsets"],
            models=spec["models"],
            protocol=spec.get("protocol", "clean"),
            fishers=tuple(fishers),
            variant=Variant(**cell),
            bregman=False,
            **own,
        )
    except InputError:
        return ""
    seen = {**spec, "variant": spec.get("variant", {})}
    first = grid.cells[0][0]
    same_cell = all(same.as_json().get(k) == v for k, v in seen.items() if k not in first)
    return shlex.join(words) if same_cell else ""


def _all_axes(grid: Grid) -> dict[str, list[Any]]:
    """The axes of the grid, and what a command must name as axes of one value."""
    spec: dict[str, Any] = grid.cells[0][1]["spec"]
    fixed = {**spec.get("variant", {}), "seed": spec["seed"], "alpha": spec["alpha"]}
    plain_ones = {"seed": 0, "alpha": 0.5}
    more = {
        name: [value]
        for name, value in fixed.items()
        if name not in grid.given and plain_ones.get(name) != value
    }
    return {**grid.given, **more}


def library_call(grid: Grid) -> str:
    """The call that repeats the sweep, whatever started it."""
    spec: dict[str, Any] = grid.cells[0][1]["spec"]
    settings = {key: value for key, value in spec.items() if key not in grid.given}
    fixed = {k: v for k, v in spec.get("variant", {}).items() if k not in grid.given}
    settings = {**settings, "variant": fixed}
    kept = {key: value for key, value in settings.items() if value not in ([], {}, None)}
    lines = "".join(f"    {key}={argument(value)},\n" for key, value in kept.items())
    axes = "".join(f"    {name!r}: {values!r},\n" for name, values in grid.given.items())
    start = "from pathlib import Path\n\nfrom curvfluence.study import StudySpec\n"
    start += "from curvfluence.study.sweep import run_sweep\n"
    if fixed:
        start += "from curvfluence.study.variant import Variant\n"
    out = f"runs/{spec['problem'].rsplit('/', 1)[-1].removesuffix('.py')}-sweep"
    base = f"base = StudySpec(\n{lines})\naxes = {{\n{axes}}}\n"
    return f"{start}\n{base}run_sweep(base, axes, Path({out!r}))"
