"""Attention that can be differentiated twice, and vmapped."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from curvfluence.runtime.in_common import InCommon


@contextmanager
def plain() -> Generator[None]:
    """`scaled_dot_product_attention` by plain operations: torch's fused kernels have no second
    derivative, and vmap takes them one example at a time. In all threads of the process while it
    lasts: one that runs attention beside it gets the same numbers to rounding, and slower."""
    with _PLAIN():
        yield


@contextmanager
def _math() -> Generator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


_PLAIN = InCommon(_math)
