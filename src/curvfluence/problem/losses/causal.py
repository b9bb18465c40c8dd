"""Next-token prediction as Hugging Face trains it: labels are the inputs, shifted by the loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.nn.functional import pad

from curvfluence.errors import InputError
from curvfluence.problem.losses.base import Loss, Part
from curvfluence.problem.losses.cross_entropy import CrossEntropy
from curvfluence.problem.losses.positions import Positions

WANTED = "CausalLM needs labels [B, T], the tokens themselves"
OTHERWISE = "For targets that are shifted already, use Positions(CrossEntropy())"


@dataclass(frozen=True)
class CausalLM(Positions):
    """ℓ_n = c_n Σ_t ℓ(f_nt, y_n,t+1): the outputs at a position predict the label of the next.

    For models that return [B, T, K] and labels [B, T] that are the tokens themselves, with
    `ignore_index` (−100) where a token is not to be predicted (padding, a prompt). The shift is the
    loss's, as in `transformers`, so the first label is nobody's target and the last outputs predict
    nothing. T − 1 positions, which is the number that c_n, columns and token influences have.

    `loss` is cross-entropy; everything else is as in `Positions`.
    """

    loss: Loss = field(default_factory=CrossEntropy)

    def bound(self, shape: tuple[int, ...], parts: Iterable[Part]) -> CausalLM:
        """The same for T − 1 positions. Errors: `InputError` where labels are not [N, T]."""
        if len(shape) != 2:
            raise InputError(
                f"CausalLM needs a model that returns [B, T, K]; it returned {list(shape)} for an "
                "example"
            )
        if shape[0] < 2:
            raise InputError("CausalLM needs two tokens or more: nothing follows a single one")
        bound = super().bound((shape[0] - 1, shape[1]), self._with_labels(parts))
        return replace(self, count=bound.count, size=bound.size, mean_count=bound.mean_count)

    @staticmethod
    def _with_labels(parts: Iterable[Part]) -> Iterator[Part]:
        for labels, weights in parts:
            if not isinstance(labels, Tensor) or labels.ndim != 2:
                seen = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
                raise InputError(f"{WANTED}; seen {seen}. {OTHERWISE}")
            yield labels, weights

    def _misfit(self, count: int, target: Tensor) -> str:
        """The same of labels that are not as many as the model's outputs."""
        seen = f"{target.shape[1]} labels for {count + 1} tokens"
        return f"{WANTED}; seen {seen}. {OTHERWISE}"

    def rows(self, output: Tensor, n: int) -> Tensor:
        """The outputs that predict something, [n, (T − 1) K]."""
        super().rows(output, n)
        return output[:, :-1].flatten(1)

    def aligned(self, target: Tensor) -> Tensor:
        """The label of the next position, [N, T − 1]."""
        return target[:, 1:]

    def counted_inside(self, target: Tensor) -> Tensor:
        """Positions whose outputs predict a label that counts; the last predicts none."""
        return pad(self.counted(target), (0, 1), value=False)
