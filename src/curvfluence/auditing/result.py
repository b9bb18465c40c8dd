"""What an audit found: every criterion for every training example, the most suspicious first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.auditing.duplicates import Duplicates
from curvfluence.errors import InputError
from curvfluence.score.neighbours import Neighbours

if TYPE_CHECKING:
    import pandas

SHARE = 0.15  # of the list that a recall is of


@dataclass(frozen=True)
class Criterion:
    """A reason to look at an example: the larger the value, the more so."""

    name: str
    title: str
    meaning: str


CRITERIA = (
    Criterion(
        "loss",
        "Loss",
        "ℓ_n, how badly the model fits the example’s own label: what every other criterion has to "
        "beat",
    ),
    Criterion(
        "self_influence",
        "Self-influence",
        "how much the example’s loss would rise had it been left out",
    ),
    Criterion(
        "left_out_loss",
        "Loss if left out",
        "the sum of both: a forecast of the loss that it would have as a new example",
    ),
    Criterion(
        "disagreement",
        "Disagreement of neighbours",
        "whether the examples that the model sees as most like it pull against its label (1) or "
        "along with it (−1)",
    ),
    Criterion(
        "harm",
        "Harm to held-out queries",
        "how much the mean loss of the queries would fall had it been left out",
    ),
)


@dataclass(frozen=True, eq=False)
class Audit:
    """`values` has for each criterion a number for every training example [N], larger where it is
    more suspicious; NaN where it was not computed.

    `order` names the criterion that lists go by unless another is asked for. `neighbours` are of
    the examples whose neighbours were looked for. `labels` [N] are the given classes and
    `suggested` [N] those that the opposing neighbours have (−1 for none), where targets are
    classes. `flipped` are the examples that are known to be wrong, where somebody knows.
    """

    values: Mapping[str, Tensor]
    order: str
    neighbours: Neighbours
    duplicates: tuple[Duplicates, ...]
    labels: Tensor | None
    suggested: Tensor | None
    flipped: tuple[int, ...] | None
    rung: str
    damping: str
    unit: str
    notes: tuple[str, ...]
    seconds: float

    def __len__(self) -> int:
        return len(self.values["loss"])

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return tuple(one for one in CRITERIA if one.name in self.values)

    def ranking(self, by: str | None = None) -> Tensor:
        """Training examples, the most suspicious first, [N]; those without a value come last, by
        their loss. Errors: `InputError` for a criterion that there is not."""
        name = self.order if by is None else by
        if name not in self.values:
            raise InputError(f"there is no criterion {name!r}; there are {', '.join(self.values)}")
        value, loss = self.values[name], self.values["loss"]
        by_loss = loss.argsort(descending=True, stable=True)
        known = value.nan_to_num(nan=-torch.inf)[by_loss]
        return by_loss[known.argsort(descending=True, stable=True)]

    def suspects(self, k: int = 20, by: str | None = None) -> Tensor:
        """The k most suspicious."""
        k = kinds.count(k, "k")
        if k > len(self):
            raise InputError(f"k must be at most {len(self)}, the training examples; seen {k}")
        return self.ranking(by)[:k]

    def recall(self, by: str | None = None, share: float = SHARE) -> float:
        """The share of the known wrong labels among the first `share` of the list. Errors:
        `InputError` where none are known."""
        if not self.flipped:
            raise InputError("no labels are known to be wrong: there is nothing to recall")
        if not 0 < share <= 1:
            raise InputError(f"share must lie in (0, 1]; seen {share}")
        first = set(self.ranking(by)[: int(share * len(self))].tolist())
        return len(first & set(self.flipped)) / len(self.flipped)

    def auc(self, by: str | None = None) -> float:
        """The chance that a wrong label stands above a right one in the list (area under the ROC
        curve). Errors: as `recall`."""
        if not self.flipped:
            raise InputError("no labels are known to be wrong: there is nothing to recall")
        order = self.ranking(by)
        place = torch.empty(len(self), dtype=torch.double)
        place[order] = torch.arange(len(self), 0, -1, dtype=torch.double)
        wrong = torch.zeros(len(self), dtype=torch.bool)
        wrong[list(self.flipped)] = True
        count = int(wrong.sum())
        above = float(place[wrong].sum()) - count * (count + 1) / 2
        return above / (count * max(1, len(self) - count))

    def to_frame(self, ids: Sequence[str | int] | None = None) -> pandas.DataFrame:
        """A row for each training example, in the order of `ranking`: `example`, its place, every
        criterion, label and suggestion where there are some. Errors: `InputError` without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError(
                "a frame needs pandas: pip install 'curvfluence[frames]', or pandas by itself"
            ) from error
        order = self.ranking()
        columns: dict[str, object] = {
            "example": order.numpy() if ids is None else [ids[n] for n in order.tolist()],
            "place": range(1, len(self) + 1),
            **{name: value[order].numpy() for name, value in self.values.items()},
        }
        if self.labels is not None and self.suggested is not None:
            columns["label"] = self.labels[order].numpy()
            columns["suggested"] = self.suggested[order].numpy()
        return pandas.DataFrame(columns)

    def __str__(self) -> str:
        lines = [
            f"Audit of {len(self):,} training examples: {self.rung}, damping {self.damping}",
            f"  most suspicious by {self.order}: {self.suspects(min(10, len(self))).tolist()}",
        ]
        conflicting = sum(group.conflicting for group in self.duplicates)
        lines.append(
            f"  {len(self.duplicates)} groups of equal inputs, {conflicting} of them with "
            "different targets"
        )
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
