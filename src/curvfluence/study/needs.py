"""What a piece of work needs: peak memory as the system saw it, and floating-point operations."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from curvfluence.jacobian.terms import blas

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
aten: Any = torch.ops.aten


@dataclass(frozen=True)
class Needs:
    """`peak_bytes`: the peak resident memory above what was held at the start, of the whole
    process (None where the system keeps no resettable peak). `flops`: matrix products and
    factorisations; elementwise work is not counted."""

    peak_bytes: int | None
    flops: int


def needs(work: Callable[[], object]) -> Needs:
    """Run `work` once and say what it needed.

    Peak memory needs Linux with glibc: libraries' workspaces count, memory that the allocator
    keeps from before does not. A factorisation of n × n counts n³/3 (Cholesky) or 9 n³
    (eigenvalues and eigenvectors; 4/3 n³ values alone), as LAPACK's working notes do; a Gram matrix
    that NumPy makes by symmetry half of a product.
    """
    before = _restart()
    counter = FlopCounterMode(display=False, custom_mapping=_COSTS)
    with blas.counting() as by_numpy, counter:
        work()
    peak = None if before is None else max(0, _status("VmHWM") - before)
    return Needs(peak, counter.get_total_flops() + by_numpy[0])


def _restart() -> int | None:
    """Reset the peak to the present; what is resident now, or None where that cannot be done."""
    try:
        # Freed memory that the allocator keeps would hide what is allocated next.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def _eigh(shape: tuple[int, ...], *args: Any, compute_v: bool = True, **settings: Any) -> int:
    vectors = args[1] if len(args) > 1 else compute_v
    return prod(shape[:-2]) * (9 * shape[-1] ** 3 if vectors else 4 * shape[-1] ** 3 // 3)


def _cholesky(shape: tuple[int, ...], *args: Any, **settings: Any) -> int:
    return prod(shape[:-2]) * shape[-1] ** 3 // 3


def _cholesky_solve(
    b: tuple[int, ...], factor: tuple[int, ...], *args: Any, **settings: Any
) -> int:
    return 2 * prod(b) * factor[-1]


_COSTS: dict[Any, Any] = {
    aten._linalg_eigh: _eigh,
    aten.linalg_cholesky_ex: _cholesky,
    aten.cholesky_solve: _cholesky_solve,
}
