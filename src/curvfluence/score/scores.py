"""Scores: influences of training examples on queries, with everything a reader needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence._version import __version__
from curvfluence.curvature.coverage import CoverageLine
from curvfluence.curvature.damping import Damping
from curvfluence.errors import InputError
from curvfluence.problem.data import require_finite
from curvfluence.runtime import budget
from curvfluence.score.bounds import ErrorBounds
from curvfluence.score.certificate import Certificate, Certifier
from curvfluence.score.cost import ScoreCost
from curvfluence.score.saved import ALIKE, Id, SavedScores, save
from curvfluence.score.table import Columns, long_table, write_table

if TYPE_CHECKING:
    import pandas

SHOWN = 5  # queries, and examples of each, in a notebook


class Ranked(NamedTuple):
    """For each query k training examples, best first: their indices and influences, [Q, k]."""

    indices: Tensor
    values: Tensor

    def named(self, ids: Sequence[Id]) -> list[list[Id]]:
        """The same examples by the names that a list has for all of them."""
        return [[ids[n] for n in row] for row in self.indices.tolist()]


@dataclass(frozen=True, eq=False)
class Scores:
    """`values[q, n]`: the predicted change of measurement m_q when training example n is left out.

    In the units of m, with this sign and orientation everywhere. For a loss, positive means that
    the example helps (leaving it out raises the loss); for a measurement where higher is better,
    negative does. `help`, `top` and `bottom` account for that.
    """

    values: Tensor
    rung: str
    damping: Damping | str  # as it was said, where they were read back
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
    bounds: ErrorBounds | None = None  # of every score, where `bound_tolerance` was asked for
    inverse_error: float | None = None  # measured, of inverses at low rank; None without any
    certifier: Certifier | None = None
    train_ids: tuple[Id, ...] | None = None  # names of the user's own, in the order of the examples
    query_ids: tuple[Id, ...] | None = None

    def with_ids(
        self, train: Sequence[Id] | None = None, queries: Sequence[Id] | None = None
    ) -> Scores:
        """The same scores with names for training examples and queries, which tables, printing and
        `scores[name]` then use. Errors: `InputError` for another number of names, or one twice."""
        made = self
        q, n = self.values.shape
        for name, what, given, count in (
            ("train_ids", "training examples", train, n),
            ("query_ids", "queries", queries, q),
        ):
            if given is None:
                continue
            ids = tuple(_id(value) for value in kinds.listed(given, f"the names of {what}"))
            if len(ids) != count:
                raise InputError(f"{len(ids)} names for {count} {what}")
            if len(set(ids)) != count:
                raise InputError(f"the names of {what} must differ: some are there twice")
            made = replace(made, **{name: ids})
        return made

    def __getitem__(self, query: Id | slice | Sequence[int] | Tensor) -> Scores:
        """The scores of one query, by its name or number, or of several."""
        rows = self._rows(query)
        return replace(
            self,
            values=self.values[rows],
            blocks=None if self.blocks is None else {k: v[rows] for k, v in self.blocks.items()},
            residuals=None if self.residuals is None else tuple(self.residuals[k] for k in rows),
            query_ids=None if self.query_ids is None else tuple(self.query_ids[k] for k in rows),
            bounds=None if self.bounds is None else self.bounds.of(rows),
            certifier=None,
        )

    def _rows(self, query: Id | slice | Sequence[int] | Tensor) -> list[int]:
        count = len(self.values)
        if isinstance(query, slice):
            return list(range(*query.indices(count)))
        if self.query_ids is not None and isinstance(query, str | int) and query in self.query_ids:
            return [self.query_ids.index(query)]
        if isinstance(query, str):
            raise InputError(f"no query is called {query!r}; with_ids(queries=...) names them")
        rows = kinds.counts([query] if isinstance(query, int) else query, "queries", least=-count)
        for row in rows:
            if row >= count:
                raise InputError(f"there are {count} queries, 0 to {count - 1}; seen {row}")
        return [row % count for row in rows]

    def certificate(
        self, against: str = "GGN", dtype: torch.dtype | None = None, *, bounds: bool = False
    ) -> Certificate:
        """‖(A + diag(w) + λI) x − g‖/‖g‖ of every query, x by this rung's inverse and A the exact
        GGN or Hessian: how far the inverse is from the one that it approximates.

        By one product with A; the model and the curvature must still be alive. With
        `bounds`, and where scores were made to a `bound_tolerance`, it has their `error_bounds()`
        too, which hold against the GGN alone.
        """
        kinds.flag(bounds, "bounds")
        if bounds and against != "GGN":
            raise InputError(f"bounds hold against the exact GGN alone; seen against={against!r}")
        found = self._certifier(against, None if dtype is None else kinds.dtype(dtype, "dtype"))
        if against != "GGN":
            return found
        proven = self.error_bounds() if bounds and self.bounds is None else self.bounds
        return replace(found, bounds=proven)

    def error_bounds(self, rows: int = 1000) -> ErrorBounds:
        """A bound on the error of every score against influence under the exact GGN at the same
        damping, [Q, N], whatever the rung: (1/N) √(g_nᵀP⁻¹g_n) √(r_qᵀP⁻¹r_q), with r_q the residual
        of the certificate and P ⪯ GGN + D the part on its `rows` largest rows; more bound tighter.
        Cost and errors: as `score.bounds.error_bounds`. Not of leverage-corrected scores.
        """
        if self.leverage:
            raise InputError(
                "leverage-corrected scores are another quantity: score without leverage"
            )
        return self._certifier.bounds(self.values, rows)

    @property
    def _certifier(self) -> Certifier:
        if self.certifier is None:
            raise InputError(
                "these scores were read back, are of some queries alone, or were made within a "
                "memory: ask the scores that influence() gave, without memory"
            )
        return self.certifier

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

    def to_frame(
        self,
        k: int | None = None,
        *,
        train: Columns | None = None,
        queries: Columns | None = None,
    ) -> pandas.DataFrame:
        """A long table: `query`, `train`, `influence`, `rank` (from 1, the most helpful first) and
        `help` (the influence with the sign by which more is more help), a row for each query and
        training example, or for the `k` most helpful of each query. Ids stand where there are some.

        `train` and `queries` are columns about either, by name, one value an example: they go along
        as train_NAME and query_NAME.

        Errors: `InputError` for columns of another length, for a table of more than fifty million
        rows, and where pandas is not installed.
        """
        ranked = self.top(self.values.shape[1] if k is None else k)
        return long_table(
            ranked.indices,
            ranked.values,
            self.lower_is_better,
            (self.values.shape[1], self.train_ids, train or {}),
            (self.query_ids, queries or {}),
        )

    def to_csv(
        self,
        path: str | Path,
        k: int | None = None,
        *,
        train: Columns | None = None,
        queries: Columns | None = None,
    ) -> None:
        """`to_frame` as a file that is new."""
        write_table(self.to_frame(k, train=train, queries=queries), Path(path), "csv")

    def to_parquet(
        self,
        path: str | Path,
        k: int | None = None,
        *,
        train: Columns | None = None,
        queries: Columns | None = None,
    ) -> None:
        """`to_frame` as a file that is new; needs pyarrow."""
        write_table(self.to_frame(k, train=train, queries=queries), Path(path), "parquet")

    def save(self, path: str | Path) -> None:
        """PATH.npy with the numbers, and PATH.json beside it with everything else: no pickle, and
        nothing that only this code reads. `cf.load_scores` reads them back."""
        blocks = {} if self.blocks is None else dict(self.blocks)
        save(self.record, self.values, blocks, Path(path))

    @property
    def record(self) -> SavedScores:
        """What is said of the numbers, as a file holds it."""
        return SavedScores(
            version=__version__,
            queries=len(self.values),
            train=self.values.shape[1],
            damping=str(self.damping),
            blocks=tuple(self.blocks or ()),
            **{name: getattr(self, name) for name in ALIKE},
        )

    def _repr_html_(self) -> str:
        """In a notebook: what they are, and the most helpful examples of the first queries."""
        said = escape(str(self)).replace("\n", "<br>")
        count = min(SHOWN, self.values.shape[1])
        shown = self[:SHOWN].top(count)
        names = self.train_ids or range(self.values.shape[1])
        queries = self.query_ids or range(len(self.values))
        rows = "".join(
            f"<tr><th>{escape(str(query))}</th>"
            + "".join(
                f"<td>{escape(str(names[n]))}<br><small>{value:+.3g}</small></td>"
                for n, value in zip(indices, values, strict=True)
            )
            + "</tr>"
            for query, indices, values in zip(
                queries, shown.indices.tolist(), shown.values.tolist(), strict=False
            )
        )
        head = "".join(f"<th>{k + 1}</th>" for k in range(count))
        return (
            f"<p style='white-space: pre-wrap'>{said}</p><table><caption>The most helpful training "
            f"examples, with their influence in {escape(self.unit)}</caption><thead><tr>"
            f"<th>query</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )

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


def _id(value: object) -> Id:
    if isinstance(value, str):
        return value
    return kinds.count(value, "a name that is a number", least=-(2**53))


def _lambdas(lambdas: tuple[tuple[str, float], ...]) -> str:
    if len({value for _, value in lambdas}) == 1:
        return f"{lambdas[0][1]:.3g}"
    return ", ".join(f"{value:.3g} ({block})" for block, value in lambdas)
