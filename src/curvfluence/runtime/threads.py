"""How many threads torch computes with, for a while."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from curvfluence.runtime.in_common import InCommon


@contextmanager
def limited(count: int | None) -> Generator[None]:
    """`count` threads within, as many as before after; None leaves them as they are.

    The number is the process's: whoever set it last gives it to all Python threads that are in
    here, and when the last has left it is what the first found.
    """
    with _AS_FOUND(), _as_before():
        if count is not None:
            torch.set_num_threads(count)
        yield


@contextmanager
def _as_before() -> Generator[None]:
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


_AS_FOUND = InCommon(_as_before)
