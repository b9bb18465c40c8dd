"""What repeats a study or a sweep: the calls from Python, and the command of a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from curvfluence.errors import InputError
from curvfluence.study.results import StudySettings
from curvfluence.study.spec import StudySpec
from curvfluence.study.sweep.grid import at_cell
from curvfluence.study.variant import Value, Variant

Axes = Mapping[str, Sequence[Value]]
_DEFAULTS = {
    "seed": 0,
    "alpha": 0.5,
}  # settings of a sweep's command that need no axis of one value
_OPTIONS = ("depth", "width", "epochs")  # what the command of a study can change of a problem


def study_call(spec: StudySettings) -> str:
    """The call that repeats a study, whatever started it."""
    arguments, variant = _arguments(spec, ())
    head = "from curvfluence.report import write_report\n"
    head += f"from curvfluence.study import StudySpec, run_study\n{variant}"
    return f"{head}\nstudy = run_study(StudySpec(\n{arguments}))\nwrite_report(study.path)"


def sweep_call(spec: StudySettings, axes: Axes) -> str:
    """The call that repeats a sweep, whatever started it."""
    arguments, variant = _arguments(spec, tuple(axes))
    head = "from pathlib import Path\n\nfrom curvfluence.report import write_sweep_report\n"
    head += "from curvfluence.study import StudySpec\n"
    head += f"from curvfluence.study.sweep import run_sweep\n{variant}"
    listed = "".join(f"    {name!r}: {list(values)!r},\n" for name, values in axes.items())
    out = f"runs/{spec.problem.rsplit('/', 1)[-1].removesuffix('.py')}-sweep"
    return (
        f"{head}\nbase = StudySpec(\n{arguments})\naxes = {{\n{listed}}}\n"
        f"write_sweep_report(run_sweep(base, axes, Path({out!r})))"
    )


def study_command(spec: StudySettings) -> str:
    """The command that repeats a study, or "" where the library alone has its settings."""
    changed = {name: int(value) for name, value in spec.variant.items() if name in _OPTIONS}
    made = {name: getattr(spec, name) for name in ("seed", "models", "alpha", "protocol", "dtype")}
    try:
        plain = StudySpec(spec.problem, spec.subsets, protocol=spec.protocol)
        rungs = None if plain.ladder == spec.rungs else spec.rungs
        same = replace(
            plain,
            **made,
            rungs=rungs,
            variant=Variant(
                depth=changed.get("depth"), width=changed.get("width"), epochs=changed.get("epochs")
            ),
            bregman=spec.bregman,
            queries=spec.queries,
            bounds=spec.bounds,
        )
    except InputError:
        return ""
    if same.settings != spec:
        return ""
    words = ["curvfluence", "study", spec.problem]
    for name, value in {**made, **changed}.items():
        if name in changed or value != getattr(StudySpec, name):
            words += [f"--{name}", str(value)]
    words += ["--subsets", f"{spec.subsets}"]
    words += ["--queries", f"{spec.queries}"] if spec.queries is not None else []
    words += ["--rungs", ",".join(rungs)] if rungs is not None else []
    words += [] if spec.bregman else ["--no-bregman"]
    return shlex.join([*words, *(["--bounds"] if spec.bounds else [])])


def _arguments(spec: StudySettings, leave_out: Sequence[str]) -> tuple[str, str]:
    """Keyword arguments a line each, and the import that they need."""
    changes = {name: value for name, value in spec.variant.items() if name not in leave_out}
    lines: list[str] = []
    for name, value in msgspec.structs.asdict(spec).items():
        if name == "variant":
            value = changes
        if name in leave_out or value is None or value in ((), {}):
            continue
        lines.append(f"    {name}={_variant(changes) if name == 'variant' else repr(value)},\n")
    needed = "from curvfluence.study.variant import Variant\n" if changes else ""
    return "".join(lines), needed


def _variant(changes: Mapping[str, Any]) -> str:
    return f"Variant({', '.join(f'{name}={value!r}' for name, value in changes.items())})"


def as_option(value: Value) -> str:
    """A value of an axis as the command takes it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else repr(value)


def sweep_command(spec: StudySettings, axes: Axes) -> str:
    """The command that repeats a sweep, or "" where the library alone has its settings."""
    fixed = {**spec.variant, "seed": spec.seed, "alpha": spec.alpha}
    more = {
        name: [value]
        for name, value in fixed.items()
        if name not in axes and _DEFAULTS.get(name) != value
    }
    every: Axes = {**axes, **more}
    words = ["curvfluence", "sweep", spec.problem]
    for name, values in every.items():
        words += [f"--{name.replace('_', '-')}", ",".join(map(as_option, values))]
    words += ["--subsets", str(spec.subsets), "--models", str(spec.models)]
    words += ["--protocol", spec.protocol, "--fisher", ",".join(spec.fishers)]
    cell = {name: fixed[name] for name in every if name in fixed}
    try:
        made = at_cell(
            StudySpec(
                spec.problem,
                spec.subsets,
                models=spec.models,
                protocol=spec.protocol,
                fishers=spec.fishers,
                variant=Variant(),
                bregman=False,
            ),
            cell,
        )
    except (InputError, TypeError):
        return ""
    return shlex.join(words) if made.settings == spec else ""
