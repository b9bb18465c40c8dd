"""The forecast of one rung, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from curvfluence.curvature.coverage import CoverageLine
from curvfluence.errors import InputError
from curvfluence.runtime.stage import Stage


@dataclass(frozen=True)
class Plan:
    """The forecast of one rung on one problem, for scores of all queries.

    Seconds rest on one timed pass over a few examples and the measured rates of matrix products
    and eigendecompositions, on this machine with its present threads; expect them within a factor
    of two. `fits` says whether `bytes` is within this machine's memory, `cheaper` names the next
    rung down that is.
    """

    rung: str
    stages: tuple[Stage, ...]
    coverage: tuple[CoverageLine, ...]
    memory: int
    reason: str | None = None  # why the rung is refused, whatever the memory
    cheaper: str | None = None

    @property
    def operations(self) -> float:
        return sum(stage.operations for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def bytes(self) -> float:
        """At the peak: stages release what later ones do not need."""
        return max((stage.bytes for stage in self.stages), default=0.0)

    @property
    def fits(self) -> bool:
        return self.reason is None and self.bytes <= self.memory

    def require(self) -> None:
        """Raise `InputError` where the rung cannot be done here, naming the next that can."""
        if self.fits:
            return
        why = self.reason or (
            f"it needs about {self.bytes / 2**30:.1f} GiB, this machine has "
            f"{self.memory / 2**30:.1f}"
        )
        what = f"{self.cheaper} is the next cheaper rung that fits" if self.cheaper else "none fits"
        raise InputError(f"{self.rung} cannot be done here: {why}. {what}")

    def __str__(self) -> str:
        rows = [f"{self.rung}: {self.seconds:.2g} s, {self.bytes / 2**20:.4g} MiB at the peak"]
        rows += [
            f"  {s.name:<28} {s.seconds:>9.3g} s {s.operations:>10.3g} operations "
            f"{s.bytes / 2**20:>10.4g} MiB"
            for s in self.stages
        ]
        rows += [f"  {r.rule}: {', '.join(r.parameters)} ({r.count:,})" for r in self.coverage]
        if not self.fits:
            rows.append(f"  does not fit: {self.reason or 'memory'}; next cheaper: {self.cheaper}")
        return "\n".join(rows)
