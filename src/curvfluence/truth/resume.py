"""States of trainings that take long, kept now and then: where an interrupted one goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from curvfluence.store.hashes import hash_tensors
from curvfluence.store.steps import Steps
from curvfluence.truth.run import Share

EVERY = 20.0  # seconds of training that may be lost
SHARE = 20.0  # times what keeping a state took, that training then goes on at least

T = TypeVar("T")


@dataclass(eq=False)
class Resume:
    """Where the states of one training after another are kept, in one thread; `steps` None keeps
    none. `name` is that of the training that was begun last."""

    steps: Steps | None
    name: dict[str, Any] = field(default_factory=dict[str, Any])
    last: float = field(default_factory=time.monotonic)
    took: float = 0.0

    def begin(self, shares: Sequence[Share], kind: type[T], path: str) -> T | None:
        """The state that was kept last of a training of these runs by this path; None where there
        is none to begin from."""
        if self.steps is None:
            return None
        self.name = _named(shares, path)
        return self.steps.find(self.name, kind)

    @property
    def due(self) -> bool:
        """Whether a state should be kept now."""
        waited = time.monotonic() - self.last
        return self.steps is not None and waited >= max(EVERY, SHARE * self.took)

    @property
    def near(self) -> bool:
        """Whether the last state should be kept at the end of a training, which others follow."""
        return self.steps is not None and time.monotonic() - self.last >= EVERY / 4

    def keep(self, state: object) -> None:
        """Keep it, in the place of the one before."""
        assert self.steps is not None
        start = time.monotonic()
        self.steps.keep(self.name, state)
        self.last = time.monotonic()
        self.took = self.last - start


def _named(shares: Sequence[Share], path: str) -> dict[str, Any]:
    """What a training is called: whose examples are trained on, from where and in which order."""
    parts = (part for share in shares for part in (share.index, share.weight))
    runs = [(share.run.init_seed, share.run.order_seed) for share in shares]
    return {"path": path, "runs": hash_tensors(torch.tensor(runs), *parts)}


@dataclass(frozen=True, eq=False)
class Optimized:
    """Tensors that an optimiser steps, and what it remembers of each (`Optimizer.state_dict`)."""

    tensors: tuple[Tensor, ...]
    memory: dict[int, Any]

    @staticmethod
    def of(optimizer: torch.optim.Optimizer) -> Optimized:
        """As they are now; shared, not copied."""
        memory = optimizer.state_dict()["state"]
        return Optimized(tuple(map(torch.Tensor.detach, _stepped(optimizer))), memory)

    def put_into(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimiser of the same tensors go on from here."""
        with torch.no_grad():
            for tensor, value in zip(_stepped(optimizer), self.tensors, strict=True):
                tensor.copy_(value)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.memory, "param_groups": groups})


def _stepped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


@dataclass(frozen=True, eq=False)
class Together:
    """Of models that train side by side, after so many steps."""

    step: int
    optimized: Optimized


@dataclass(frozen=True, eq=False)
class Alone:
    """Of a model that trains by itself, after so many steps: with its frozen parameters and
    buffers, and with torch's generators, which it may draw from."""

    step: int
    optimized: Optimized
    rest: dict[str, Tensor]
    generators: tuple[Tensor, ...]
