"""docs/benchmarks.md, made from the records: no number in it is written by hand."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from conditions import OURS, paired, verdicts
from floor import fit_operations, pairwise_operations
from jobs import EXACT
from question import Task
from record import RIGHT, Record, middle
from workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
COVERAGE = HERE / "kinds.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `make bench` from `benchmarks/results.json`; how it is measured and how to run a part is in
[benchmarks/README.md](../benchmarks/README.md). One thread, CPU seconds, medians. *Cold* is the
first answer of a process after the imports, fit and scores; the other columns are those after it
(of answers above 20 seconds the first). *Fit* holds the
factors, decompositions and eigenvalues, *pairwise* the gradients of queries and examples and their
scores. *Error* is the relative Frobenius error of the scores against a plain float64 reference of
the same definition; none for sampled labels. A ratio is a library's seconds over curvfluence's in
the same round. *Of sgemm* is operations by formula over what sgemm does in that time, fit /
pairwise; above 100% an earlier stage did part of it, or scores at low rank took fewer. All are
restricted to the weights and biases of Linear and Conv2d layers, a layer's bias a column of its
weight, damping exact.
"""


def write_page(records: list[Record]) -> None:
    parts = [HEAD]
    for name in WORKLOADS:
        rows = [one for one in records if one.workload == name]
        if rows:
            parts.append(_workload(name, rows))
    parts += [_computes(), _declined(records), _kinds(), _conditions(records), _setting(records)]
    PAGE.write_text("\n".join(parts))


def _conditions(records: list[Record]) -> str:
    said = {True: "yes", False: "no", None: "–"}
    rows = [[v.condition, v.measured, said[v.met]] for v in verdicts(records)]
    return "## What it must show\n\n" + _table(["condition", "measured", "met"], rows)


def _workload(name: str, records: list[Record]) -> str:
    workload = WORKLOADS[name]
    parts = [f"## {name}: {workload.title}\n\nλ = {workload.damping:g}. `make bench ONLY={name}`\n"]
    for examples, queries in sorted({(r.examples, r.queries) for r in records}):
        rows = [
            _row(one, records)
            for one in records
            if (one.examples, one.queries) == (examples, queries) and one.ran
        ]
        head = ["rung", "Fisher", "library", "fit", "pairwise", "both", "ratio", "cold", "ratio"]
        head += ["of sgemm"]
        head += ["peak MB", "error", "note"]
        parts.append(f"{examples} examples, {queries} queries:\n\n" + _table(head, rows))
    return "\n".join(parts)


def _row(record: Record, records: list[Record]) -> list[str]:
    asked = ("workload", "rung", "fisher", "examples", "queries")
    same = {name: getattr(record, name) for name in asked}
    ours = [one for one in records if one.matches(library=OURS, **same) and one.ran]
    whole = "total_seconds" if record.total_seconds is not None else "fit_seconds"
    beside = ours[0] if ours and record.library != OURS else None
    ratio = None if beside is None else paired(record, beside, whole)
    cold = (
        None if beside is None or whole == "fit_seconds" else paired(record, beside, "cold_seconds")
    )
    note = record.note
    if record.error is not None and not record.right:
        note = "; ".join(filter(None, ("**wrong**", note)))
    if record.own_error is not None:
        note = "; ".join(filter(None, (note, f"{record.own_error:.1e} from its own definition")))
    return [
        record.rung,
        record.fisher,
        record.library,
        _seconds(record.fit_seconds),
        _seconds(record.pairwise_seconds),
        _seconds(record.total_seconds),
        "" if ratio is None else f"{ratio:.2f}",
        _seconds(middle([one.cold_seconds for one in record.rounds])),
        "" if cold is None else f"{cold:.2f}",
        _share(record),
        "" if record.peak_bytes is None else f"{record.peak_bytes / 2**20:.0f}",
        "" if record.error is None else f"{record.error:.1e}",
        note,
    ]


def _share(record: Record) -> str:
    """Operations needed over seconds × sgemm: fit / pairwise; none for one that needs fewer."""
    if record.rung == EXACT:
        return ""
    if record.library == "pyDVL":  # one column where the formula counts one for every class
        return ""
    task = Task(
        record.workload, record.rung, record.fisher, record.examples, record.queries, record.damping
    )
    shares: list[str] = []
    for needed, stage in ((fit_operations(task), "fit"), (pairwise_operations(task), "pairwise")):
        seconds = getattr(record, f"{stage}_seconds")
        if seconds is not None:
            rates = [one.sgemm for one in record.rounds]
            shares.append(f"{needed / (seconds * sorted(rates)[len(rates) // 2]):.0%}")
    return " / ".join(shares)


def _declined(records: list[Record]) -> str:
    rows = [
        [one.workload, one.rung, one.fisher, f"{one.library} {one.version}", f"`{one.note}`"]
        for one in records
        if not one.ran
    ]
    said = "## What a library declined, and with which words\n\n"
    return said + _table(["", "rung", "Fisher", "library", "message"], rows)


def _computes() -> str:
    """The docstrings of the libraries' files, which cannot all be imported in one environment."""
    files = [HERE / "ours.py", *sorted((HERE / "peers").glob("[a-z]*.py"))]
    said = [ast.get_docstring(ast.parse(file.read_text())) or "" for file in files]
    return (
        "## What each library computes\n\n"
        + "\n".join("- " + text.replace("\n\n", " ").replace("\n", " ") for text in said)
        + "\n"
    )


def _kinds() -> str:
    said = (
        "## Other layers\n\nEK-FAC scores of a small net with such a layer, every parameter "
        "trainable, at a λ so large that λ N I must be g_qᵀ g_n over the parameters that count "
        "(`python benchmarks/kinds.py LIBRARY KIND`):\n\n"
    )
    if not COVERAGE.exists():
        return said + "not measured\n"
    found: dict[str, dict[str, str]] = json.loads(COVERAGE.read_text())
    names = list(next(iter(found.values())))
    rows = [[kind, *(answers[name] for name in names)] for kind, answers in found.items()]
    return said + _table(["layer", *names], rows)


def _setting(records: list[Record]) -> str:
    versions = sorted({(one.library, one.version) for one in records if one.version})
    made_with = sorted({one.torch for one in records if one.torch})
    counts = [len(one.rounds) for one in records if one.ran] or [0]
    lines = [
        "## Setting\n",
        f"- {', '.join(f'{name} {version}' for name, version in versions)}; "
        f"torch {', '.join(made_with)}",
        *_machines(records),
        f"- {min(counts)} to {max(counts)} rounds a job; a ratio is that of pairs within a round, "
        "and is not given where one of the two has fewer rounds",
        f"- sgemm is the faster of torch's BLAS and NumPy's; with ours: {_blas(records)}",
        f"- scores count as right up to a relative error of {RIGHT:g}",
        "- each record of `benchmarks/results.json` holds the command that measures it alone\n",
    ]
    return "\n".join(lines)


def _machines(records: list[Record]) -> list[str]:
    """Which workloads were measured on which processor, and when."""
    found: list[str] = []
    every = {one.workload for one in records}
    for cpu in sorted({one.cpu for one in records}):
        there = [one for one in records if one.cpu == cpu]
        names = sorted({one.workload for one in there})
        which = "" if len(names) == len(every) else f"{', '.join(names)}: "
        found.append(
            f"- {which}{cpu}, measured {', '.join(sorted({one.measured for one in there}))}"
        )
    return found


def _blas(records: list[Record]) -> str:
    """Both rates, in the last round of each workload."""
    ours = [one for one in records if one.library == OURS and one.rounds]
    said = {one.workload: one.rounds[-1].blas for one in ours if one.rounds[-1].blas}
    return "; ".join(f"{name} {blas}" for name, blas in said.items())


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in lines)
        + "\n"
    )
