"""How a model was trained, so that it can be trained again without some of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, fields, is_dataclass
from inspect import signature
from math import ceil, cos, pi
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.problem.forward import Forward
from curvfluence.problem.losses import Loss
from curvfluence.problem.parameters import Parameters
from curvfluence.problem.snapshot import require_apart
from curvfluence.problem.torch_losses import as_loss
from curvfluence.problem.tree import Batched, leaves
from curvfluence.runtime import generators

_ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
)
Setting: TypeAlias = "float | bool | tuple[float, ...]"


@dataclass(frozen=True)
class Optimizer:
    """An optimiser of `torch.optim` and its settings, `lr` among them.

    Weight decay is the recipe's, since influence needs it too. `decoupled` says whether the
    optimiser shrinks the weights by itself (AdamW), in which case training minimised no J.

    Errors: `InputError` for a setting the optimiser does not have, an lr that is not positive, a
    `weight_decay`, or an optimiser that needs a closure.
    """

    kind: type[torch.optim.Optimizer]
    settings: Mapping[str, Setting] = field(default_factory=dict[str, Setting])

    def __post_init__(self) -> None:
        if self.kind is torch.optim.LBFGS:
            raise InputError("LBFGS needs a closure and is not supported: use a first-order one")
        known = set(signature(self.kind).parameters) - {"params"}
        unknown = sorted(set(self.settings) - known)
        if unknown:
            raise InputError(f"{self.kind.__name__} has no settings {unknown}; it has {known}")
        if "weight_decay" in self.settings:
            raise InputError("weight_decay belongs to the Recipe, not to the optimiser's settings")
        if not kinds.number(self.settings.get("lr"), "lr") > 0:
            raise InputError(f"the optimiser needs a finite lr > 0; seen {self.settings['lr']!r}")

    @property
    def lr(self) -> float:
        return float(self.settings["lr"])  # pyright: ignore[reportArgumentType]

    @property
    def decoupled(self) -> bool:
        by_setting = bool(self.settings.get("decoupled_weight_decay", False))
        return by_setting or issubclass(self.kind, torch.optim.AdamW)

    @property
    def elementwise(self) -> bool:
        """Whether one call can step many models' parameters laid end to end."""
        return self.kind in _ELEMENTWISE

    def build(self, groups: list[dict[str, Any]], *, fused: bool = False) -> torch.optim.Optimizer:
        """The optimiser over parameter groups that each name their `weight_decay`.

        `fused` asks for torch's one-pass kernel where this optimiser has one.
        """
        accepted = signature(self.kind).parameters
        if "weight_decay" not in accepted and any(g["weight_decay"] for g in groups):
            raise InputError(f"{self.kind.__name__} has no weight decay: set the recipe's to 0")
        extra = {"fused": True} if fused and "fused" in accepted else {}
        settings: dict[str, Any] = {**self.settings, **extra}
        return self.kind(groups, **settings)


def sgd(lr: float, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """v ← μ v + g, θ ← θ − lr v."""
    settings: dict[str, Setting] = {
        "lr": lr,
        "momentum": kinds.number(momentum, "momentum", below=1),
        "nesterov": kinds.flag(nesterov, "nesterov"),
    }
    return Optimizer(torch.optim.SGD, settings)


def adam(lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam with the decay coupled: the gradient is that of J."""
    return Optimizer(torch.optim.Adam, {"lr": lr, **_moments(betas, eps)})


def adamw(lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Optimizer:
    """Adam with the decay decoupled: θ shrinks by lr·w each step, outside of the gradient."""
    return Optimizer(torch.optim.AdamW, {"lr": lr, **_moments(betas, eps)})


def _moments(betas: object, eps: object) -> dict[str, Setting]:
    if not isinstance(betas, tuple | list) or len(betas) != 2:  # pyright: ignore[reportUnknownArgumentType]
        raise InputError(f"betas must be two numbers in [0, 1); seen {betas!r}")
    pair: tuple[float, ...] = tuple(kinds.number(b, "betas", below=1) for b in betas)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return {"betas": pair, "eps": kinds.number(eps, "eps")}


class Schedule(Protocol):
    """What the learning rate is multiplied by at each step, counted from 0."""

    def factor(self, step: int, total_steps: int) -> float: ...


@dataclass(frozen=True)
class Constant:
    """lr_t = lr."""

    def factor(self, step: int, total_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """lr_t = lr (final + (1 − final) (1 + cos(π t / T)) / 2): from lr at t = 0 towards final·lr."""

    final: float = 0.0

    def __post_init__(self) -> None:
        kinds.number(self.final, "final")

    def factor(self, step: int, total_steps: int) -> float:
        return self.final + (1 - self.final) * (1 + cos(pi * step / total_steps)) / 2


@dataclass(frozen=True)
class Recipe:
    """Training as a function of (data, seeds): minimise J by minibatches.

    `architecture` builds a fresh model on each call; what it draws from torch's CPU generator is
    its initialisation. The model trains in the mode it is built in. Each step takes the batch mean
    of `loss`, clips the gradient's norm to `clip_norm` if given, and hands it to `optimizer`
    with the decay of each parameter (a number, or one by name; parameters not named get 0).

    The model is called on inputs, and its outputs are had, as by `Problem`: `forward` and `output`
    are the same there.

    Exactly one of `epochs` and `steps`: with `steps` every retraining takes as many, whatever the
    subset's size, and its last epoch may be cut short. The last batch of an epoch may be smaller.

    Errors: `InputError` for settings that make no training run.
    """

    architecture: Callable[[], nn.Module]
    loss: Loss
    optimizer: Optimizer
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    schedule: Schedule = Constant()
    weight_decay: float | Mapping[str, float] = 0.0
    clip_norm: float | None = None
    forward: Callable[[nn.Module, Any], Any] | None = None
    output: str | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.architecture, nn.Module):
            raise InputError(
                "architecture must build a fresh model: pass a function, such as "
                "lambda: nn.Sequential(...), not a model"
            )
        if not callable(self.architecture):
            raise InputError(
                f"architecture must be a function that builds a model; seen {self.architecture!r}"
            )
        object.__setattr__(self, "loss", as_loss(self.loss))
        if not isinstance(self.optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"optimizer must be a curvfluence.truth.Optimizer, such as sgd(0.1); seen "
                f"{self.optimizer!r}"
            )
        if (self.epochs is None) == (self.steps is None):
            raise InputError(
                f"give exactly one of epochs and steps; seen epochs={self.epochs}, "
                f"steps={self.steps}"
            )
        self.calls  # noqa: B018 - refuses what is no way to call a model
        for name in ("batch_size", "epochs", "steps"):
            value = getattr(self, name)
            if value is not None or name == "batch_size":
                kinds.count(value, name)
        if not callable(getattr(self.schedule, "factor", None)):
            raise InputError(
                f"schedule must have a method factor(step, total_steps), as Cosine() has; seen "
                f"{self.schedule!r}"
            )
        if self.clip_norm is not None and not kinds.number(self.clip_norm, "clip_norm") > 0:
            raise InputError(f"clip_norm must be > 0; seen {self.clip_norm}")
        decay = self.weight_decay
        for value in decay.values() if isinstance(decay, Mapping) else (decay,):
            kinds.number(value, "weight_decay")

    @property
    def calls(self) -> Forward:
        """How the model is called."""
        return Forward(self.forward, self.output)

    def outputs(self, model: nn.Module, inputs: Batched) -> Tensor:
        """The model's outputs, one row an example."""
        return self.loss.rows(self.calls(model, inputs), len(inputs))

    def steps_per_epoch(self, n: int) -> int:
        return ceil(n / self.batch_size)

    def total_steps(self, n: int) -> int:
        """Steps of a run over n examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * self.steps_per_epoch(n)

    def learning_rate(self, step: int, total_steps: int) -> float:
        return self.optimizer.lr * self.schedule.factor(step, total_steps)

    def _fresh(self, seed: int) -> nn.Module:
        with generators.preserved():
            # Only the CPU generator: torch.manual_seed would also reset the accelerators'.
            torch.default_generator.manual_seed(seed)
            model = self.architecture()
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"architecture must return an nn.Module; it returned {type(model)}")
        return model

    def dtype(self, examples: Examples) -> torch.dtype:
        """What runs train in: the inputs' dtype, or the model's own where those are integers."""
        if any(leaf.is_floating_point() for leaf in leaves(examples.inputs)):
            return examples.dtype
        held = (p.dtype for p in self._fresh(0).parameters() if p.is_floating_point())
        return next(held, torch.get_default_dtype())

    def build(
        self,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> nn.Module:
        """A fresh model initialised from `seed`; the global generator is left as found."""
        # The copy keeps modules that the architecture shares between calls out of training.
        fresh = self._fresh(seed)
        require_apart(fresh)
        return deepcopy(fresh).to(device=device, dtype=dtype)

    def start(
        self, seed: int, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a run with this `init_seed` starts from: trainable parameters, and the rest."""
        model = self._fresh(seed)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        copies = {
            name: value.detach().to(dtype if value.is_floating_point() else value.dtype, copy=True)
            for name, value in tensors.items()
        }
        rest = frozen | {name for name, _ in model.named_buffers()}
        return (
            {name: value for name, value in copies.items() if name not in rest},
            {name: value for name, value in copies.items() if name in rest},
        )

    def initial(self, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The trainable parameters that a run with this `init_seed` starts from."""
        return self.start(seed, dtype)[0]

    def decay(self, parameters: Parameters) -> dict[str, float]:
        """w by parameter name."""
        return parameters.per_parameter(self.weight_decay, "weight_decay")

    def describe(self) -> dict[str, Any]:
        """All settings as JSON-able values; equal recipes give equal descriptions.

        Code is described by name only (the architecture by the model's repr), so two different
        initialisations of one architecture, or two versions of one function, look the same.
        """
        return {
            "architecture": repr(self.build(0)),
            "loss": _plain(self.loss),
            "optimizer": {
                "kind": f"{self.optimizer.kind.__module__}.{self.optimizer.kind.__qualname__}",
                **{k: _plain(v) for k, v in sorted(self.optimizer.settings.items())},
            },
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "steps": self.steps,
            "schedule": _plain(self.schedule),
            "weight_decay": _plain(self.weight_decay),
            "clip_norm": self.clip_norm,
            **({} if self.calls == Forward() else {"calls": _plain(self.calls)}),
        }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        values = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return {"kind": type(value).__qualname__, **values}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}.{name}"
