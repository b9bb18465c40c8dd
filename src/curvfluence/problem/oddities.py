"""What is odd about inputs and labels, though it runs: said, since only their owner can know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curvfluence.problem.data import Examples
from curvfluence.problem.losses import CausalLM, CrossEntropy, Loss, Positions
from curvfluence.problem.stream import Data
from curvfluence.problem.structure import Structure
from curvfluence.problem.tree import Batched, Tree, leaves

ROWS = 8  # examples that are looked at


def said_of_shift(loss: Loss, examples: Examples) -> str | None:
    """What to say where the labels are the inputs themselves and the loss does not shift them, or
    are the inputs' next and the loss shifts them again; None otherwise."""
    y = examples.targets
    if not isinstance(loss, Positions) or not isinstance(y, Tensor) or y.is_floating_point():
        return None
    tokens = [x for x in leaves(examples.inputs) if x.shape == y.shape and _whole(x)]
    few = slice(0, ROWS)
    for x in tokens:
        if isinstance(loss, CausalLM):
            if _alike(x[few, 1:], y[few, :-1], loss.ignore_index):
                return (
                    "the labels are the inputs' next tokens, and CausalLM shifts them once more: "
                    "give the tokens themselves as labels, or use Positions(CrossEntropy())"
                )
        elif _alike(x[few], y[few], loss.ignore_index) and not any(
            _alike(other[few, 1:], y[few, :-1], loss.ignore_index) for other in tokens
        ):  # a decoder that reads its labels one place later has them shifted
            return (
                "the labels are the inputs themselves, and Positions takes them as they stand: a "
                "language model that predicts the next token needs CausalLM(), which shifts them"
            )
    return None


def said_of_probabilities(loss: Loss, outputs: Tensor) -> str | None:
    """Outputs of a few examples that are probabilities already, where the loss takes logits."""
    if not isinstance(loss, CrossEntropy) or outputs.shape[-1] < 2:
        return None
    p_bk = outputs.detach().double()
    one = (p_bk.sum(-1) - 1).abs().amax() < 1e-4
    if bool((p_bk < 0).any()) or not bool(one):
        return None
    return (
        "the outputs are not negative and sum to 1, as if the model ended in a softmax, and "
        "CrossEntropy takes logits: leave the softmax out, or give CustomLoss(negative log of them)"
    )


def said_of_shared(train: Data, queries: Data) -> str | None:
    """Queries that are training examples, input and target."""
    if type(train) is not type(queries):
        return None  # the numbers of the one are of what was read, of the other as it is held
    known, asked = train.contents.cpu(), queries.contents.cpu()
    shared = torch.isin(asked, known).nonzero().flatten()
    if not len(shared):
        return None
    q = int(shared[0])
    n = int((known == asked[q]).nonzero()[0])
    count = "one query is" if len(shared) == 1 else f"{len(shared)} queries are"
    return (
        f"{count} in the training set too (query {q} is example {n}): an example's influence on "
        "itself is large whatever the model learnt"
    )


def said_of_unread(structure: Structure, unread: tuple[str, ...]) -> str | None:
    """Inputs that no operation of the model takes: keys that a forward with **kwargs swallows."""
    if not unread:
        return None
    names = ", ".join(unread)
    kind = type(structure.modules).__name__
    return (
        f"the model ({kind}) does not read the inputs' {names}: scores are of one that does not "
        "see them. Rename them to what it reads, or leave them out"
    )


def said_of_padding(model: nn.Module, inputs: Batched, n: int) -> str | None:
    """Token ids that begin or end in padding, without a mask, for a model that says what its
    padding is; `inputs` are those of some of the n training examples, or of all."""
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    if not isinstance(inputs, Tree) or not isinstance(pad, int):
        return None
    named = dict(zip(inputs.paths, inputs.leaves, strict=True))
    ids = named.get("input_ids")
    if ids is None or not _whole(ids) or any("mask" in path for path in named):
        return None
    padded = int(((ids[:, -1] == pad) | (ids[:, 0] == pad)).sum())
    if not padded:
        return None
    of = n if len(ids) == n else f"the first {len(ids)}"
    return (
        f"{padded} of {of} examples end or begin in padding (token {pad}), and there is no "
        "attention_mask: the model reads it as text. Give the mask that the tokenizer makes"
    )


def _whole(x: Tensor) -> bool:
    return x.ndim == 2 and not x.is_floating_point() and x.dtype != torch.bool


def _alike(x: Tensor, y: Tensor, ignored: int) -> bool:
    counted = y != ignored
    return bool(counted.any()) and bool(((x == y) | ~counted).all())
