"""Steps of work under way: what is kept comes back to the last bit, and only where it belongs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.store.packed import pack, unpack
from curvfluence.store.steps import STEPS, Steps
from curvfluence.study import StudySpec, run_study
from curvfluence.study import climb as climbing
from curvfluence.study.at_model import climb_one
from curvfluence.study.run import run_together
from tests.test_study_sweep import timeless


@dataclass(frozen=True, eq=False)
class Inner:
    values: Tensor
    name: str


@dataclass(frozen=True, eq=False)
class Outer:
    inner: tuple[Inner, ...]
    table: NDArray[Any]
    holes: Mapping[float, str]
    share: float | None
    by_name: dict[str, Inner] = field(default_factory=dict[str, Inner])
    nested: tuple[tuple[str, Tensor], ...] = ()


def alike(a: Any, b: Any) -> bool:
    """Equal to the last bit, NaN as well, and of the same types."""
    if isinstance(a, Tensor | np.ndarray):
        x, y = (np.asarray(one) for one in (a, b))
        same = type(a) is type(b) and x.dtype == y.dtype and x.shape == y.shape
        return same and x.tobytes() == y.tobytes()
    if is_dataclass(a):
        return type(a) is type(b) and all(
            alike(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(alike, a, b))
    return repr(a) == repr(b)


KINDS = st.sampled_from([np.float64, np.float32, np.int64, np.bool_])
ARRAYS = KINDS.flatmap(lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0)))
TENSORS = ARRAYS.map(lambda a: torch.from_numpy(a.copy()))
INNER = st.builds(Inner, TENSORS, st.text())
OUTERS = st.builds(
    Outer,
    st.lists(INNER, max_size=3).map(tuple),
    ARRAYS,
    st.dictionaries(st.floats(allow_nan=False), st.text(), max_size=3),
    st.none() | st.floats(),
    st.dictionaries(st.text(), INNER, max_size=2),
    st.lists(st.tuples(st.text(), TENSORS), max_size=2).map(tuple),
)


class TestPacked:
    @settings(deadline=None)
    @given(OUTERS)
    def test_comes_back_as_it_was(self, value: Outer) -> None:
        data, found = pack(value)
        assert alike(unpack(data, found, Outer), value)

    def test_other_bytes_are_refused(self) -> None:
        data, found = pack(Inner(torch.ones(2), "x"))
        with pytest.raises(InputError, match="no Outer"):
            unpack(data, found, Outer)
        with pytest.raises(InputError, match="no Inner"):
            unpack(data, [], Inner)
        with pytest.raises(InputError, match="no Inner"):
            unpack(b"\xc1", found, Inner)

    def test_objects_are_not_pickled(self) -> None:
        with pytest.raises(TypeError, match="neither plain nor an array"):
            pack(object())


class TestSteps:
    @settings(max_examples=20, deadline=None)
    @given(value=OUTERS, other=OUTERS)
    def test_the_last_one_kept_is_found(
        self, tmp_path_factory: pytest.TempPathFactory, value: Outer, other: Outer
    ) -> None:
        steps = Steps(tmp_path_factory.mktemp("steps") / STEPS, {"x": 1})
        assert steps.find({"a": 1}, Outer) is None
        for one in (value, other):
            steps.keep({"a": 1}, one)
            assert alike(steps.find({"a": 1}, Outer), one)
        assert steps.find({"a": 2}, Outer) is None
        assert replace(steps, depends={"x": 2}).find({"a": 1}, Outer) is None
        kept = len(list(steps.path.glob("*.npy")))
        assert kept == len(pack(other)[1]) + 1, "those of the first are gone"
        steps.clear()
        steps.clear()
        assert not steps.path.exists()

    def test_threads_are_part_of_the_key(self, tmp_path: Path) -> None:
        steps, before = Steps(tmp_path, {}), torch.get_num_threads()
        mine = steps.key({})
        try:
            torch.set_num_threads(before + 1)
            assert steps.key({}) != mine
        finally:
            torch.set_num_threads(before)

    def test_killed_while_it_writes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """At whichever file: the step that was kept before is found."""
        steps = Steps(tmp_path / STEPS, {})
        first, second = (Inner(torch.full((3,), float(k)), "x") for k in (1, 2))
        for at in ("curvfluence.store.steps.write_array", "curvfluence.store.steps.write"):
            steps.keep({}, first)
            with monkeypatch.context() as patch:
                patch.setattr(at, _killed)
                with pytest.raises(KeyboardInterrupt):
                    steps.keep({}, second)
            assert alike(steps.find({}, Inner), first)
            steps.keep({}, second)
            assert alike(steps.find({}, Inner), second)

    @pytest.mark.parametrize("name", ["*.json", "*.0.npy", "*.1.npy"])
    def test_what_was_not_written_is_refused(self, tmp_path: Path, name: str) -> None:
        steps = Steps(tmp_path / STEPS, {})
        steps.keep({}, Inner(torch.ones(3), "x"))
        (file,) = steps.path.glob(name)
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(InputError, match="remove that folder"):
            steps.find({}, Inner)

    def test_a_link_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / STEPS).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(InputError, match="is a link"):
            Steps(tmp_path / STEPS, {}).keep({}, Inner(torch.ones(1), ""))


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


class TestLadders:
    """A study that is interrupted while it climbs keeps the ladder of every finished model."""

    SPEC = StudySpec("wine", subsets=12, models=3, seed=0, orders=1, replicates=200)

    def test_goes_on_at_the_next_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run_study(self.SPEC, tmp_path / "whole")
        climbed: list[int] = []

        def stopped(*given: Any, **named: Any) -> object:
            if len(climbed) == 2:
                raise KeyboardInterrupt
            climbed.append(1)
            return climb_one(*given, **named)

        def counted(*given: Any, **named: Any) -> object:
            climbed.append(1)
            return climb_one(*given, **named)

        out = tmp_path / "stopped"
        monkeypatch.setattr(climbing, "climb_one", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_study(self.SPEC, out)
        assert (out / STEPS).is_dir()
        monkeypatch.setattr(climbing, "climb_one", counted)
        resumed = run_study(self.SPEC, out)
        assert len(climbed) == 3
        assert not (out / STEPS).exists()
        assert timeless(resumed.results) == timeless(whole.results)
        seconds = resumed.results.seconds
        assert seconds is not None
        assert seconds.climb > 0
        for path in (whole.path / "arrays").iterdir():
            assert path.read_bytes() == (out / "arrays" / path.name).read_bytes(), path.name

    def test_studies_that_share_a_ladder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The ladder outlives the first of them, and is gone with the last."""
        specs = [self.SPEC, replace(self.SPEC, alpha=0.7)]
        folders = [tmp_path / "a", tmp_path / "b"]
        compared: list[int] = []

        def stopped(*given: Any, **named: Any) -> object:
            if compared:
                raise KeyboardInterrupt
            compared.append(1)
            return compare(*given, **named)

        from curvfluence.study import run

        compare = run._compare  # pyright: ignore[reportPrivateUsage]
        with monkeypatch.context() as patch:
            patch.setattr(run, "_compare", stopped)
            with pytest.raises(KeyboardInterrupt):
                run_together(specs, folders, threads=1)
        monkeypatch.setattr(climbing, "climb_one", _killed)
        first, second = run_together(specs, folders, threads=1)
        assert first.reused
        assert not second.reused
        assert not (folders[0] / STEPS).exists()

    def test_rerun_climbs_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run_study(self.SPEC, tmp_path / "x")
        with monkeypatch.context() as patch:
            patch.setattr("curvfluence.study.run._compare", _killed)
            with pytest.raises(KeyboardInterrupt):
                run_study(self.SPEC, tmp_path / "x", rerun=True)
        monkeypatch.setattr(climbing, "climb_one", _killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(self.SPEC, tmp_path / "x", rerun=True)
