"""What a problem is given: each part checked before any work, and refused with what to do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from curvfluence import kinds
from curvfluence.errors import CurvfluenceError, InputError
from curvfluence.problem.losses import Loss
from curvfluence.problem.measurement import LossMeasurement, Measurement
from curvfluence.problem.stream import Data
from curvfluence.problem.structure import Structure, inside, tensors
from curvfluence.problem.tree import Batched, Tree, described, named_leaves, paths_of
from curvfluence.runtime import budget, generators
from curvfluence.runtime import device as machine
from curvfluence.runtime.calls import Watch


def require_kinds(model: object, measurement: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be an nn.Module; seen {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "model is a compiled TorchScript module, whose operations cannot be watched: give the "
            "nn.Module that it was made of"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(
            f"model is wrapped in {type(model).__name__}: give model.module, the module inside"
        )
    for name, each in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(each, UninitializedParameter | UninitializedBuffer):
            raise InputError(
                f"{name} has no shape yet (a lazy module): run the model once on a batch first"
            )
    if measurement is not None and not isinstance(measurement, Measurement):
        raise InputError(
            "measurement must say which way is better: wrap a function in "
            f"CustomMeasurement(f, lower_is_better=...); seen {measurement!r}"
        )


def require_autocast(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype is not torch.bfloat16:
        raise InputError(
            f"autocast must be torch.bfloat16 or None; seen {dtype}. (float16 gradients underflow "
            "without a scale)"
        )


def require_per_example(model: nn.Module) -> None:
    """Refuse modules that mix examples or draw at random in their present mode."""
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (  # pyright: ignore[reportPrivateUsage]
            module.training or module.running_mean is None
        ):
            raise InputError(
                f"{label} normalises over the batch, so an example has no loss of its own: call "
                "model.eval() first (or keep running statistics)"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:  # pyright: ignore[reportPrivateUsage]
            raise InputError(f"{label} is random in training mode: call model.eval() first")


def remembered(remember: int | None, device: torch.device) -> int:
    """Bytes that rows are remembered in: one in 16 of the device's memory by default."""
    if remember is None:
        return machine.memory(device) // budget.REMEMBERED
    return kinds.count(remember, "remember (bytes, 0 for none)", least=0)


def texts(value: object, what: str) -> tuple[str, ...]:
    """One text, or several."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise InputError(f"{what} must be a text, or several in a list; seen {value!r}")
    several: tuple[object, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    for each in several:
        if not isinstance(each, str):
            raise InputError(f"{what} must be texts; seen {each!r}")
    return tuple(map(str, several))


def device_of(value: object) -> torch.device:
    try:
        found = torch.device(value)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"device must be one of torch's, such as 'cuda'; seen {value!r}"
        ) from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"this torch has no device {str(found)!r} here: {error}") from error
    return found


def weighted(train: Data, weights: Tensor) -> Data:
    if train.weights is not None:
        raise InputError("train has weights of its own: give them there or as sample_weight")
    try:
        return train.weighted(weights)
    except InputError as error:
        raise type(error)(f"sample_weight: {error}") from None


def unweighted(queries: Data) -> Data:
    if queries.weights is not None:
        raise InputError("queries: they have weights, and a measurement has none: leave them out")
    return queries


def require_targets(of: Loss | Measurement, targets: Batched) -> None:
    """Only a function of the user's own knows what a container of targets means."""
    if isinstance(targets, Tree) and not of.trees:
        kind = type(of).__name__
        own = "CustomMeasurement" if isinstance(of, Measurement) else "CustomLoss"
        raise InputError(
            f"{kind} takes targets of one tensor; seen {', '.join(targets.paths)}. Give "
            f"{own}(function), whose function takes (output, targets) and knows what they mean"
        )


def measurement_of(given: Measurement | None, loss: Loss) -> Measurement:
    """The loss by default; a loss over positions that was given unbound takes this problem's."""
    if given is None:
        return LossMeasurement(loss)
    if isinstance(given, LossMeasurement) and not given.loss.is_bound:
        return LossMeasurement(given.loss.bound_as(loss))
    return given


def output_of_one(
    structure: Structure, values: Mapping[str, Tensor], inputs: Batched, model: nn.Module
) -> tuple[Tensor, tuple[str, ...]]:
    """What the model returns for one example, and which inputs of a container it does not read."""
    structure.forward.require_fit(structure.modules, inputs)
    watch = Watch(tensors(inside(model)))
    read = Watch(dict(named_leaves(inputs)))
    try:
        with torch.no_grad(), generators.preserved(), watch, read:
            output = structure(values, inputs)
    except CurvfluenceError:
        raise
    except Exception as error:
        raise InputError(
            f"the model cannot be run on one example of {described(inputs)}: "
            f"{type(error).__name__}: {error}{said_of_ids(error, inputs, structure.modules)}"
            f"{_of_decoder(structure.modules, inputs)}"
        ) from error
    if watch.seen:
        raise InputError(
            f"a copy of the model still uses the model's own {watch.seen[0]}: a forward or a hook "
            "was replaced by a function that holds the modules. Make it a method, or have it take "
            "the module as an argument"
        )
    paths = paths_of(inputs) if isinstance(inputs, Tree) else ()
    return output, tuple(path for path in paths if path not in read.seen)


def _of_decoder(model: nn.Module, inputs: Batched) -> str:
    """What a model needs that makes its decoder's inputs of the labels."""
    two = getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True
    if not two or "decoder_input_ids" in paths_of(inputs):
        return ""
    return (
        ". Its decoder's inputs are made of the labels, which it is not given: give "
        "decoder_input_ids too, as DataCollatorForSeq2Seq(tokenizer, model=model) makes them"
    )


def said_of_ids(error: Exception, inputs: Batched, model: nn.Module) -> str:
    """What an index out of range may be of: the numbers there are, and the tables they look up."""
    whole = [(p, x) for p, x in named_leaves(inputs) if not x.is_floating_point() and x.numel()]
    if not isinstance(error, IndexError) or not whole:
        return ""
    reach = ", ".join(f"{p or 'they'} from {int(x.min())} to {int(x.max())}" for p, x in whole)
    tables = [
        f"{name or 'the model'} 0 to {one.num_embeddings - 1}"
        for name, one in model.named_modules()
        if isinstance(one, nn.Embedding | nn.EmbeddingBag)
    ]
    held = f"; the model's embeddings hold {', '.join(tables)}" if tables else ""
    these = "this example" if len(inputs) == 1 else f"these {len(inputs)} examples"
    return f". Numbers that an embedding does not hold? In {these}, {reach}{held}"
