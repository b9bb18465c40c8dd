"""torch's global random generators."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch

from curvfluence.runtime.in_common import InCommon


@contextmanager
def preserved() -> Generator[None]:
    """Leave the generators as found: the CPU's, and those of CUDA devices where any is in use; and
    as the first of several threads found them, once the last has left."""
    with _AS_FOUND(), _forked():
        yield


@contextmanager
def _forked() -> Generator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


_AS_FOUND = InCommon(_forked)


def seed(number: int, device: torch.device) -> None:
    """Seed what a model on `device` draws from: the CPU's generator, and the device's own.

    `torch.manual_seed` would also reset those of the devices that are not in use."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def states(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Where the generators stand that a model on `device` draws from."""
    cpu = torch.default_generator.get_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def put_states(found: Sequence[torch.Tensor], device: torch.device) -> None:
    """Let them go on from `states`."""
    torch.default_generator.set_state(found[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(found[1], device)
