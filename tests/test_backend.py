"""Which backend processes work together by, and what is refused: told by what torch says that it
has. No CUDA device is needed, and none is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import curvfluence as cf
from curvfluence.errors import InputError
from curvfluence.problem.content import content
from curvfluence.runtime import backend, ranks
from tests.problems import chain_problem

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.xdist_group("backend"),
]


class Machine:
    """What torch says of it, by a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.current = 0
        self.has(devices=0)
        monkeypatch.setattr(torch.cuda, "set_device", self._set)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)

    def has(
        self, *, devices: int, nccl: bool = True, gloo: bool = True, distributed: bool = True
    ) -> None:
        self.patch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        self.patch.setattr(torch.cuda, "device_count", lambda: devices)
        self.patch.setattr(dist, "is_nccl_available", lambda: nccl)
        self.patch.setattr(dist, "is_gloo_available", lambda: gloo)
        self.patch.setattr(dist, "is_available", lambda: distributed)

    def launched(self, rank: int, count: int) -> None:
        self.patch.setenv("LOCAL_RANK", str(rank))
        self.patch.setenv("LOCAL_WORLD_SIZE", str(count))

    def _set(self, device: int) -> None:
        self.current = device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class TestTheCommandsOwn:
    @pytest.mark.parametrize(
        ("has", "rank", "count", "wanted", "device"),
        [
            ({"devices": 0}, 1, 2, "gloo", 0),
            ({"devices": 4}, 1, 2, "cpu:gloo,cuda:nccl", 1),
            ({"devices": 2}, 1, 2, "cpu:gloo,cuda:nccl", 1),
            ({"devices": 1}, 0, 1, "cpu:gloo,cuda:nccl", 0),
            ({"devices": 1}, 1, 2, "gloo", 0),  # two of NCCL's cannot share one
            ({"devices": 4, "nccl": False}, 1, 2, "gloo", 0),
        ],
    )
    def test_choice(
        self, machine: Machine, has: Any, rank: int, count: int, wanted: str, device: int
    ) -> None:
        machine.has(**has)
        machine.launched(rank, count)
        assert backend.own() == wanted
        assert machine.current == device

    @pytest.mark.parametrize(
        ("has", "said"),
        [
            ({"distributed": False}, "this torch was built without torch.distributed: install"),
            ({"gloo": False}, "this torch was built without gloo: install"),
        ],
    )
    def test_what_torch_lacks_is_said(self, machine: Machine, has: Any, said: str) -> None:
        machine.has(devices=2, **has)
        with pytest.raises(InputError, match=said):
            backend.own()

    def test_together_without_distributed(self, machine: Machine) -> None:
        machine.has(devices=0, distributed=False)
        with pytest.raises(InputError, match=r"built without torch\.distributed"), cf.together():
            pass


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A group of this process by gloo."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    ranks.destroy()


def configured(monkeypatch: pytest.MonkeyPatch, config: str) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda *_: config)


@pytest.mark.usefixtures("alone")
class TestTheUsersOwn:
    def test_gloo_serves(self) -> None:
        with cf.together() as team:
            assert team.count == 1
            cf.influence(chain_problem(), cf.KFAC())

    def test_both_serve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        configured(monkeypatch, "cpu:gloo,cuda:nccl")
        with cf.together():
            cf.influence(chain_problem(), cf.KFAC())

    @pytest.mark.parametrize("config", ["cuda:nccl", "CUDA:NCCL"])
    def test_nccl_alone_is_refused(self, monkeypatch: pytest.MonkeyPatch, config: str) -> None:
        configured(monkeypatch, config)
        said = r'which nccl cannot: call .*init_process_group\("cpu:gloo,cuda:nccl"\)'
        with pytest.raises(InputError, match=said), cf.together():
            raise AssertionError

    @pytest.mark.parametrize(
        ("config", "current", "said"),
        [
            ("cpu:gloo,cuda:gloo", 1, r"cuda:1, whose tensors gloo cannot hand on: call .*nccl"),
            ("cpu:gloo", 1, "cuda:1, whose tensors no backend cannot hand on"),
            ("cpu:gloo,cuda:nccl", 0, r"on cuda:1 and this process on cuda:0: call .*set_device"),
            ("cpu:gloo,cuda:nccl", 1, None),
        ],
    )
    def test_devices(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch, config: str, current: int,
        said: str | None,
    ) -> None:  # fmt: skip
        configured(monkeypatch, config)
        machine.current = current
        if said is None:
            backend.require_device(torch.device("cuda", 1))
        else:
            with pytest.raises(InputError, match=said):
                backend.require_device(torch.device("cuda", 1))
        backend.require_device(torch.device("cpu"))


def test_devices_of_one_kind_are_the_same_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has a device of its own, and what it was given is the same."""
    problem, names = chain_problem(), list[str]()
    for index in (0, 1):
        monkeypatch.setattr(cf.Problem, "device", torch.device("cuda", index))
        monkeypatch.setattr(cf.Problem, "_tried_now", problem.queries.take(slice(0, 2)))
        monkeypatch.setattr("curvfluence.problem.content.tried", lambda _: (None, None))
        names.append(content(problem))
    assert names[0] == names[1]
    monkeypatch.setattr(cf.Problem, "device", torch.device("cpu"))
    assert content(problem) != names[0]
