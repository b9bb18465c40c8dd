"""What a user's own function does and returns: the one place that its faults are named in."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from curvfluence.errors import CurvfluenceError, InputError


@contextmanager
def own_code(what: str) -> Generator[None]:
    """Within it an error that is not one of ours is the user's code's: raised as `InputError` that
    says so, with the error itself, and its traceback, as the cause."""
    try:
        yield
    except (CurvfluenceError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what} raised {type(error).__name__}: {error}") from error


def require_one_each(values: object, output: Tensor, what: str) -> Tensor:
    """`values` where they are one number an example, in the outputs' dtype.

    Errors: `InputError` with what was returned."""
    n = len(output)
    if not isinstance(values, Tensor):
        raise InputError(
            f"{what} must return a tensor of one value an example; seen {type(values).__name__}"
        )
    if values.shape != (n,):
        raise InputError(
            f"{what} must return one value an example, [N], and reduce nothing over them; for {n} "
            f"examples with outputs {list(output.shape[1:])} it returned shape "
            f"{tuple(values.shape)}"
        )
    if values.dtype != output.dtype:
        raise InputError(
            f"{what} returns {values.dtype} for outputs of {output.dtype}: give its constants the "
            "outputs' dtype, as in weight.to(output)"
        )
    return values


def require_differentiable(values: Tensor, what: str) -> Tensor:
    """`values` where autograd can take their derivative in the outputs."""
    if not values.requires_grad:
        raise InputError(
            f"{what} does not depend on the model's output, as far as autograd sees: take out what "
            "detaches it (.detach(), .item(), NumPy, torch.no_grad)"
        )
    return values
