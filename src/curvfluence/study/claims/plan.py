"""Which studies a table of claims rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from curvfluence.errors import InputError
from curvfluence.study.asked import prepared
from curvfluence.study.problems import StudyProblem, load
from curvfluence.study.results.claim import AXES
from curvfluence.study.spec import DTYPES, GRID, StudySpec
from curvfluence.study.sweep import grid
from curvfluence.study.variant import Variant

PROTOCOL_NAMES = ("clean", "paper")
NARROW = 16  # width of the variants where a problem's own net is wider
# Half decades of λ where the choice matters, whole ones where the sweep is flat.
DAMPINGS = (*GRID[:4:2], *GRID[4:11])
ASIDE = ("Diagonal", "Identity")  # rungs that no claim speaks of: not in the variants


@dataclass(frozen=True)
class Settings:
    """How closely a claim is looked at. `subsets` None takes each problem's own number, `queries`
    None all of them.

    Variants have one minibatch order for each subset and `variant_subsets` of them.
    """

    seed: int = 0
    models: int = 8
    subsets: int | None = None
    orders: int = 2
    variant_subsets: int = 40
    replicates: int = 1000
    queries: int | None = 200
    dampings: tuple[float, ...] = DAMPINGS
    axes: tuple[str, ...] = tuple(AXES)


@dataclass(frozen=True)
class Setting:
    """One study along an axis: its value there, and its spec."""

    label: str
    spec: StudySpec


@dataclass(frozen=True)
class Plan:
    """The studies of one problem under one protocol: `base`, and along each axis the settings
    that a claim across it speaks of, the base (or what stands for it) among them. `missing` says
    why an axis has none; `work` roughly how many operations each study takes, the dearest first."""

    problem: str
    protocol: str
    base: StudySpec
    axes: Mapping[str, tuple[Setting, ...]]
    missing: Mapping[str, str]
    work: Mapping[StudySpec, float]


def plan(name: str, protocol_name: str, settings: Settings) -> Plan:
    """Base and variants: ½ and 1½ of the width, depths 1, 2 and 4, a tenth and a third of the
    epochs; one thing is changed at a time.

    Where the problem's own net is wider than 16, widths are 8, 16 and its own, and depths and
    epochs are compared at width 16. Errors: `InputError` for settings that make no study.
    """
    loaded = load(name)
    base = StudySpec(
        name,
        loaded.subsets if settings.subsets is None else settings.subsets,
        seed=settings.seed,
        models=settings.models,
        orders=settings.orders,
        replicates=settings.replicates,
        dampings=settings.dampings,
        protocol=protocol_name,
        hybrids=False,
        queries=settings.queries,
    )
    rungs = tuple(rung for rung in base.ladder if rung not in ASIDE)
    variant = replace(
        base, subsets=settings.variant_subsets, orders=1, rungs=rungs, bregman=False, costs=False
    )
    problem = prepared(loaded, base.plan, DTYPES[base.dtype])
    axes: dict[str, tuple[Setting, ...]] = {}
    missing: dict[str, str] = {}
    for axis in settings.axes:
        try:
            axes[axis] = _axis(axis, base, variant, problem)
        except InputError as error:
            missing[axis] = str(error)
    every = dict.fromkeys([base, *(setting.spec for along in axes.values() for setting in along)])
    work = {spec: _work(spec, spec.variant.apply(problem)) for spec in every}
    return Plan(loaded.name, protocol_name, base, axes, missing, work)


def _work(spec: StudySpec, problem: StudyProblem) -> float:
    """Retraining, the dense rungs of the ladder and one factor a damping."""
    p = sum(value.numel() for value in problem.recipe.build(0).parameters())
    passes = spec.alpha * problem.recipe.total_steps(len(problem.train)) * problem.recipe.batch_size
    retrained = 6 * p * passes * spec.models * spec.orders * spec.subsets
    return retrained + spec.models * p**3 * (30 + len(spec.dampings) / 3)


def _axis(
    axis: str, base: StudySpec, variant: StudySpec, problem: StudyProblem
) -> tuple[Setting, ...]:
    widths = _hidden(problem)
    first, narrow = widths[0], min(widths[0], NARROW)
    if axis == "width":
        label = str(first) if len(set(widths)) == 1 else "own"
        wide = narrow if narrow < first else first * 3 // 2
        cells = _cells(variant, axis, [max(1, narrow // 2), wide])
        settings = (*cells, Setting(label, base))
        return tuple(sorted(settings, key=lambda s: first if s.spec is base else int(s.label)))
    # A wide net's variants are narrow, and so is what they are compared with.
    at = variant if narrow == first else replace(variant, variant=Variant(width=narrow))
    centre = base if narrow == first else at
    if axis == "depth":
        here, others = len(widths), [1, 2, 4]
    else:
        if problem.recipe.epochs is None:
            raise InputError(f"{problem.name} trains for a number of steps, not of epochs")
        here = problem.recipe.epochs
        others = [here // 10, here // 3]
    cells = _cells(at, axis, sorted({value for value in others if value > 0} - {here}))
    settings = (*cells, Setting(str(here), centre))
    return tuple(sorted(settings, key=lambda setting: int(setting.label)))


def _cells(base: StudySpec, axis: str, values: list[int]) -> tuple[Setting, ...]:
    return tuple(Setting(str(cell[axis]), spec) for cell, spec in grid(base, {axis: values}))


def _hidden(problem: StudyProblem) -> list[int]:
    """Widths of the hidden layers."""
    layers = [m for m in problem.recipe.build(0).modules() if isinstance(m, nn.Linear)]
    widths = [layer.out_features for layer in layers[:-1]]
    if not widths:
        raise InputError(f"{problem.name} has no hidden layer to change")
    return widths
