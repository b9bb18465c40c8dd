"""Work spread over Python threads in which torch itself runs single-threaded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

from curvfluence.runtime.threads import limited

A = TypeVar("A")
B = TypeVar("B")


def spread(
    function: Callable[[A], B], items: Sequence[A], threads: int
) -> Generator[tuple[int, B], None, None]:
    """(position, function(item)) as they get done, without autograd.

    One torch thread for each item keeps the numbers independent of how many cores there are, and
    small operations run faster than with torch's own threads. torch lets go of Python's lock
    inside its operations. torch's thread count is restored; after an error the rest is cancelled.
    """

    def alone(item: A) -> B:
        torch.set_num_threads(1)
        with torch.no_grad():
            return function(item)

    pool = ThreadPoolExecutor(max_workers=min(threads, len(items)))
    with limited(None):
        try:
            positions = {pool.submit(alone, item): i for i, item in enumerate(items)}
            for future in as_completed(positions):
                yield positions.pop(future), future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
