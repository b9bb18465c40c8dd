"""How studies were measured: every setting, version and hash, of one study or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from curvfluence.report.parts.table import Table
from curvfluence.store.records import as_json
from curvfluence.study.results import Results
from curvfluence.study.words import plain

LONG = 60  # characters up to which the different values of a setting are listed


def settings(study: Results) -> dict[str, dict[str, Any]]:
    """Everything that went into a study, by caption and name."""
    truth = study.truth
    return {
        "Settings": flat(as_json(study.spec)),
        "Training": flat(study.recipe),
        "Truth": {
            "training examples": truth.train,
            "kept by a subset": truth.kept,
            "queries asked": truth.queries,
            "retrainings": truth.retrainings,
            "measurement": truth.measurement,
            "unit": truth.unit,
            "lower is better": truth.lower_is_better,
        },
        "Software and machine": study.environment.versions,
        "Hashes": {
            f"{name} hash": value
            for name, value in {**study.environment.hashes, "code": study.made_by.code}.items()
        },
    }


def settings_tables(studies: Sequence[Results]) -> tuple[Table, ...]:
    """Each setting with its value, or with its different values over the studies."""
    every = [settings(study) for study in studies]
    return tuple(pairs(caption, [one[caption] for one in every]) for caption in every[0])


def pairs(caption: str, every: Sequence[Mapping[str, Any]]) -> Table:
    """The value of each name, or its different values."""
    names = dict.fromkeys(name for values in every for name in values)
    rows = tuple(
        (name.replace("_", " "), _values([plain(values.get(name)) for values in every]))
        for name in names
    )
    return Table(caption, ("", "value"), rows, open=True)


def _values(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    text = " | ".join(different)
    if len(different) > 1 and (len(text) > LONG or "\n" in text):
        return f"{len(different)} different values, in results.json of each study"
    return text


def differing(studies: Sequence[Results], labels: Sequence[str]) -> Table:
    """The settings that the studies do not have in common."""
    every = [
        {name: plain(value) for part in settings(study).values() for name, value in part.items()}
        for study in studies
    ]
    names = dict.fromkeys(name for values in every for name in values)
    lines = ((name, *(values.get(name, "none") for values in every)) for name in names)
    rows = tuple(line for line in lines if len(set(line[1:])) > 1)
    return Table("Where the studies differ", ("Setting", *labels), rows, True, tuple(labels))


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings on one level: optimizer lr, optimizer momentum."""
    level: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner: Mapping[str, Any] = value
            level.update(flat(inner, f"{before}{key} "))
        else:
            level[before if key == "kind" else before + key] = value
    return {key.strip(): value for key, value in level.items()}
