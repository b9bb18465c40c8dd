"""What can go wrong, by kind. Every message says what is wrong, what was seen, what to do next."""

from __future__ import annotations

__all__ = [
    "CoverageError",
    "CurvfluenceError",
    "CurvfluenceWarning",
    "InputError",
    "NonFiniteError",
    "SingularError",
]


class CurvfluenceError(ValueError):
    """A request that cannot be carried out as made; the command line exits with code 2."""


class InputError(CurvfluenceError):
    """Data, model, loss or settings that do not fit together."""


class NonFiniteError(InputError):
    """A NaN or infinity, named with the example that holds it."""


class SingularError(CurvfluenceError):
    """C + diag(w) + λI cannot be inverted at the given damping."""


class CoverageError(CurvfluenceError):
    """A rung that is asked to be strict has no rule for some parameter."""


class CurvfluenceWarning(UserWarning):
    """A result that is right as defined but that its reader should know more about."""
