"""How large a dense matrix may be."""

from __future__ import annotations

from curvfluence.errors import InputError

DENSE_LIMIT = 30_000  # parameters above which a dense matrix is refused


def too_large(size: int) -> bool:
    return size > DENSE_LIMIT


def require_dense(rung: str, size: int, what: str) -> None:
    """Refuse a dense matrix that no longer fits a desk."""
    if too_large(size):
        raise InputError(
            f"{rung} would form a dense matrix for {what} of {size:,} parameters "
            f"({size * size * 4 / 2**30:.0f} GiB in float32); the limit is {DENSE_LIMIT:,}. "
            "EKFAC is the next cheaper rung"
        )
