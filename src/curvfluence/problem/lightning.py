"""What a Lightning `Trainer` trained: taken from it, without importing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from curvfluence.errors import InputError
from curvfluence.problem.losses import Loss
from curvfluence.problem.structure import inside, tensors

BFLOAT16 = "bf16-mixed"


def of_lightning(
    trainer: Any, queries: Any, loss: Loss, decoupled: bool | None = None
) -> dict[str, Any]:
    """The arguments of `Problem` that a trainer holds. See `Problem.from_lightning`."""
    model = getattr(trainer, "lightning_module", None)
    if not hasattr(trainer, "train_dataloader") or not hasattr(trainer, "optimizers"):
        raise InputError(f"from_lightning takes a lightning Trainer; seen {type(trainer).__name__}")
    if not isinstance(model, nn.Module) or not trainer.optimizers:
        raise InputError(
            "the trainer has no model yet: make the problem after trainer.fit(module, ...)"
        )
    train = _in_order(trainer.train_dataloader)
    decay, decoupled = _decay(inside(model), trainer.optimizers, decoupled)
    precision = str(getattr(trainer, "precision", ""))
    return {
        "model": model,
        "loss": loss,
        "train": train,
        "queries": _like(train, queries),
        "weight_decay": decay,
        "decoupled_decay": decoupled,
        "autocast": torch.bfloat16 if precision == BFLOAT16 else None,
        "unmodelled": tuple(_unmodelled(trainer, precision)),
        "eval_mode": True,
    }


def _in_order(loader: Any) -> DataLoader[Any]:
    """The training loader's data by its own collator, each once and in order."""
    if not isinstance(loader, DataLoader):
        raise InputError(
            f"the trainer's training data come from a {type(loader).__name__}, not from one "
            "DataLoader: make the Problem by hand, with the data in a fixed order"
        )
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn
    )


def _like(train: DataLoader[Any], queries: Any) -> Any:
    """A data set of queries in the batches of the training data; anything else as it is."""
    if isinstance(queries, DataLoader | tuple | dict):
        return queries
    return DataLoader(queries, batch_size=train.batch_size, collate_fn=train.collate_fn)


def _decay(
    model: nn.Module, optimizers: Any, decoupled: bool | None
) -> tuple[dict[str, float], bool]:
    """Weight decay by parameter, and whether the optimisers leave it out of the gradient."""
    names = {id(value): name for name, value in tensors(model).items()}
    decay: dict[str, float] = {}
    found: set[bool] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            value = float(group.get("weight_decay", 0.0))
            held = [names[id(p)] for p in group["params"] if id(p) in names]
            if value and held:
                decay |= dict.fromkeys(held, value)
                found.add(_decoupled(optimizer, group) if decoupled is None else decoupled)
    if len(found) > 1:
        raise InputError(
            "one of the trainer's optimisers adds its weight decay to the gradient and another "
            "does not, and a problem has the one kind or the other: say which, decoupled_decay=..."
        )
    return decay, True in found


def _decoupled(optimizer: Any, group: dict[str, Any]) -> bool:
    """Whether it takes the decay off the weights, as AdamW does, not into the gradient."""
    own, kind = group.get("decoupled_weight_decay"), type(optimizer)
    if own is not None:
        return bool(own)
    if "AdamW" in {base.__name__ for base in kind.__mro__}:
        return True
    if kind.__module__.startswith("torch.optim"):
        return False
    raise InputError(
        f"whether {kind.__name__} adds its weight decay to the gradient is not known here: say so, "
        "decoupled_decay=False, or True where it does not"
    )


def _unmodelled(trainer: Any, precision: str) -> Iterator[str]:
    """What training had that the objective lacks, as far as the trainer knows it."""
    if precision == "16-mixed":
        yield "float16 passes of training"
    clip = getattr(trainer, "gradient_clip_val", None)
    if clip:
        yield f"gradients clipped at {clip}"
    limit = getattr(trainer, "limit_train_batches", 1.0)
    if isinstance(limit, int) or limit < 1:
        yield f"limit_train_batches={limit} of training: some examples may not have been seen"
    for callback in getattr(trainer, "callbacks", ()):
        if "WeightAveraging" in type(callback).__name__:
            yield f"{type(callback).__name__} of training"
