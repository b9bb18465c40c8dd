"""float32 that is float32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_LOCK = threading.Lock()
_inside = 0
_restore: list[Callable[[], None]] = []


@contextmanager
def full() -> Generator[None]:
    """Products and convolutions of float32 tensors in float32, whatever torch is set to.

    On CUDA torch gives convolutions 10 bits of mantissa (TF32) unless told otherwise, and matrix
    products where `torch.set_float32_matmul_precision` says so. Comparing an example's gradient
    in a batch and alone would then find the rounding, and conjugate gradients would stop at it.
    Less than float32 is had by `Problem(..., autocast=torch.bfloat16)`, and named in results.

    The settings are of the process, not of a thread: the first that comes in sets them, the last
    that leaves puts them back.
    """
    global _inside
    with _LOCK:
        if _inside == 0:
            _restore[:] = _set()
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if _inside == 0:
                for restore in _restore:
                    restore()


def _set() -> list[Callable[[], None]]:
    """Set what is less than full; what sets it back."""
    cudnn: Any = torch.backends.cudnn
    restore: list[Callable[[], None]] = []
    try:
        convolutions, products = cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:  # set for single operations (torch 2.9), beside which these are not read
        return _set_each()
    if convolutions:
        cudnn.allow_tf32 = False
        restore.append(partial(setattr, cudnn, "allow_tf32", True))
    if products != "highest":
        torch.set_float32_matmul_precision("highest")
        restore.append(partial(torch.set_float32_matmul_precision, products))
    return restore


def _set_each() -> list[Callable[[], None]]:
    b: Any = torch.backends
    restore: list[Callable[[], None]] = []
    cuda, cpu = (b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn), b.mkldnn
    for operation in (*cuda, cpu.matmul, cpu.conv, cpu.rnn):
        before = operation.fp32_precision
        operation.fp32_precision = "ieee"
        restore.append(partial(setattr, operation, "fp32_precision", before))
    return restore
