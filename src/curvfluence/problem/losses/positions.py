"""Outputs with positions (sequences, segmentation): an example's loss is over its positions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError, about, numbered
from curvfluence.problem.losses.base import Loss, Part, Wrapping

Reduction = Literal["token_mean", "sum", "mean"]


@dataclass(frozen=True)
class Positions(Wrapping):
    """ℓ_n = c_n Σ_t ℓ(f_nt, y_nt) over the counted positions t of example n.

    The model returns [B, T, K] (or more position axes, K last). `reduction` must be what training
    minimised:

    - `token_mean`: c_n = 1 / (mean count of counted positions over the training set), so that
      (1/N) Σ ℓ_n is the mean over tokens;
    - `sum`: c_n = 1;
    - `mean`: c_n = 1 / (counted positions of n).

    A position whose integer target is `ignore_index` is not counted. S is block diagonal over
    positions, √c_n S_nt: T (K − 1) columns for cross-entropy. A sampled Fisher draws a label at
    every position at once, independently, so one draw is one column: E[s sᵀ] = S Sᵀ.

    Units: those of `loss`. `bound` fixes K and the mean count; `Problem` and `train` call it. T is
    that of each batch, where batches are padded to lengths of their own; `count` is the first's.
    """

    loss: Loss
    reduction: Reduction = "token_mean"
    ignore_index: int = -100
    count: int = field(default=0, repr=False)  # T, once bound
    axes: int = field(default=1, repr=False)  # of positions
    size: int = field(default=0, repr=False)  # K
    # of counted positions, over the training set, once bound
    mean_count: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.loss, Loss) or isinstance(self.loss, Positions):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"Positions takes the loss of one position, such as CrossEntropy(); seen "
                f"{self.loss!r}"
            )
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"ignore_index must be a whole number; seen {self.ignore_index!r}")
        if kinds.text(self.reduction, "reduction") not in ("token_mean", "sum", "mean"):
            raise InputError(
                "reduction must be token_mean, sum or mean, whatever training minimised; seen "
                f"{self.reduction!r}"
            )

    def bound(self, shape: tuple[int, ...], parts: Iterable[Part]) -> Positions:
        if len(shape) < 2:
            raise InputError(
                f"Positions needs a model that returns [B, T, K]; it returned {list(shape)} for an "
                "example. Without positions, use the loss itself"
            )
        bound = replace(self, count=prod(shape[:-1]), axes=len(shape) - 1, size=shape[-1])
        counted = total = 0.0
        for targets, weights in parts:
            counted_n = bound.counted(targets).sum(1).double()
            v_n = torch.ones_like(counted_n) if weights is None else weights
            counted, total = counted + float((v_n * counted_n).sum()), total + float(v_n.sum())
        return replace(bound, mean_count=counted / total)

    @property
    def positions(self) -> int:
        return self.count

    @property
    def is_bound(self) -> bool:
        return self.count > 0

    def bound_as(self, other: Loss) -> Loss:
        if not isinstance(other, Positions):
            raise InputError(f"{self} needs outputs with positions; the loss is {other}")
        return replace(
            self,
            count=other.count,
            axes=other.axes,
            size=other.size,
            mean_count=other.mean_count,
        )

    def rows(self, output: Tensor, n: int) -> Tensor:
        if output.ndim < 3 or len(output) != n:
            raise InputError(
                f"the model must return [B, T, K] for a loss over positions; for {n} examples it "
                f"returned shape {tuple(output.shape)}"
            )
        return output.flatten(1)

    def aligned(self, target: Tensor) -> Tensor:
        """The target of each position, at its place: as they are."""
        return target

    def counted(self, target: Tensor) -> Tensor:
        """Which positions count, [N, T]."""
        self._require_bound()
        target = self.aligned(target)
        flat = target.reshape(len(target), self._length(target), -1)
        if target.is_floating_point():
            return torch.ones(flat.shape[:2], dtype=torch.bool, device=target.device)
        return (flat != self.ignore_index).all(-1)

    def _length(self, aligned: Tensor) -> int:
        """T of targets: of their axes of positions, or as bound where those are flattened."""
        held = aligned[0].numel()
        if aligned.ndim <= self.axes:
            return self.count if held % self.count == 0 else held
        length = prod(aligned.shape[1 : 1 + self.axes])
        vectors = aligned.is_floating_point() and self.size > 1 and aligned.ndim == 1 + self.axes
        return self.count if vectors and held % self.count == 0 else length

    def check(self, n_outputs: int, target: Tensor) -> None:
        if self.aligned(target)[0].numel() % self._length(self.aligned(target)):
            raise InputError(
                f"the model returns {self.count} positions an example; seen targets of shape "
                f"{tuple(target.shape)}"
            )
        counted_nt = self.counted(target)
        empty = (counted_nt.sum(1) == 0).nonzero().flatten()
        if len(empty):
            raise about(
                int(empty[0]),
                InputError,
                "example {n} has no counted position: all its targets are "
                f"{self.ignore_index} ({len(empty)} such examples)",
            )
        count = counted_nt.shape[1]
        y, keep = self._targets(target, count), counted_nt.flatten().nonzero().flatten()
        with numbered(lambda row: int(keep[row]) // count):
            self.loss.check(self.size, y[keep])

    def of_rows(self, output: Tensor, target: Tensor) -> tuple[Loss, Tensor, Tensor]:
        keep = self.counted(target).flatten()
        f_rk, y_r = self._single(output, target)
        return self.loss.of_rows(f_rk[keep], y_r[keep])

    def columns(self, n_outputs: int) -> int:
        return n_outputs // self.size * self.loss.columns(self.size)

    def rank(self, output: Tensor, target: Tensor) -> int:
        return self._positions_of(output) * self.loss.rank(*self._single(output, target))

    def _require_bound(self) -> None:
        if not self.count:
            raise InputError("this Positions has no training set yet: Problem or train give it one")

    def _positions_of(self, output: Tensor) -> int:
        """T of outputs [N, T K]."""
        self._require_bound()
        return output.shape[-1] // self.size

    def _targets(self, target: Tensor, count: int) -> Tensor:
        """Targets of single positions, [N T] or [N T, ...]; an ignored label becomes 0."""
        given, target = target, self.aligned(target)
        size = len(target) * count
        if target.numel() % size or not target.numel():
            raise InputError(self._misfit(count, given))
        y = target.reshape(size) if target.numel() == size else target.reshape(size, -1)
        return y if y.is_floating_point() else torch.where(y == self.ignore_index, 0, y)

    def _misfit(self, count: int, target: Tensor) -> str:
        """What to say of targets that do not go with T = `count` positions of outputs."""
        return (
            f"the model returns {count} positions for examples whose targets have shape "
            f"{tuple(target.shape[1:])}"
        )

    def _single(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        count = self._positions_of(output)
        return output.reshape(len(output) * count, -1), self._targets(target, count)

    def _by_example(self, output: Tensor) -> AbstractContextManager[None]:
        """Errors about the loss of a position are raised as about its example."""
        count = self._positions_of(output)
        return numbered(lambda row: row // count)

    def _scale(self, target: Tensor, like: Tensor) -> Tensor:
        """c_n where counted, 0 elsewhere, [N, T]."""
        counted_nt = self.counted(target)
        if self.reduction == "mean":
            return counted_nt.to(like.dtype) / counted_nt.sum(1, keepdim=True).clamp_min(1)
        c = 1.0 if self.reduction == "sum" else 1.0 / self.mean_count
        return counted_nt.to(like.dtype) * c

    def values(self, output: Tensor, target: Tensor) -> Tensor:
        self._require_bound()
        each_nt = self.loss.values(*self._single(output, target)).view(len(output), -1)
        return (each_nt * self._scale(target, output)).sum(1)

    def gradient(self, output: Tensor, target: Tensor) -> Tensor:
        with self._by_example(output):
            each = self.loss.gradient(*self._single(output, target))
        return self._scaled(each, output, target)

    def factor(self, output: Tensor, target: Tensor) -> Tensor:
        with self._by_example(output):
            s_rkc = self.loss.factor(*self._single(output, target))
        root_nt = self._scale(target, output).sqrt()
        n, t, (_, k, c) = len(output), self._positions_of(output), s_rkc.shape
        s_ntkc = s_rkc.reshape(n, t, k, c) * root_nt[:, :, None, None]
        out = output.new_zeros(n, t, k, t, c)
        at = torch.arange(t, device=output.device)
        out[:, at, :, at] = s_ntkc.transpose(0, 1)
        return out.reshape(n, t * k, t * c)

    def factored_product(self, output: Tensor, target: Tensor, v: Tensor) -> Tensor:
        v_rk = v.reshape(len(v) * self._positions_of(v), -1)
        with self._by_example(output):
            each = self.loss.factored_product(*self._single(output, target), v_rk)
        return self._scaled(each, output, target)

    def hessian_product(self, output: Tensor, target: Tensor, v: Tensor) -> Tensor:
        v_rk = v.reshape(len(v) * self._positions_of(v), -1)
        with self._by_example(output):
            each = self.loss.hessian_product(*self._single(output, target), v_rk)
        return self._scaled(each, output, target)

    def _scaled(self, each_rk: Tensor, output: Tensor, target: Tensor) -> Tensor:
        each_ntk = each_rk.view(*output.shape[:1], self._positions_of(output), -1)
        scale_nt = self._scale(target, output)
        if bool((scale_nt == 1).all()):  # a sum over positions that all count
            return each_ntk.flatten(1)
        return (each_ntk * scale_nt[:, :, None]).flatten(1)

    def coordinates(self, output: Tensor, target: Tensor) -> Tensor:
        with self._by_example(output):
            t_ntc = self.loss.coordinates(*self._single(output, target))
        root_nt = self._scale(target, output).sqrt()
        return (t_ntc.view(*root_nt.shape, -1) * root_nt[:, :, None]).flatten(1)

    def sample(
        self, output: Tensor, target: Tensor, *, draws: int, generator: torch.Generator
    ) -> Tensor:
        f_rk, y_r = self._single(output, target)
        with self._by_example(output):
            s_rkd = self.loss.sample(f_rk, y_r, draws=draws, generator=generator)
        root_nt = self._scale(target, output).sqrt()
        s_ntkd = s_rkd.view(*root_nt.shape, -1, draws) * root_nt[:, :, None, None]
        return s_ntkd.flatten(1, 2)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor | None:
        each = self.loss.surprise(*self._single(output, target))
        if each is None:
            return None
        return (each.view(len(output), -1) * self.counted(target)).sum(1)

    def worst(self, output: Tensor, target: Tensor, labels: Tensor) -> Tensor | None:
        among = self._targets(labels, self._length(self.aligned(labels)))
        each = self.loss.worst(*self._single(output, target), among)
        if each is None:
            return None
        return (each.view(len(output), -1) * self._scale(target, output)).sum(1)

    def notes(self, output: Tensor, target: Tensor) -> tuple[str, ...]:
        keep = self.counted(target).flatten()
        f_rk, y_r = self._single(output, target)
        return self.loss.notes(f_rk[keep], y_r[keep])
