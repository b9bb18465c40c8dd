"""Problem: the model at given weights, the loss it was trained on, and the examples in question."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from curvfluence.data import Examples, Source, require_finite
from curvfluence.errors import CurvfluenceError, InputError
from curvfluence.losses import Loss
from curvfluence.measurement import LossMeasurement, Measurement
from curvfluence.parameters import Parameters, call, slots


@dataclass(frozen=True, eq=False, init=False)
class Problem:
    """Which training examples made `model` do what it does on `queries`.

    The model was trained to minimise J(θ) = (1/N) Σ_n ℓ_n + ½ Σ_i w_i θ_i². `weight_decay` is w: a
    number for all parameters, or a mapping from parameter names (those not named get 0). With
    `decoupled_decay=True` (AdamW) the decay is recorded and not added, because that optimiser
    minimises something else; results say so.

    `weights` names the checkpoint: a mapping like `model.state_dict()`, by default the model's
    values as they are now. They are copied; the model is only ever called through
    `torch.func.functional_call`, so its parameters, `.grad`, mode and hooks stay as they are.

    Examples come as (inputs, targets), a `Dataset` or a `DataLoader` that keeps its order, and are
    moved to the weights' device and dtype. `measurement` is what is predicted of each query, by
    default its loss.

    Errors, before any work: `InputError` where model, loss and data do not fit, `NonFiniteError`
    with the index of the example.
    """

    model: nn.Module
    loss: Loss
    train: Examples
    queries: Examples
    measurement: Measurement
    parameters: Parameters
    theta: Mapping[str, Tensor] = field(repr=False)
    state: Mapping[str, Tensor] = field(repr=False)  # frozen parameters and buffers
    weight_decay: Mapping[str, float]
    decoupled_decay: bool

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Source,
        queries: Source,
        *,
        measurement: Measurement | None = None,
        weight_decay: float | Mapping[str, float] = 0.0,
        decoupled_decay: bool = False,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        _require_kinds(loss, measurement)
        require_per_example(model)
        parameters = Parameters.of(model)
        theta, state = _snapshot(model, parameters, weights)
        first = next(iter(theta.values()))
        place = (first.device, first.dtype)
        values = {
            "model": model,
            "loss": loss,
            "train": Examples.of(train, "train").to(*place),
            "queries": Examples.of(queries, "queries").to(*place),
            "measurement": LossMeasurement(loss) if measurement is None else measurement,
            "parameters": parameters,
            "theta": theta,
            "state": state,
            "weight_decay": parameters.per_parameter(weight_decay, "weight_decay"),
            "decoupled_decay": decoupled_decay,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for name, examples in (("train", self.train), ("queries", self.queries)):
            try:
                loss.check(self.n_outputs, examples.targets)
                if examples is self.queries:
                    self.measurement.check(self.n_outputs, examples.targets)
            except InputError as error:
                raise type(error)(f"{name}: {error}") from None

    @cached_property
    def n_outputs(self) -> int:
        """K, from a forward pass of one example."""
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return self.forward(self.train.inputs[:1].clone()).shape[-1]
        except CurvfluenceError:
            raise
        except Exception as error:
            raise InputError(
                f"the model cannot be run on one example of shape "
                f"{tuple(self.train.inputs.shape[1:])} and dtype {self.train.inputs.dtype}: "
                f"{type(error).__name__}: {error}"
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """Of what a curvature depends on: weights, decay, loss and training set."""
        digest = hashlib.sha256(repr(self.loss).encode())
        tensors = (*self.theta.values(), *self.state.values(), self.decay)
        for tensor in (*tensors, self.train.inputs, self.train.targets):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def slots(self) -> dict[str, str]:
        """Where the model holds each tensor of `theta` and `state`."""
        return slots(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.theta.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.theta.values())).device

    @cached_property
    def decay(self) -> Tensor:
        """w as it enters C + diag(w) + λI, [P]; zero where the decay was decoupled."""
        rows = {
            name: torch.full_like(value, 0.0 if self.decoupled_decay else self.weight_decay[name])
            for name, value in self.theta.items()
        }
        return self.parameters.flatten(rows)

    def at(self, weights: Mapping[str, Tensor]) -> Problem:
        """The same problem at another checkpoint of the same model."""
        return Problem(
            self.model,
            self.loss,
            self.train,
            self.queries,
            measurement=self.measurement,
            weight_decay=self.weight_decay,
            decoupled_decay=self.decoupled_decay,
            weights=weights,
        )

    def forward(self, inputs: Tensor, theta: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs [B, K] at `theta` (by default this problem's weights)."""
        everything = {**self.state, **(self.theta if theta is None else theta)}
        return as_rows(call(self.model, self.slots, everything, inputs), len(inputs))

    def outputs(self, examples: Examples, what: str, chunk: int = 4096) -> Tensor:
        """Outputs of all examples, [N, K], finite or raised with the index."""
        with torch.no_grad():
            rows = torch.cat([self.forward(x) for _, x, _ in examples.chunks(chunk)])
        require_finite(rows, f"model output for the {what}")
        return rows


def as_rows(output: Tensor, n: int) -> Tensor:
    """One row of outputs an example: [B] and [B, K] become [B, K]; more axes are refused."""
    if not isinstance(output, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"the model must return a tensor of outputs; it returned {type(output)}")
    if output.ndim == 1 and len(output) == n:
        return output[:, None]
    if output.ndim != 2 or len(output) != n:
        raise InputError(
            f"the model must return one row of outputs an example, [B, K]; for {n} examples it "
            f"returned shape {tuple(output.shape)}"
        )
    return output


def _require_kinds(loss: object, measurement: object) -> None:
    if not isinstance(loss, Loss):
        raise InputError(
            f"loss must be a curvfluence loss, such as CrossEntropy(), MSE() or CustomLoss(f); "
            f"seen {loss!r}"
        )
    if measurement is not None and not isinstance(measurement, Measurement):
        raise InputError(
            "measurement must say which way is better: wrap a function in "
            f"CustomMeasurement(f, lower_is_better=...); seen {measurement!r}"
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


def _snapshot(
    model: nn.Module, parameters: Parameters, weights: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    if weights is not None:
        kept = set(model.state_dict(keep_vars=True))
        missing = [name for name in own if name not in weights and name in kept]
        unknown = sorted(set(weights) - set(own) - kept)
        if missing or unknown:
            raise InputError(
                f"weights must hold what the model's state_dict does: missing {missing}, unknown "
                f"{unknown}"
            )
        for name in own:
            if name in weights and weights[name].shape != own[name].shape:
                raise InputError(
                    f"weights[{name!r}] has shape {tuple(weights[name].shape)}, the model's has "
                    f"{tuple(own[name].shape)}"
                )
    source = own if weights is None else {**own, **{n: w for n, w in weights.items() if n in own}}
    copied = {name: source[name].detach().clone() for name in own}
    theta = {name: copied.pop(name) for name in parameters.names}
    for name, value in theta.items():
        if not bool(value.isfinite().all()):
            raise InputError(f"parameter {name} holds a NaN or infinity")
    dtype = next(iter(theta.values())).dtype
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"the parameters must be float32 or float64; seen {dtype}")
    copied = {n: v.to(dtype) if v.is_floating_point() else v for n, v in copied.items()}
    kinds = {(value.device, value.dtype) for value in theta.values()}
    if len(kinds) > 1:
        raise InputError(
            f"the parameters must share one device and dtype; seen {sorted(map(str, kinds))}"
        )
    return theta, copied
