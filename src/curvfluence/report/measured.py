"""How a study was measured: every setting, version and hash, and what repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curvfluence.report.table import Table
from curvfluence.study.finished import Finished
from curvfluence.study.words import number, plain


def measured(study: Finished) -> tuple[Table, ...]:
    """Every setting, version and hash."""
    results = study.results
    environment = {
        k: v for k, v in results["environment"].items() if k not in ("hashes", "command")
    }
    hashes = {
        **results["environment"].get("hashes", {}),
        "code": results.get("made_by", {}).get("code"),
    }
    spent = {**results.get("seconds", {}), "study": results.get("study_seconds")}
    truth = {
        k: v
        for k, v in results["truth"].items()
        if not isinstance(v, dict) and k not in ("notes", "seconds")
    }
    return (
        _pairs("Settings", {"protocol": results["protocol"], **flat(results["spec"])}),
        _pairs("Training", flat(results["recipe"])),
        _pairs("Truth", truth),
        _pairs("Software and machine", environment),
        _pairs("Hashes", hashes),
        Table(
            "Seconds",
            ("stage", "seconds"),
            tuple((k, number(v, 1)) for k, v in spent.items() if v is not None),
            open=True,
        ),
        _coverage(study),
    )


def _coverage(study: Finished) -> Table:
    rows = tuple(
        (rung["full_name"], line["block"], line["rule"], f"{line['count']:,}")
        for rung in study.rungs
        for line in rung.get("coverage") or []
    )
    return Table(
        "What covers which parameters", ("Rung", "block", "rule", "parameters"), rows, text=(1, 2)
    )


def _pairs(caption: str, values: Mapping[str, Any]) -> Table:
    rows = tuple((key.replace("_", " "), plain(value)) for key, value in values.items())
    return Table(caption, ("", "value"), rows, open=True)


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings on one level: optimizer lr, optimizer momentum."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner: Mapping[str, Any] = value
            found.update(flat(inner, f"{before}{key} "))
        else:
            found[before if key == "kind" else before + key] = value
    return {key.strip(): value for key, value in found.items()}


def library_call(spec: Mapping[str, Any]) -> str:
    """The call that repeats the study, whatever started it."""
    settings = {key: value for key, value in spec.items() if value not in ([], {}, None)}
    lines = "".join(f"    {key}={argument(value)},\n" for key, value in settings.items())
    start = "from curvfluence.study import StudySpec, run_study\n"
    if "variant" in settings:
        start += "from curvfluence.study.variant import Variant\n"
    return f"{start}\nrun_study(StudySpec(\n{lines}))"


def argument(value: object) -> str:
    """A setting as Python reads it."""
    if isinstance(value, Mapping):
        changes: Mapping[str, object] = value
        return f"Variant({', '.join(f'{k}={v!r}' for k, v in changes.items())})"
    if isinstance(value, list):
        items: list[object] = value
        return repr(tuple(items))
    return repr(value)
