"""The paper's own experiment as a list of studies: six nets, three lengths, four fractions kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import MappingProxyType

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.study.asked import asked
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.spec import GRID, StudySpec
from curvfluence.study.variant import Variant, net_of

PROTOCOL = "table1"
# Parameters above which an eigendecomposition of P × P at every model would outlast all the rest.
DENSE = 7_000
# λ; from 1e-5 on half decades where the choice matters, below for the rungs that need none.
FEW_DAMPINGS = (1e-6, *GRID[2:6:2], *GRID[5:10])
DAMPINGS = (1e-7, 1e-6, *GRID[:3:2], *GRID[3:9], 1.0)


@dataclass(frozen=True)
class Net:
    """A tanh net."""

    depth: int
    width: int
    bias: bool = False

    @property
    def label(self) -> str:
        return f"depth {self.depth}, width {self.width}" + (", biases" if self.bias else "")


NETS = (Net(1, 16), Net(4, 16), Net(8, 16), Net(1, 32), Net(1, 64), Net(1, 128))
BIASED = (Net(1, 32, bias=True), Net(8, 16, bias=True))


@dataclass(frozen=True)
class Extent:
    """How closely the cells of one training length are looked at. `whole`: with every rung and λ,
    nets with biases, and the widest net at every model."""

    models: int
    subsets: int
    alphas: tuple[float, ...]
    whole: bool = True


FULL: Mapping[int, Extent] = MappingProxyType(
    {
        10: Extent(8, 100, (0.3, 0.5, 0.7, 0.9)),
        100: Extent(8, 100, (0.3, 0.5, 0.7, 0.9)),
        1000: Extent(4, 50, (0.5, 0.9)),
    }
)
QUICK: Mapping[int, Extent] = MappingProxyType(
    {epochs: Extent(4, 50, (0.5,), whole=False) for epochs in (10, 100)}
)


@dataclass(frozen=True)
class Part:
    """The cells of one depth, width and training length, each of any where None."""

    depth: int | None = None
    width: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            kinds.count(value, name)

    @property
    def given(self) -> dict[str, int]:
        """What it asks for."""
        asks = {"depth": self.depth, "width": self.width, "epochs": self.epochs}
        return {name: value for name, value in asks.items() if value is not None}

    def holds(self, net: Net, epochs: int) -> bool:
        """Whether such a cell is of this part."""
        has = {"depth": net.depth, "width": net.width, "epochs": epochs}
        return all(has[name] == value for name, value in self.given.items())


@dataclass(frozen=True)
class Cell:
    """One net, trained for a length, with subsets that keep a fraction.

    `spec` is its study. Above `DENSE` parameters it has no Hessian; `exact` is then a study of the
    first model alone that has one, on the same retrainings. A quick run has the first model only
    there, and no Hessian, errors and hybrids at all.
    """

    net: Net
    epochs: int
    parameters: int
    spec: StudySpec
    exact: StudySpec | None

    @property
    def label(self) -> str:
        return f"{self.net.label}, {self.epochs} epochs, α = {self.spec.alpha:g}"

    @property
    def folder(self) -> str:
        return f"{self.training}-alpha{self.spec.alpha:g}"

    @property
    def training(self) -> str:
        """Names what was trained: one bank for every fraction kept."""
        net = self.net
        return f"d{net.depth}-w{net.width}{'-bias' if net.bias else ''}-e{self.epochs}"

    @property
    def bank(self) -> PurePosixPath:
        return PurePosixPath("banks") / self.training


def cells(
    problem: str, *, quick: bool = False, seed: int = 0, part: Part | None = None
) -> tuple[Cell, ...]:
    """Every cell of a part, or of all of them, by length, net and fraction kept.

    Errors: `InputError` for a problem whose net has no depth and width to change, and for a part
    without a cell.
    """
    loaded, asks = load(problem), part or Part()
    made = tuple(
        _cell(problem, loaded, net, epochs, extent, alpha, seed)
        for epochs, extent in (QUICK if quick else FULL).items()
        for net in ((*NETS, *BIASED) if extent.whole else NETS)
        if asks.holds(net, epochs)
        for alpha in extent.alphas
    )
    if not made:
        lengths = ", ".join(f"{epochs:,}" for epochs in (QUICK if quick else FULL))
        nets = ", ".join(f"{net.depth} × {net.width}" for net in NETS)
        seen = ", ".join(f"{name} {value:,}" for name, value in asks.given.items())
        raise InputError(
            f"table1 has no cell of {seen}: its nets, depth × width, are {nets}, each trained for "
            f"{lengths} epochs"
        )
    return made


def _cell(
    problem: str,
    loaded: StudyProblem,
    net: Net,
    epochs: int,
    extent: Extent,
    alpha: float,
    seed: int,
) -> Cell:
    spec = StudySpec(
        problem,
        extent.subsets,
        seed=seed,
        models=extent.models,
        orders=1,
        alpha=alpha,
        dampings=DAMPINGS if extent.whole else FEW_DAMPINGS,
        replicates=500,
        protocol=PROTOCOL,
        variant=Variant(depth=net.depth, width=net.width, bias=net.bias or None, epochs=epochs),
        bregman=False,
        costs=False,
        scores=False,
    )
    if not extent.whole:
        rungs = (
            name for name in spec.ladder if "[" not in name or name.startswith(("EKFAC", "KFAC"))
        )
        spec = replace(spec, rungs=tuple(rungs))
    count = net_of(asked(spec, loaded), "depth and width").parameters
    if count <= DENSE:
        return Cell(net, epochs, count, spec, None)
    rungs = tuple(name for name in spec.ladder if name != "Hessian")
    below = replace(spec, rungs=rungs, hybrids=False)
    if not extent.whole:
        return Cell(net, epochs, count, replace(below, models=1, spectra=False), None)
    return Cell(net, epochs, count, below, replace(spec, models=1))
