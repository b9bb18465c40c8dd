"""A training that is interrupted goes on from its last kept state, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
import torch

from curvfluence.errors import InputError
from curvfluence.problem.losses import CrossEntropy
from curvfluence.store.steps import STEPS, Steps
from curvfluence.truth import (
    Cosine,
    Path,
    Recipe,
    Run,
    Trained,
    adam,
    adamw,
    grid,
    random_subsets,
    sgd,
    train,
)
from curvfluence.truth import resume as resuming
from tests.test_truth_training import RECIPE, Gated, examples, net, noisy

DATA = examples(50, torch.float32)
SUBSETS = random_subsets(50, keep=0.5, count=3, seed=0)
RUNS = [Run(0, 0), *grid([0, 1], [0], 3)]
OPTIMIZERS = {
    "sgd": sgd(0.1),
    "momentum": sgd(0.1, 0.9),
    "adam": adam(0.01),
    "adamw": adamw(0.01),
}


def recipes() -> dict[str, tuple[Recipe, Path]]:
    found = {
        f"{path.value}, {name}": (replace(RECIPE, optimizer=optimizer), path)
        for path in Path
        for name, optimizer in OPTIMIZERS.items()
    }
    clipped = replace(RECIPE, clip_norm=0.5, schedule=Cosine())
    found["cosine and clipped"] = clipped, Path.STACKED
    found["functional, another net"] = replace(RECIPE, architecture=Gated), Path.FUNCTIONAL
    random = Recipe(noisy, CrossEntropy(), adam(0.01), 16, epochs=3)
    found["dropout and running statistics"] = random, Path.PROCESSES
    return found


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state after every step, without waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(resuming, "EVERY", 0.0)
    monkeypatch.setattr(resuming, "SHARE", 0.0)


class Keeper:
    """In the place of `Steps.keep`: counts the states that it keeps, and is killed after `last`."""

    def __init__(self, last: int | None = None) -> None:
        self.own, self.last, self.kept = Steps.keep, last, 0

    def __call__(self, steps: Steps, name: Mapping[str, Any], value: object) -> None:
        if self.kept == self.last:
            raise KeyboardInterrupt
        self.kept += 1
        self.own(steps, name, value)


def kept_by(keeper: Keeper) -> Callable[[Steps, Mapping[str, Any], object], None]:
    """As a function, which a class binds."""
    return lambda steps, name, value: keeper(steps, name, value)


def trained(recipe: Recipe, path: Path, steps: Steps | None) -> Trained:
    return train(recipe, DATA, RUNS, SUBSETS, path=path, chunk=4, threads=1, steps=steps)


def equal(a: Trained, b: Trained) -> bool:
    every = [(a.theta, b.theta), (a.state, b.state)]
    same = all(torch.equal(x[name], y[name]) for x, y in every for name in x)
    return same and torch.equal(a.final_loss, b.final_loss)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("at", [1, 9])
def test_equals_what_was_not_interrupted(
    name: str, at: int, tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, path = recipes()[name]
    whole = trained(recipe, path, None)
    steps = Steps(tmp_path / STEPS, {})
    generator = torch.get_rng_state()
    states: list[int] = []
    for place, last in ((steps, at), (steps, None), (Steps(tmp_path / "anew", {}), None)):
        keeper = Keeper(last)
        with monkeypatch.context() as patch:
            patch.setattr(Steps, "keep", kept_by(keeper))
            if last is None:
                assert equal(trained(recipe, path, place), whole)
            else:
                with pytest.raises(KeyboardInterrupt):
                    trained(recipe, path, place)
        states.append(keeper.kept)
    assert torch.equal(torch.get_rng_state(), generator)
    _, repeated, anew = states
    # the last state of each training is kept twice where it was complete before
    assert repeated <= anew - at + len(RUNS)


@pytest.mark.usefixtures("always")
def test_what_others_trained_is_not_taken(tmp_path: File) -> None:
    steps = Steps(tmp_path / STEPS, {})
    trained(RECIPE, Path.STACKED, steps)
    for runs in ([Run(1, 0)], [Run(0, 1)], [Run(0, 0, 1)]):
        alone = train(RECIPE, DATA, runs, SUBSETS, threads=1)
        found = train(RECIPE, DATA, runs, SUBSETS, threads=1, steps=steps)
        assert equal(alone, found)


def test_short_trainings_keep_nothing(tmp_path: File) -> None:
    for path in Path:
        trained(RECIPE, path, Steps(tmp_path / STEPS, {}))
    assert not (tmp_path / STEPS).exists()


@pytest.mark.usefixtures("always")
def test_one_command_at_a_time_keeps_states(tmp_path: File) -> None:
    steps = Steps(tmp_path / STEPS / "x", {})
    with steps.ours() as mine:
        assert mine is steps
        with steps.ours() as other:
            assert other is None
        trained(RECIPE, Path.STACKED, mine)
        assert list(steps.path.glob("*.npy"))
    assert not (tmp_path / STEPS).exists(), "done, and nobody else's are there"


def test_kept_where_the_work_was_not_done(tmp_path: File) -> None:
    steps = Steps(tmp_path / STEPS / "x", {})
    with suppress(KeyboardInterrupt), steps.ours():
        steps.keep({}, 1)
        raise KeyboardInterrupt
    assert steps.find({}, int) == 1


def test_a_full_disk_is_said(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curvfluence.store.steps.write_array", full)
    with pytest.raises(InputError, match=r"cannot write to .*No space left"):
        Steps(tmp_path / STEPS, {}).keep({}, 1)


@pytest.mark.usefixtures("always")
def test_in_several_processes(tmp_path: File) -> None:
    """Workers keep states where they are told to, wherever they run."""
    recipe = replace(RECIPE, architecture=net)
    steps = Steps(tmp_path / STEPS, {})
    one = train(recipe, DATA, RUNS, SUBSETS, path=Path.PROCESSES, threads=1)
    two = train(recipe, DATA, RUNS, SUBSETS, path=Path.PROCESSES, threads=2, steps=steps)
    assert equal(one, two)
