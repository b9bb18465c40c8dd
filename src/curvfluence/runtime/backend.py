"""What processes hand tensors on by: gloo on the CPU, NCCL on CUDA devices."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from curvfluence.errors import InputError

BOTH = "cpu:gloo,cuda:nccl"  # as torch writes it
NOT_BUILT = "this torch was built without {}: install one of its wheels for Linux or macOS"


def require_distributed() -> None:
    """Errors: `InputError` where torch cannot let processes work together."""
    if not dist.is_available():
        raise InputError(NOT_BUILT.format("torch.distributed"))


def own() -> str:
    """The backend for processes that torchrun started: gloo, and NCCL beside it where each of this
    machine's has a CUDA device by itself, which becomes this one's current device.

    Errors: `InputError` where torch has no gloo, which all of them need: scores are on the CPU.
    """
    require_distributed()
    if not dist.is_gloo_available():
        raise InputError(NOT_BUILT.format("gloo"))
    rank, count = (
        int(os.environ.get(f"LOCAL_{k}", d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    if not (torch.cuda.is_available() and dist.is_nccl_available()):
        return "gloo"
    if count > torch.cuda.device_count():
        return "gloo"
    torch.cuda.set_device(rank)
    return BOTH


def require_cpu() -> None:
    """Errors: `InputError` where the default group hands on nothing that is on the CPU, as NCCL
    alone does."""
    by = _by_device()
    if "cpu" not in by:
        said = ", ".join(sorted(set(by.values()))) or "no backend"
        raise InputError(
            f"scores are handed on from the CPU, which {said} cannot: call "
            f'torch.distributed.init_process_group("{BOTH}")'
        )


def require_device(device: torch.device) -> None:
    """Errors: `InputError` where tensors of that device are not handed on by the default group, or
    this process is on another device of its kind."""
    if device.type == "cpu":
        return
    by = _by_device().get(device.type)
    if by is None or by == "gloo":  # which neither sends nor receives them
        raise InputError(
            f"the problem is on {device}, whose tensors {by or 'no backend'} cannot hand on: call "
            f'torch.distributed.init_process_group("{BOTH}"), with at most as many processes on a '
            'machine as it has devices and a torch that has NCCL, or take problem.to("cpu")'
        )
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise InputError(
            f"the problem is on {device} and this process on cuda:{torch.cuda.current_device()}: "
            "call torch.cuda.set_device(int(os.environ['LOCAL_RANK'])) and take the model to "
            '"cuda", so that each process has a device of its own'
        )


def _by_device() -> dict[str, str]:
    """The backend of the default group by the kind of device."""
    config = dist.get_backend_config()
    return dict(part.split(":", 1) for part in config.lower().split(",") if ":" in part)
