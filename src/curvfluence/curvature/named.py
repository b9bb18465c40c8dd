"""Rungs and dampings by the names that a command line writes them by."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from math import isfinite
from typing import Any

from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.damping import Absolute, Damping, Relative
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.eshampoo import EShampoo
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import Rung
from curvfluence.curvature.shampoo import Shampoo
from curvfluence.curvature.tkfac import TKFAC
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher import fisher_named

# From the top down.
RUNGS: dict[str, Rung] = {
    type(rung).__name__: rung
    for rung in (
        Hessian(), GGN(), BlockGGN(), EKFAC(), KFAC(), EShampoo(), TKFAC(), Shampoo(), Diagonal(),
        Identity(),
    )
}  # fmt: skip


def rung_named(name: str, fisher: str | None = None, seed: int = 0) -> Rung:
    """EKFAC, or EKFAC[mc(1)] with its Fisher type, which `fisher` gives as well.

    Errors: `InputError` for a name that is none, or a Fisher type of a rung that takes none.
    """
    found = re.fullmatch(r"\s*([\w-]+)\s*(?:\[(.*)\])?\s*", name)
    by_case = {key.lower(): rung for key, rung in RUNGS.items()}
    rung = None if found is None else by_case.get(found[1].lower().replace("-", ""))
    if found is None or rung is None:
        raise InputError(f"there is no rung {name!r}; the ladder is {', '.join(RUNGS)}")
    fisher = found[2] if fisher is None else fisher
    if fisher is None:
        return rung
    if "fisher" not in {field.name for field in fields(rung)}:  # pyright: ignore[reportArgumentType]
        raise InputError(f"{type(rung).__name__} takes no Fisher type; seen {fisher!r}")
    settable: Any = rung
    return replace(settable, fisher=fisher_named(fisher, seed))


def damping_named(text: str) -> Damping:
    """1e-3 or absolute(1e-3) as `Absolute`, relative(0.1) as `Relative`."""
    found = re.fullmatch(r"\s*(?:(absolute|relative)\s*\()?\s*([-+.\deE]+)\s*\)?\s*", text.lower())
    try:
        value = float(found[2]) if found else float("nan")
    except ValueError:
        value = float("nan")
    if found is None or not isfinite(value):
        raise InputError(
            f"a damping is a number such as 1e-3, or relative(0.1), which is times the mean "
            f"eigenvalue; seen {text!r}"
        )
    return Relative(value) if found[1] == "relative" else Absolute(value)
