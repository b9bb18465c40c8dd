"""Problem: the model at given weights, the loss it was trained on, and the examples in question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from curvfluence.errors import InputError
from curvfluence.problem.checks import (
    measurement_of,
    output_shape,
    remembered,
    require_autocast,
    require_kinds,
    require_per_example,
    unweighted,
    weighted,
)
from curvfluence.problem.data import Examples, Source, require_finite
from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.losses import Loss, ScaledLoss
from curvfluence.problem.measurement import Measurement
from curvfluence.problem.parameters import Parameters, call, slots
from curvfluence.problem.snapshot import snapshot
from curvfluence.runtime import generators


@dataclass(frozen=True, eq=False, init=False)
class Problem:
    """Which training examples made `model` do what it does on `queries`.

    The model was trained to minimise J(θ) = (1/N) Σ_n ℓ_n + ½ Σ_i w_i θ_i². `weight_decay` is w: a
    number for all parameters, or a mapping from parameter names (those not named get 0). With
    `decoupled_decay=True` (AdamW) the decay is recorded and not added, because that optimiser
    minimises something else; results say so. `sample_weight` is v [N], where training minimised
    (1/N) Σ_n v_n ℓ_n + ½ Σ w θ²; then an example's influence is that of v_n ℓ_n, and one of weight
    2 is one that is there twice. The same as `Examples(inputs, targets, weights=v)`.

    `weights` names the checkpoint: a mapping like `model.state_dict()`, by default the model's
    values as they are now. They are copied; the model is only ever called through
    `torch.func.functional_call`, so its parameters, `.grad`, mode and hooks stay as they are.

    `unmodelled` names what training had beside this objective (augmentation, say); results repeat
    it, and name dropout where the model has some, because J is taken without.

    Examples come as (inputs, targets), a `Dataset` or a `DataLoader` that keeps its order, and are
    moved to the weights' device and dtype. `measurement` is what is predicted of each query, by
    default its loss.

    `autocast=torch.bfloat16` runs the model's forward and backward passes under `torch.autocast`,
    as such training did: products of matrices take bfloat16, their sums and all that is made of
    inputs and gradients (factors, eigenvectors, solves, scores) stay in float32. Which weights have
    a rule is found without. docs/precision.md tables the error.

    `remember` is how many bytes of the training examples' gradients (as a and s, or as matrices in
    the eigenbasis of an EK-FAC, which is then held as well) are kept, as long as the problem is,
    once they are asked for again (by scores after a fit with the training labels, by a second
    damping or rung); and of a fit's rows while it makes its second pass. By default a sixteenth of
    the memory; 0 keeps none.

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
    unmodelled: tuple[str, ...]
    autocast: torch.dtype | None
    remember: int

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
        unmodelled: str | Sequence[str] = (),
        sample_weight: Tensor | None = None,
        autocast: torch.dtype | None = None,
        remember: int | None = None,
    ) -> None:
        require_kinds(loss, measurement)
        require_autocast(autocast)
        if isinstance(weights, Tensor):
            raise InputError(
                "weights is a checkpoint, a mapping like model.state_dict(); weights of training "
                "examples are sample_weight"
            )
        require_per_example(model)
        parameters = Parameters.of(model)
        theta, state = snapshot(model, parameters, weights)
        first = next(iter(theta.values()))
        place = (first.device, first.dtype)
        if autocast is not None and first.dtype != torch.float32:
            raise InputError(f"autocast is of a float32 model; its parameters are {first.dtype}")
        examples = Examples.of(train, "train").to(*place)
        if sample_weight is not None:
            examples = weighted(examples, sample_weight).to(*place)
        shape = output_shape(model, {**state, **theta}, examples.inputs[:1].clone())
        loss = loss.bound(shape, examples.targets, examples.weights)
        values = {
            "model": model,
            "loss": loss,
            "train": examples,
            "queries": unweighted(Examples.of(queries, "queries")).to(*place),
            "measurement": measurement_of(measurement, loss),
            "parameters": parameters,
            "theta": theta,
            "state": state,
            "weight_decay": parameters.per_parameter(weight_decay, "weight_decay"),
            "decoupled_decay": decoupled_decay,
            "unmodelled": (unmodelled,) if isinstance(unmodelled, str) else tuple(unmodelled),
            "autocast": autocast,
            "remember": remembered(remember, first.device),
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

    @property
    def notes(self) -> tuple[str, ...]:
        """What training had that J lacks, as a result names it."""
        dropped = [
            f"{name or 'the model'} (p = {module.p:g})"
            for name, module in self.model.named_modules()
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0  # pyright: ignore[reportPrivateUsage]
        ]
        found = [f"not modelled: {text}" for text in self.unmodelled]
        v_n = self.train.weights
        if v_n is not None:
            found.append(
                f"training examples have weights of {float(v_n.min()):.3g} to "
                f"{float(v_n.max()):.3g}; leaving one out takes its weight with it"
            )
        if self.autocast is not None:
            low = str(self.autocast).removeprefix("torch.")
            found.append(f"the model ran in {low} (autocast), sums and solves in float32")
        if dropped:
            found.append(
                f"not modelled: dropout in training ({', '.join(dropped)}); the objective here is "
                "that of the model in evaluation mode"
            )
        return tuple(found)

    @cached_property
    def n_outputs(self) -> int:
        """K, or T K where outputs have positions: from a forward pass of one example."""
        with torch.no_grad(), generators.preserved():
            return self.forward(self.train.inputs[:1].clone()).shape[-1]

    def to(
        self,
        dtype: torch.dtype | torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> Problem:
        """The same problem with weights and examples in a dtype (then without autocast), or on a
        device: `to(torch.float64)`, `to("cuda")`, or both in this order.

        The model's own tensors stay where they are: it is called with these in their place."""
        if device is None and isinstance(dtype, str | torch.device):
            dtype, device = None, dtype
        if not isinstance(dtype, torch.dtype | None):
            raise InputError(f"to() takes a dtype and a device; seen {dtype!r} and {device!r}")
        autocast = self.autocast if dtype is None else None
        dtype = self.dtype if dtype is None else dtype
        place = self.device if device is None else torch.device(device)
        return Problem(
            self.model,
            self.loss,
            self.train.to(place, dtype),
            self.queries.to(place, dtype),
            measurement=self.measurement,
            weight_decay=self.weight_decay,
            decoupled_decay=self.decoupled_decay,
            unmodelled=self.unmodelled,
            autocast=autocast,
            remember=self.remember,
            weights={
                name: value.to(place, dtype if value.is_floating_point() else value.dtype)
                for name, value in {**self.theta, **self.state}.items()
            },
        )

    @cached_property
    def exact(self) -> Problem:
        """The problem without autocast: itself where it has none."""
        return self if self.autocast is None else self.to(self.dtype)

    @property
    def fingerprint(self) -> str:
        """Of what a curvature depends on: the model's modules, weights, decay, loss, training set
        and autocast."""
        known: dict[object, str] = self.__dict__.setdefault("_fingerprints", {})
        state = repr(self.model), self.train.versions
        if state not in known:
            train = (self.train.inputs, self.train.targets, self.train.weights)
            tensors = (*self.theta.values(), *self.state.values(), self.decay, *train)
            held = (state[0], self.loss, self.autocast, *tensors)
            known[state] = fingerprint(*held)
        return known[state]

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
            unmodelled=self.unmodelled,
            autocast=self.autocast,
            remember=self.remember,
        )

    def loss_of(self, part: Examples) -> Loss:
        """v_n ℓ_n of these examples: the loss as it is where they have no weights."""
        return ScaledLoss.of(self.loss, part.weights)

    def forward(self, inputs: Tensor, theta: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs [B, K] at `theta` (by default this problem's weights)."""
        everything = {**self.state, **(self.theta if theta is None else theta)}
        return self.loss.rows(self.run(everything, inputs), len(inputs))

    def run(self, values: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What the model returns with `values` in place of its tensors."""
        if self.autocast is None:
            return call(self.model, self.slots, values, inputs)
        # Without a cache: its casts of weights would outlive a pass that changes them.
        with torch.autocast(inputs.device.type, dtype=self.autocast, cache_enabled=False):
            output = call(self.model, self.slots, values, inputs)
        return output.to(self.dtype)

    def outputs(self, examples: Examples, what: str, chunk: int = 4096) -> Tensor:
        """Outputs of all examples, [N, K], finite or raised with the index."""
        with torch.no_grad():
            rows = torch.cat([self.forward(part.inputs) for _, part in examples.chunks(chunk)])
        require_finite(rows, f"model output for the {what}")
        return rows
