"""Settings of the process that overlap in time are put back by the last that leaves."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch

from curvfluence.curvature.operators import negative_pairs
from curvfluence.runtime import attention, generators, precision
from curvfluence.runtime.in_common import InCommon
from curvfluence.runtime.threads import limited

NEW = hasattr(torch.backends.cudnn, "conv")  # from torch 2.9 on


def kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()


def products() -> str:
    matmul: Any = torch.backends.cuda.matmul
    return matmul.fp32_precision if NEW else torch.get_float32_matmul_precision()


@pytest.fixture
def less_precise() -> Generator[None]:
    matmul: Any = torch.backends.cuda.matmul
    before = products()
    if NEW:
        matmul.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision("high")
    yield
    if NEW:
        matmul.fp32_precision = before
    else:
        torch.set_float32_matmul_precision(before)


@contextmanager
def drawn_from() -> Generator[None]:
    with generators.preserved():
        torch.rand(3)
        yield


@pytest.mark.usefixtures("less_precise")
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@pytest.mark.parametrize(
    ("setting", "seen", "own"),
    [
        (attention.plain, kernels, False),
        (precision.full, products, False),
        (negative_pairs._UNSAID, lambda: len(warnings.filters), False),
        (partial(limited, 3), torch.get_num_threads, True),
        (drawn_from, lambda: torch.default_generator.get_state().numpy().tobytes(), True),
    ],
)
def test_whoever_leaves_first(
    setting: Callable[[], AbstractContextManager[None]],
    seen: Callable[[], object],
    own: bool,
    order: tuple[int, ...],
) -> None:
    before = seen()
    several = [setting() for _ in order]
    several[0].__enter__()
    inside = seen()
    assert inside != before
    for one in several[1:]:
        one.__enter__()
    for k in order:
        assert seen() == inside or own  # each makes its own, of which the last is seen
        several[k].__exit__(None, None, None)
    assert seen() == before


def test_one_that_could_not_be_made() -> None:
    calls = 0

    @contextmanager
    def made() -> Generator[None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("not yet")
        yield

    setting = InCommon(made)
    with pytest.raises(RuntimeError, match="not yet"), setting():
        pass
    with setting():
        assert calls == 2
    with setting():
        assert calls == 3


def test_what_is_raised_within_comes_out() -> None:
    left = []

    @contextmanager
    def made() -> Generator[None]:
        try:
            yield
        finally:
            left.append(True)

    setting = InCommon(made)
    with pytest.raises(ValueError, match="own"), setting():
        raise ValueError("own")
    assert left == [True]
