"""float32 that is float32."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from curvfluence.runtime.in_common import InCommon


@contextmanager
def full() -> Generator[None]:
    """Products and convolutions of float32 tensors in float32, whatever torch is set to.

    On CUDA torch gives convolutions 10 bits of mantissa (TF32) unless told otherwise, and matrix
    products where `torch.set_float32_matmul_precision` says so. Comparing an example's gradient
    in a batch and alone would then find the rounding, and conjugate gradients would stop at it.
    Less than float32 is had by `Problem(..., autocast=torch.bfloat16)`, and named in results.

    The settings are of the process, not of a thread: the first that comes in sets them, the last
    that leaves puts them back. An operation that had been given just what it would inherit inherits
    it afterwards.
    """
    with _FULL():
        yield


@contextmanager
def _float32() -> Generator[None]:
    restore = _set()
    try:
        yield
    finally:
        for undo in restore:
            undo()


_FULL = InCommon(_float32)


def _set() -> list[Callable[[], None]]:
    """Set what is less than full; what sets it back, in order."""
    cudnn: Any = torch.backends.cudnn
    restore: list[Callable[[], None]] = []
    try:
        if _allows_tf32(cudnn):  # torch's own default; reads on as False, which a model may ask
            cudnn.allow_tf32 = False
            restore.append(partial(setattr, cudnn, "allow_tf32", True))
        if not hasattr(cudnn, "conv"):  # before torch 2.9
            products = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            restore.append(partial(torch.set_float32_matmul_precision, products))
            return restore
        for operation, inherited in _operations():
            before = operation.fp32_precision
            if before not in ("ieee", "none"):
                operation.fp32_precision = "ieee"
                back = "none" if before == inherited else before
                restore.append(partial(setattr, operation, "fp32_precision", back))
    except BaseException:
        for undo in restore:
            undo()
        raise
    return restore


def _allows_tf32(backend: Any) -> bool:
    """False also where single operations were set, beside which torch does not read this."""
    try:
        return bool(backend.allow_tf32)
    except RuntimeError:
        return False


def _operations() -> list[tuple[Any, str]]:
    """Kinds of operations that have a precision of their own, with the one that they inherit; one
    that was set to just that inherits it afterwards."""
    b: Any = torch.backends
    return [
        (b.cuda.matmul, b.fp32_precision),
        (b.cudnn.conv, b.cudnn.fp32_precision),
        (b.cudnn.rnn, b.cudnn.fp32_precision),
        (b.mkldnn.matmul, b.mkldnn.fp32_precision),
        (b.mkldnn.conv, b.mkldnn.fp32_precision),
        (b.mkldnn.rnn, b.mkldnn.fp32_precision),
    ]
