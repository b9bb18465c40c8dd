"""What an index is and what it finds, as a person reads it in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from curvfluence.indexing.found import Found
from curvfluence.indexing.index import Index
from curvfluence.report.examples.shown import targets_of
from curvfluence.report.explorer.terminal import both_ends, target_said
from curvfluence.score.scores import Ranked
from curvfluence.study.problems.given import Given


def show_index(index: Index, console: Console) -> None:
    """What it holds, and what its first stage was measured to miss."""
    record = index.record
    held = sum(one.phi.bytes for one in record.shards) / 2**20
    console.print(
        Text("Index", style="bold")
        + Text(
            f"  {index.folder}: {len(index):,} examples by {record.dimension} coordinates "
            f"({held:,.1f} MiB of {record.dtype}), {record.rung}, damping {index.damping}"
        )
    )
    if record.recall is not None:
        console.print(Text("Recall", style="bold") + Text(f"  {record.recall}"))
    for note in record.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def show_found(found: Found, given: Given, queries: Sequence[int], console: Console) -> None:
    """Both ends of each query's list side by side, and how far they can be trusted."""
    for k, q in enumerate(queries):
        target = targets_of(given.problem.queries, [q])[0]
        said = target_said(given, target, "label ", "target ")
        line = f"{given.title}, query {q}{f': {said}' if said else ''}"
        console.print(Text(line, style="bold"))
        helpful, harmful = (
            Ranked(end.indices[k : k + 1], end.values[k : k + 1])
            for end in (found.top, found.bottom)
        )
        both_ends(given, helpful, harmful, console.width).show(console)
        console.print()
    took = found.took
    console.print(
        Text(
            f"{found.rung}; influence on the {found.measurement} in {found.unit}, exact for "
            f"{found.candidates:,} candidates at either end of {found.searched:,} examples. "
            f"Seconds: {took.encoding:.3f} for gradients and solves, {took.searching:.3f} for the "
            f"search, {took.scoring:.3f} for exact scores.",
            style="dim",
        )
    )
    if found.recall is not None:
        console.print(Text("Recall", style="bold") + Text(f"  {found.recall}"))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="yellow"))
