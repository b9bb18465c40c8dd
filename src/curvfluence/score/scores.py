"""Scores: influences of training examples on queries, with everything a reader needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.damping import Damping
from curvfluence.errors import InputError
from curvfluence.problem.data import require_finite
from curvfluence.runtime import budget
from curvfluence.score.certificate import Certificate


class Ranked(NamedTuple):
    """For each query k training examples, best first: their indices and influences, [Q, k]."""

    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class ScoreCost:
    """Seconds of wall clock of the fit and of the scores; bytes the curvature holds."""

    fit_seconds: float
    score_seconds: float
    nbytes: int


@dataclass(frozen=True, eq=False)
class Scores:
    """`values[q, n]`: the predicted change of measurement m_q when training example n is left out.

    In the units of m, with this sign and orientation everywhere. For a loss, positive means that
    the example helps (leaving it out raises the loss); for a measurement where higher is better,
    negative does. `help`, `top` and `bottom` account for that.
    """

    values: Tensor
    rung: str
    damping: Damping
    lambdas: tuple[tuple[str, float], ...]  # (block, λ)
    fisher: str | None
    measurement: str
    unit: str
    lower_is_better: bool
    leverage: bool
    coverage: tuple[CoverageLine, ...]
    cost: ScoreCost
    notes: tuple[str, ...]
    blocks: Mapping[str, Tensor] | None = None  # each block's share [Q, N], where asked for
    residuals: tuple[float, ...] | None = None  # of each query, where solved by iteration
    certifier: Callable[[str, torch.dtype | None], Certificate] | None = None

    def certificate(self, against: str = "GGN", dtype: torch.dtype | None = None) -> Certificate:
        """‖(A + diag(w) + λI) x − g‖/‖g‖ of every query, x by this rung's inverse and A the exact
        GGN or Hessian: how far the inverse is from the one that it approximates.

        By one product, see `certify`; the model and the curvature must still be alive.
        """
        if self.certifier is None:
            raise InputError("these scores were read back: the problem that made them is gone")
        return self.certifier(against, None if dtype is None else kinds.dtype(dtype, "dtype"))

    def __getstate__(self) -> dict[str, Any]:
        """Without `certifier`, which holds the problem and the curvature: what is saved is of the
        scores' own size, and read back it makes no certificate."""
        return {**vars(self), "certifier": None}

    @property
    def help(self) -> Tensor:
        """[Q, N]: +I where lower is better, −I where higher is."""
        return self.values if self.lower_is_better else -self.values

    def top(self, k: int = 10) -> Ranked:
        """The k most helpful training examples of each query, most helpful first."""
        return self._ranked(k, descending=True)

    def bottom(self, k: int = 10) -> Ranked:
        """The k most harmful training examples of each query, most harmful first."""
        return self._ranked(k, descending=False)

    def _ranked(self, k: int, *, descending: bool) -> Ranked:
        n = self.values.shape[1]
        if not 0 < kinds.count(k, "k", least=0) <= n:
            raise InputError(f"k must lie in 1..{n}, the number of training examples; seen {k}")
        sign = 1 if descending == self.lower_is_better else -1
        orders = [
            (sign * part).sort(dim=1, descending=True, stable=True).indices[:, :k].clone()
            for part in self.values.split(max(1, budget.RANKED // n))
        ]
        order = torch.cat(orders)
        return Ranked(order, self.values.gather(1, order))

    def for_group(self, group: Tensor | list[int]) -> Tensor:
        """The predicted change when all of `group` is left out, [Q]; [Q, m] for m groups at once.

        `group` holds training indices, a boolean mask [N], or weights [m, N] of how much of each
        example each group leaves out. The prediction is the sum over the group. Errors:
        `InputError` for leverage-corrected scores, whose sum is not a group prediction.
        """
        if self.leverage:
            raise InputError(
                "a sum of leverage-corrected influences is not the prediction for a group: compute "
                "the scores with leverage=False"
            )
        n = self.values.shape[1]
        chosen = kinds.tensor(group, "group")
        if chosen.ndim == 0 or chosen.is_complex():
            raise InputError(
                f"a group is indices [k], a mask [N] or weights [m, N]; seen {chosen.dtype} of "
                f"shape {tuple(chosen.shape)}"
            )
        if chosen.ndim == 2 or chosen.dtype == torch.bool:
            if chosen.shape[-1] != n:
                raise InputError(f"a mask needs {n} entries; seen shape {tuple(chosen.shape)}")
            require_finite(chosen, "weight of group")
            return self.values @ chosen.to(self.values).movedim(-1, 0)
        if chosen.ndim != 1 or chosen.is_floating_point():
            raise InputError(f"a group is indices [k], a mask [N] or weights [m, N]; seen {chosen}")
        if len(chosen) and bool(((chosen < 0) | (chosen >= n)).any()):
            raise InputError(f"group indices must lie in 0..{n - 1}; seen {chosen.tolist()}")
        if len(chosen.unique()) != len(chosen):
            raise InputError("a group names an example twice")
        return self.values[:, chosen].sum(1)

    def __str__(self) -> str:
        q, n = self.values.shape
        better = "lower" if self.lower_is_better else "higher"
        lines = [
            f"Influence of {n} training examples on {q} queries: {self.rung}"
            + (", leverage-corrected" if self.leverage else ""),
            f"  measurement  {self.measurement}, {better} is better; unit: {self.unit}",
            f"  damping      {self.damping}: λ = {_lambdas(self.lambdas)}",
        ]
        if self.fisher is not None:
            lines.append(f"  Fisher       {self.fisher}")
        lines.append(
            f"  cost         fit {self.cost.fit_seconds:.3g} s, "
            f"scores {self.cost.score_seconds:.3g} s"
        )
        lines += [f"  {c.rule}: {', '.join(c.parameters)} ({c.count:,})" for c in self.coverage]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _lambdas(lambdas: tuple[tuple[str, float], ...]) -> str:
    if len({value for _, value in lambdas}) == 1:
        return f"{lambdas[0][1]:.3g}"
    return ", ".join(f"{value:.3g} ({block})" for block, value in lambdas)
