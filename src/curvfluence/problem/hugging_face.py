"""What a `transformers.Trainer` trained: taken from it, without importing it."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.losses import (
    MSE,
    BinaryCrossEntropy,
    CausalLM,
    CrossEntropy,
    Loss,
    Positions,
)
from curvfluence.problem.readers import LABELS
from curvfluence.problem.structure import inside
from curvfluence.runtime import generators

COUPLED = ("sgd", "adagrad", "rmsprop")  # optimisers to whose gradient the decay is added
WHOLE = ("ForSequenceClassification", "ForImageClassification", "ForVideoClassification",
         "ForAudioClassification")  # fmt: skip


def of_trainer(trainer: Any, queries: Any, loss: Loss | None) -> dict[str, Any]:
    """The arguments of `Problem` that a trainer holds. See `Problem.from_trainer`."""
    args, model = getattr(trainer, "args", None), getattr(trainer, "model", None)
    if args is None or not isinstance(model, nn.Module) or not hasattr(trainer, "data_collator"):
        raise InputError(
            f"from_trainer takes a transformers.Trainer; seen {type(trainer).__name__}"
        )
    names = getattr(args, "label_names", None)
    if names and list(names) != [LABELS]:
        raise InputError(
            f"the trainer's labels are called {', '.join(names)}, and a problem's '{LABELS}': make "
            "the Problem by hand, with (inputs, targets)"
        )
    if getattr(trainer, "train_dataset", None) is None:
        raise InputError("the trainer has no train_dataset: nothing it could have learnt from")
    smoothing = float(getattr(args, "label_smoothing_factor", 0.0))
    train = trainer.get_eval_dataloader(trainer.train_dataset)  # in order, by its own collator
    if loss is None:
        _require_own_loss(trainer)
        with generators.preserved():  # a loader draws a seed
            batch = next(iter(train))
        loss = _loss_of(inside(model), smoothing, batch)
    decay = float(getattr(args, "weight_decay", 0.0))
    optimiser = str(getattr(getattr(args, "optim", ""), "value", getattr(args, "optim", "")))
    decayed = set(trainer.get_decay_parameter_names(model)) if decay else set[str]()
    unmodelled: list[str] = []
    if getattr(args, "fp16", False):
        unmodelled.append("float16 passes of training")
    if getattr(args, "neftune_noise_alpha", None):
        unmodelled.append("noise on embeddings (NEFTune)")
    return {
        "model": model,
        "loss": loss,
        "train": train,
        "queries": trainer.get_eval_dataloader(queries),
        "weight_decay": {
            name: decay
            for name, value in model.named_parameters()
            if value.requires_grad and name in decayed
        },
        "decoupled_decay": bool(decay) and not optimiser.startswith(COUPLED),
        "autocast": torch.bfloat16 if getattr(args, "bf16", False) else None,
        "unmodelled": unmodelled,
        "eval_mode": True,
    }


def _require_own_loss(trainer: Any) -> None:
    """Refuse a loss that the trainer was given, which nobody can see into."""
    own = "compute_loss" in {
        name
        for kind in type(trainer).__mro__
        if not kind.__module__.startswith("transformers.")
        for name in vars(kind)
    }
    if own or getattr(trainer, "compute_loss_func", None) is not None:
        raise InputError(
            "the trainer computes a loss of its own: say which it is, loss=..., by one of "
            "curvfluence's or CustomLoss(function of outputs and labels)"
        )


def _loss_of(model: nn.Module, smoothing: float, batch: Any) -> Loss:
    """The loss that the model computes of its labels, by what it is for."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    kind, config = type(base).__name__, getattr(base, "config", None)
    cross = CrossEntropy(label_smoothing=smoothing)
    if getattr(config, "is_encoder_decoder", False):
        return Positions(cross)
    if re.search("ForMaskedLM|ForTokenClassification", kind):
        return Positions(cross)
    if re.search("ForCausalLM|LMHead|ForConditionalGeneration", kind):
        return CausalLM(cross)
    if kind.endswith(WHOLE):
        return _of_whole(config, cross, batch.get(LABELS) if hasattr(batch, "get") else None)
    raise InputError(
        f"what {kind} is trained on is not known here: say which loss it is, loss=..., by one of "
        "curvfluence's or CustomLoss(function of outputs and labels)"
    )


def _of_whole(config: Any, cross: CrossEntropy, labels: Any) -> Loss:
    """As `ForSequenceClassificationLoss` tells regression, one label and several apart."""
    problem = getattr(config, "problem_type", None)
    if problem is None:
        whole = isinstance(labels, Tensor) and not labels.is_floating_point()
        several = "single_label_classification" if whole else "multi_label_classification"
        problem = "regression" if getattr(config, "num_labels", 2) == 1 else several
    if problem == "regression":
        return MSE()
    return cross if problem == "single_label_classification" else BinaryCrossEntropy()
