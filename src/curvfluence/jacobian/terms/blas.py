"""Which BLAS and LAPACK take a product of rows and a decomposition: torch's or NumPy's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

_BY_NUMPY: ContextVar[list[int] | None] = ContextVar("operations that NumPy takes", default=None)

SMALL = 2**22  # operations, up to which a call costs as much as it saves
WIDE = 256  # rows, up to which a decomposition is too short to tell


def matmul(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x y over the last two axes, without gradients; written to `out` where that is given.

    On one thread of an AMD processor by NumPy's OpenBLAS: torch's MKL keeps its fastest kernels for
    other makes, and takes 5 to 30% longer for rows like ours. NumPy's threads are others than
    torch's, so not where either has several.
    """
    wanted = x.numel() * y.shape[-1] > SMALL and _is_faster()
    if not (wanted and takes(x, y) and _strided(x, y)):
        return torch.matmul(x, y, out=out)
    if out is None:
        lead = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        out = x.new_empty(*lead, x.shape[-2], y.shape[-1])
    taken(2 * out.numel() * x.shape[-1])
    np.matmul(x.numpy(), y.numpy(), out=out.numpy())
    return out


@contextmanager
def counting() -> Generator[list[int]]:
    """How many operations NumPy takes inside, which no mode of torch sees."""
    found = [0]
    token = _BY_NUMPY.set(found)
    try:
        yield found
    finally:
        _BY_NUMPY.reset(token)


def taken(operations: int) -> None:
    """Say how many operations go to NumPy."""
    found = _BY_NUMPY.get()
    if found is not None:
        found[0] += operations


def is_quicker(matrix: Tensor) -> bool:
    """Whether NumPy decomposes a matrix [n, n] in less time than torch: by a fifth, from some
    hundred rows up, where it multiplies faster. (It knows no LAPACK of float32.)"""
    wide = matrix.dtype == torch.float64 and len(matrix) >= WIDE
    return wide and _is_faster() and takes(matrix)


def takes(*several: Tensor) -> bool:
    """Whether NumPy can read them, and torch and every BLAS that is loaded have one thread each."""
    plain = all(
        x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.requires_grad
        for x in several
    )
    return plain and one_thread()


def one_thread() -> bool:
    return torch.get_num_threads() == 1 and all(
        library.num_threads == 1 for library in _blas().lib_controllers
    )


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


@cache
def _is_faster() -> bool:
    openblas = any(library.internal_api == "openblas" for library in _blas().lib_controllers)
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return openblas and torch.backends.mkl.is_available() and "AuthenticAMD" in processor


def _strided(*several: Tensor) -> bool:
    """Whether BLAS reads them as they lie; NumPy would multiply any other without one."""
    return all(1 in x.stride()[-2:] for x in several)
