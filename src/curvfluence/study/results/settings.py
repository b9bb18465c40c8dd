"""What results came from: the settings of a study, versions and machine, and what examples are."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from curvfluence.store.records import Record, as_json

# How many there are of something; JSON knows no integer beyond 2⁵³ that every reader keeps.
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
AtLeastOne: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0)]


class StudySettings(Record, frozen=True):
    """Every setting of a study, its rungs by name; `variant` holds what differs from the problem
    as it is."""

    problem: str
    subsets: AtLeastOne
    seed: Count
    models: AtLeastOne
    orders: AtLeastOne
    alpha: Annotated[float, Meta(gt=0, lt=1)]
    rungs: tuple[str, ...]
    dampings: tuple[float, ...]
    replicates: AtLeastOne
    dtype: Literal["float32", "float64"]
    protocol: str
    fishers: tuple[str, ...]
    variant: dict[str, bool | Annotated[int, Meta(ge=0, le=2**53)] | float | str]
    bregman: bool
    hybrids: bool
    costs: bool
    queries: AtLeastOne | None
    spectra: bool = True
    scores: bool = True
    bounds: bool = False

    @property
    def rounding(self) -> float:
        """The unit of rounding, eps, of the numbers that the study computed with."""
        return 2.0**-23 if self.dtype == "float32" else 2.0**-52


class Environment(Record, frozen=True, rename={"scikit_learn": "scikit-learn"}):
    """Versions, machine, hashes of what went in, and the command where one was used."""

    curvfluence: str
    python: str
    torch: str
    numpy: str
    scipy: str
    scikit_learn: str
    system: str
    cpus: Count | None
    threads: Count
    hashes: dict[str, str]
    command: str | None = None

    @property
    def versions(self) -> dict[str, Any]:
        """Software and machine by name."""
        return {k: v for k, v in as_json(self).items() if k not in ("hashes", "command")}


class DisplaySummary(Record, frozen=True):
    """How a person sees the examples: names of their features and classes, None where they have
    none."""

    kind: Literal["image", "features"]
    names: tuple[str, ...] | None
    classes: tuple[str, ...] | None
    unit: str
