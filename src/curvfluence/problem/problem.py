"""Problem: the model at given weights, the loss it was trained on, and the examples in question."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvfluence import kinds
from curvfluence.errors import CurvfluenceWarning, InputError, counted_from
from curvfluence.problem.checks import (
    device_of,
    measurement_of,
    output_of_one,
    remembered,
    require_autocast,
    require_kinds,
    require_per_example,
    require_targets,
    said_of_ids,
    texts,
    unweighted,
    weighted,
)
from curvfluence.problem.data import Examples, require_finite
from curvfluence.problem.fingerprint import fingerprint
from curvfluence.problem.forward import Forward
from curvfluence.problem.held import Held
from curvfluence.problem.hugging_face import of_trainer
from curvfluence.problem.lightning import of_lightning
from curvfluence.problem.losses import Loss, ScaledLoss
from curvfluence.problem.measurement import Measurement
from curvfluence.problem.oddities import (
    said_of_padding,
    said_of_probabilities,
    said_of_shared,
    said_of_shift,
    said_of_unread,
)
from curvfluence.problem.own_code import own_code
from curvfluence.problem.parameters import Parameters
from curvfluence.problem.sharded import said_of_sharding, whole
from curvfluence.problem.snapshot import require_apart, snapshot
from curvfluence.problem.source import Source, data_of
from curvfluence.problem.stream import Data, Stream, in_memory, shapes
from curvfluence.problem.structure import Structure, inside, tensors
from curvfluence.problem.torch_losses import as_loss
from curvfluence.problem.training_mode import said_of_training
from curvfluence.problem.tree import Batched, described, paths_of
from curvfluence.runtime import budget, generators
from curvfluence.runtime.calls import Lowest

CHECKED = 4096  # examples that are looked at at a time
FEW = 8  # examples that show what a model does
TRIED = 64  # examples whose labels a loss is asked about


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Problem:
    """Which training examples made `model` do what it does on `queries`.

    The model was trained to minimise J(θ) = (1/N) Σ_n ℓ_n + ½ Σ_i w_i θ_i². `weight_decay` is w: a
    number for all parameters, or a mapping from parameter names (those not named get 0). With
    `decay_in_inverse=False` w is left out of C + diag(w) + λI and recorded: λ alone is then the
    floor of the inverse, though training minimised J with w. With
    `decoupled_decay=True` (AdamW) the decay is recorded and not added, because that optimiser
    minimises something else; results say so. `sample_weight` is v [N], where training minimised
    (1/N) Σ_n v_n ℓ_n + ½ Σ w θ²; then an example's influence is that of v_n ℓ_n, and one of weight
    2 is one that is there twice. The same as `Examples(inputs, targets, weights=v)`.

    `weights` names the checkpoint: a mapping like `model.state_dict()`, by default the model's
    values as they are now. They are copied, and so are the model's modules (`Structure`): the
    problem speaks of the model as it is now, and the model itself is never called or changed, so
    other threads may train it meanwhile.

    A model that FSDP2 shards (`fully_shard`) is taken whole: every process that has a part makes
    the problem at the same time, and holds all of the weights then.

    `eval_mode=True` sets the copy that is called to evaluation mode; the model stays in its own.

    `unmodelled` names what training had beside this objective (augmentation, say); results repeat
    it, and name dropout where the model has some, because J is taken without.

    Examples come as (inputs, targets), as a mapping with `labels`, a `Dataset` or a `DataLoader`
    that keeps its order, and are moved to the weights' device and dtype; what is not in memory and
    too large for it is read anew by every pass (`Stream`). Inputs are a tensor or a
    container of tensors [N, ...]: a tuple or list is given to the model as `model(*inputs)`, a
    mapping as `model(**inputs)`, anything else by `forward(model, inputs)`. Outputs are what the
    model returns, or the `logits` in it, or what `output` names or takes from it. `loss` is one of
    `curvfluence`, or torch's cross-entropy, squared error or binary cross-entropy as it is.
    `measurement` is what is predicted of each query, by default its loss.

    `autocast=torch.bfloat16` runs the model's forward and backward passes under `torch.autocast`,
    as such training did: products of matrices take bfloat16, their sums and all that is made of
    inputs and gradients (factors, eigenvectors, solves, scores) stay in float32. Which weights have
    a rule is found without. docs/precision.md tables the error.

    `remember` is how many bytes of the training examples' gradients (as a and s, or as matrices in
    the eigenbasis of an EK-FAC, which is then held as well) are kept, as long as the problem is,
    once they are asked for again (by scores after a fit with the training labels, by a second
    damping or rung); and of a fit's rows while it makes its second pass. By default a sixteenth of
    the memory; 0 keeps none. What is kept on a CPU beyond 16 MiB lies in files without a name in
    the folder for temporary files (`TMPDIR`).

    Errors, before any work: `InputError` where model, loss and data do not fit, `NonFiniteError`
    with the index of the example.
    """

    model: nn.Module = field(repr=False)
    structure: Structure = field(repr=False)  # its modules as they were: what is called
    loss: Loss
    train: Data
    queries: Data
    measurement: Measurement
    parameters: Parameters
    theta: Mapping[str, Tensor] = field(repr=False)
    state: Mapping[str, Tensor] = field(repr=False)  # frozen parameters and buffers
    weight_decay: Mapping[str, float]
    decoupled_decay: bool
    decay_in_inverse: bool
    unmodelled: tuple[str, ...]
    unread: tuple[str, ...]  # inputs that the model takes and does not read
    autocast: torch.dtype | None
    remember: int

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | nn.Module | Callable[..., Any],
        train: Source,
        queries: Source,
        *,
        measurement: Measurement | None = None,
        weight_decay: float | Mapping[str, float] = 0.0,
        decoupled_decay: bool = False,
        decay_in_inverse: bool = True,
        weights: Mapping[str, Tensor] | None = None,
        unmodelled: str | Sequence[str] = (),
        sample_weight: Tensor | None = None,
        autocast: torch.dtype | None = None,
        remember: int | None = None,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        output: str | Callable[[Any], Any] | None = None,
        eval_mode: bool = False,
    ) -> None:
        require_kinds(model, measurement)
        loss = as_loss(loss)
        kinds.flag(decoupled_decay, "decoupled_decay")
        kinds.flag(decay_in_inverse, "decay_in_inverse")
        require_autocast(autocast)
        if isinstance(weights, Tensor):
            raise InputError(
                "weights is a checkpoint, a mapping like model.state_dict(); weights of training "
                "examples are sample_weight"
            )
        weights = None if weights is None else kinds.tensors(weights, "weights")
        require_apart(inside(model))
        structure = Structure(model, Forward(forward, output))
        if kinds.flag(eval_mode, "eval_mode"):
            structure.modules.eval()
        require_per_example(structure.modules)
        parameters = Parameters.of(structure.modules)
        held = {name: whole(tensor) for name, tensor in tensors(inside(model)).items()}
        theta, state = snapshot(structure, parameters, held, weights)
        first = next(iter(theta.values()))
        place = (first.device, first.dtype)
        if autocast is not None and first.dtype != torch.float32:
            raise InputError(f"autocast is of a float32 model; its parameters are {first.dtype}")
        hold = min(budget.HELD, remembered(remember, first.device))
        examples = data_of(train, "train", hold).to(*place)
        if sample_weight is not None:
            examples = weighted(examples, sample_weight).to(*place)
        few = examples.take(slice(0, 1)).inputs.clone()
        one, unread = output_of_one(structure, {**state, **theta}, few, model)
        if isinstance(examples, Stream) and examples.varied:
            for _, part in examples.of_each_shape():
                output_of_one(structure, {**state, **theta}, part.inputs.clone(), model)
        parts = ((part.targets, part.weights) for _, part in examples.chunks(CHECKED))
        loss = loss.bound(tuple(one.shape[1:]), parts)
        values = {
            "model": model,
            "structure": structure,
            "loss": loss,
            "train": examples,
            "queries": unweighted(data_of(queries, "queries", hold)).to(*place),
            "measurement": measurement_of(measurement, loss),
            "parameters": parameters,
            "theta": theta,
            "state": state,
            "weight_decay": parameters.per_parameter(weight_decay, "weight_decay"),
            "decoupled_decay": decoupled_decay,
            "decay_in_inverse": decay_in_inverse,
            "unmodelled": (*texts(unmodelled, "unmodelled"), *said_of_sharding(inside(model))),
            "unread": unread,
            "autocast": autocast,
            "remember": remembered(remember, first.device),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        with torch.no_grad(), generators.preserved():
            row = loss.rows(one, 1)
            self.__dict__["n_outputs"] = row.shape[-1]
            for name, examples in (("train", self.train), ("queries", self.queries)):
                try:
                    self._require_fit(row, examples)
                except InputError as error:
                    raise type(error)(f"{name}: {error}") from error.__cause__
        for text in self._of_inputs:
            warnings.warn(text, CurvfluenceWarning, stacklevel=2)

    @classmethod
    def from_trainer(
        cls, trainer: Any, queries: Any, *, loss: Loss | None = None, **options: Any
    ) -> Problem:
        """What a `transformers.Trainer` trained: its model, its training set by its own collator
        (in order, without the columns that the model does not take), the loss of the model's kind
        with its label smoothing, its weight decay by parameter group (decoupled, so recorded and
        not added, unless the optimiser is SGD or the like), bfloat16 where it trained so. `queries`
        is a data set like the training set.

        The model is called in evaluation mode and left in its own. `loss` names another one where
        the trainer computes its own; `options` are those of `Problem`, and go before what the
        trainer says.

        Errors: `InputError` for anything else than such a trainer, for labels by another name, for
        a model whose loss is not known here, and for a collator that draws at random (masked
        language modelling: mask the data once, and give those).
        """
        return cls(**{**of_trainer(trainer, queries, loss), **options})

    @classmethod
    def from_lightning(cls, trainer: Any, queries: Any, *, loss: Loss, **options: Any) -> Problem:
        """What a Lightning `Trainer` trained: its module, its training data by the loader's own
        collator (each once, in order), the weight decay of its optimisers by parameter (decoupled
        where they take it off the weights, as AdamW does: recorded and not added), bfloat16 where
        it trained so. `queries` is a data set like the training set, or whatever `Problem` takes.

        Nobody can see what `training_step` computes: `loss` says it, as a loss of curvfluence's or
        `CustomLoss(function of outputs and labels)`, of what the module's `forward` returns; where
        that is another network than the one trained, `forward=lambda module, x: module.net(x)`.
        The module is called in evaluation mode, without its trainer, and left in its own.
        `options` are those of `Problem`, and go before what the trainer says.

        Clipped gradients, averaged weights, float16 and data cut short are named in results
        (`unmodelled`), as far as the trainer knows them.

        Errors: `InputError` for anything else than such a trainer, before `fit`, for training data
        that come from several loaders, and for an optimiser whose decay is of an unknown kind.
        """
        decoupled = options.get("decoupled_decay")
        return cls(**{**of_lightning(trainer, queries, loss, decoupled), **options})

    def __repr__(self) -> str:
        """What it is of, in a few lines and without numbers of the data."""
        parts = [
            f"{self.parameters.count:,} parameters of {type(inside(self.model)).__name__}",
            f"loss: {self.loss}",
            f"train: {len(self.train):,} of {described(self.train.take(slice(0, 1)).inputs)}",
            f"queries: {len(self.queries):,}, measured by {self.measurement.name}",
        ]
        decays = sorted(set(self.weight_decay.values()) - {0.0})
        if decays:
            kind = ", decoupled" if self.decoupled_decay else ""
            parts.append(f"weight decay: {', '.join(f'{w:g}' for w in decays)}{kind}")
        return "Problem(\n  " + "\n  ".join(parts) + "\n)"

    def _require_fit(self, output: Tensor, examples: Data) -> None:
        """Examples, their targets, the loss and the measurement go together; `output` is that of a
        training example."""
        count = output.shape[-1]
        first = examples.take(slice(0, 1))
        if examples is self.queries:
            self._require_alike(first)
            asked = self.forward(first.inputs.clone()).shape[-1]
            if asked != count and self.loss.positions is None:
                raise InputError(
                    f"the model returns {asked} outputs for one of them, and {count} for a "
                    "training example: give both inputs of one shape"
                )
        require_targets(self.loss, first.targets)
        if examples is self.queries:
            require_targets(self.measurement, first.targets)
        for start, part in examples.chunks(CHECKED):
            with counted_from(start):
                self.loss.check(count, part.targets)
                if examples is self.queries:
                    self.measurement.check(count, part.targets)
        output = self.forward(first.inputs.clone())
        self.loss.values(output, first.targets)
        if examples is self.queries:
            self.measurement.values(output, first.targets)

    def _require_alike(self, query: Examples) -> None:
        """Queries are given to the model as training examples are, by the same keys."""
        self.structure.forward.require_fit(self.structure.modules, query.inputs)
        like = self.train.take(slice(0, 1)).inputs
        own, theirs = paths_of(query.inputs), paths_of(like)
        if set(own) != set(theirs):  # keys have no order
            raise InputError(
                f"their inputs are {', '.join(own) or 'one tensor'}, and those of training "
                f"examples {', '.join(theirs) or 'one tensor'}: give both alike"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """What training had that J lacks, as a result names it."""
        found = [f"not modelled: {text}" for text in self.unmodelled]
        found += self._of_inputs
        found += [self._shared] if self._shared else []
        v_n = self.train.weights
        if v_n is not None:
            found.append(
                f"training examples have weights of {float(v_n.min()):.3g} to "
                f"{float(v_n.max()):.3g}; leaving one out takes its weight with it"
            )
        if self.autocast is not None:
            low = str(self.autocast).removeprefix("torch.")
            found.append(f"the model ran in {low} (autocast), sums and solves in float32")
        return (*found, *self._training)

    @cached_property
    def varied(self) -> bool:
        """Whether examples have other numbers of positions than each other."""
        if self.train.varied or self.queries.varied:
            return True
        one, other = (data.take(slice(0, 1)) for data in (self.train, self.queries))
        return shapes((one.inputs, one.targets)) != shapes((other.inputs, other.targets))

    def in_memory(self) -> Problem:
        """The same problem with all of its examples held: itself where they are."""
        if not isinstance(self.train, Stream) and not isinstance(self.queries, Stream):
            return self
        return self._with(train=in_memory(self.train), queries=in_memory(self.queries))

    @property
    def few(self) -> Examples:
        """The first training examples, in memory."""
        return self.train.take(slice(0, FEW))

    @property
    def _few_outputs(self) -> Tensor:
        with torch.no_grad(), generators.preserved():
            return self.forward(self.few.inputs.clone())

    @cached_property
    def _of_inputs(self) -> tuple[str, ...]:
        """What is odd about the inputs, as far as one can see without another reading."""
        held = self.few if isinstance(self.train, Stream) else self.train
        found = (
            said_of_shift(self.loss, self.few),
            said_of_unread(self.structure, self.unread),
            said_of_padding(self.structure.modules, held.inputs, len(self.train)),
            said_of_probabilities(self.loss, self._few_outputs),
        )
        return tuple(text for text in found if text is not None)

    @cached_property
    def _shared(self) -> str | None:
        return said_of_shared(self.train, self.queries)

    @cached_property
    def _training(self) -> tuple[str, ...]:
        values = {**self.state, **self.theta}
        return said_of_training(self.structure, values, self.few.inputs)

    @cached_property
    def n_outputs(self) -> int:
        """K, or T K where outputs have positions: from a forward pass of one example."""
        with torch.no_grad(), generators.preserved():
            return self.forward(self.train.take(slice(0, 1)).inputs.clone()).shape[-1]

    def to(
        self,
        dtype: torch.dtype | torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> Problem:
        """The same problem with weights and examples in a dtype (then without autocast), or on a
        device: `to(torch.float64)`, `to("cuda")`, or both in this order.

        The model's own tensors stay where they are: it is called with these in their place."""
        if isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype):
            raise InputError(f"to() takes a dtype itself: torch.{dtype}, not {dtype!r}")
        if device is None and isinstance(dtype, str | torch.device):
            dtype, device = None, dtype
        if not isinstance(dtype, torch.dtype | None):
            raise InputError(f"to() takes a dtype and a device; seen {dtype!r} and {device!r}")
        autocast = self.autocast if dtype is None else None
        dtype = self.dtype if dtype is None else dtype
        place = self.device if device is None else device_of(device)
        moved = {
            name: value.to(place, dtype if value.is_floating_point() else value.dtype)
            for name, value in {**self.theta, **self.state}.items()
        }
        theta, state = snapshot(self.structure, self.parameters, moved, None)
        train, queries = self.train.to(place, dtype), self.queries.to(place, dtype)
        return self._with(theta=theta, state=state, train=train, queries=queries, autocast=autocast)

    def at(self, weights: Mapping[str, Tensor]) -> Problem:
        """The same problem at another checkpoint of the same model."""
        held, given = {**self.theta, **self.state}, kinds.tensors(weights, "weights")
        theta, state = snapshot(self.structure, self.parameters, held, given)
        return self._with(theta=theta, state=state)

    def asking(self, queries: Sequence[int]) -> Problem:
        """The same problem with some of its queries, by their numbers, in that order."""
        rows = kinds.counts(queries, "queries")
        for row in rows:
            if row >= len(self.queries):
                raise InputError(
                    f"there are {len(self.queries)} queries, 0 to {len(self.queries) - 1}; seen "
                    f"{row}"
                )
        if not rows:
            raise InputError("asking() needs a query or more; seen none")
        return self._with(queries=self.queries.take(torch.tensor(rows, device=self.device)))

    def with_queries(self, queries: Source) -> Problem:
        """The same problem with other queries, as `Problem` takes and checks them."""
        given = unweighted(data_of(queries, "queries", budget.HELD)).to(self.device, self.dtype)
        other = self._with(queries=given)
        try:
            other.require_examples(given)
        except InputError as error:
            raise type(error)(f"queries: {error}") from error.__cause__
        return other

    def require_examples(self, examples: Data) -> None:
        """Errors: `InputError` where these are none that the model could have been trained on, or,
        of its queries, be asked about."""
        with torch.no_grad(), generators.preserved():
            self._require_fit(self._few_outputs[:1], examples)

    def trained_on(self, rows: Tensor) -> Problem:
        """The same weights and queries with some of the training examples, in memory: what a
        curvature of a part of the data is fitted on."""
        return self._with(train=self.train.take(rows.to(self.device)))

    def restricted(self, names: Sequence[str]) -> Problem:
        """The same problem in some of its parameters: the others are held at their values, as if
        they had not been trained."""
        chosen = set(names)
        own = self.parameters
        if not chosen or not chosen <= set(own.names):
            raise InputError(
                f"restricted() takes some of the parameters {list(own.names)}; seen {list(names)}"
            )
        kept = [(n, s) for n, s in zip(own.names, own.shapes, strict=True) if n in chosen]
        others = {name: value for name, value in self.theta.items() if name not in chosen}
        parameters = Parameters(
            names=tuple(name for name, _ in kept),
            shapes=tuple(shape for _, shape in kept),
            frozen=(*own.frozen, *others),
        )
        return self._with(
            parameters=parameters,
            theta={name: self.theta[name] for name in parameters.names},
            state={**self.state, **others},
            weight_decay={name: self.weight_decay[name] for name in parameters.names},
        )

    def remembering(self, remember: int) -> Problem:
        """The same problem with so many bytes for gradients that passes leave for later ones."""
        return self._with(remember=kinds.count(remember, "remember (bytes)", least=0))

    def about(self, queries: Examples, measurement: Measurement) -> Problem:
        """The same problem with examples of it as queries, under another measurement."""
        return self._with(
            queries=Examples(queries.inputs, queries.targets), measurement=measurement
        )

    def _with(self, **changes: object) -> Problem:
        """The same problem with some fields changed; what follows from them is found anew."""
        other = object.__new__(Problem)
        for each in fields(self):
            object.__setattr__(other, each.name, changes.get(each.name, getattr(self, each.name)))
        return other

    @property
    def exact(self) -> Problem:
        """The problem without autocast: itself where it has none."""
        return self if self.autocast is None else self._exact

    @cached_property
    def _exact(self) -> Problem:
        return self.to(self.dtype)

    @property
    def held(self) -> Held:
        """What its derivatives depend on beside the examples."""
        tried = self._tried.targets if isinstance(self.train, Stream) else self._tried_now.targets
        return Held(self.theta, self.state, self.loss, tried, self.n_outputs)

    @property
    def _tried_now(self) -> Examples:
        """Examples whose labels a loss is asked about."""
        count = min(len(self.train), TRIED)
        at = torch.linspace(0, len(self.train) - 1, count).long().unique()
        return self.train.take(at.to(self.device))

    @cached_property
    def _tried(self) -> Examples:
        return self._tried_now

    @property
    def fingerprint(self) -> str:
        """Of what a curvature depends on: the model's modules, weights, decay, loss, training set
        and autocast, with the values that they have now."""
        known: dict[object, str] = self.__dict__.setdefault("_fingerprints", {})
        state = repr(self.structure.modules), self.train.checksum, self.held.checksum
        if state not in known:
            tensors = (*self.theta.values(), *self.state.values(), self.decay, *self.train.tensors)
            paths = (paths_of(self.few.inputs), paths_of(self.few.targets))
            said = (state[0], self.structure.forward, self.loss, self.held.said, self.autocast)
            held = (*said, paths, self.train.weights is None, *tensors)
            known[state] = fingerprint(*held)
        return known[state]

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.theta.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.theta.values())).device

    @cached_property
    def arithmetic(self) -> torch.dtype:
        """The coarsest dtype that the model or the loss computes in, from a pass over two examples:
        what they round to, whatever the dtype of weights and inputs."""
        few, lowest = self.train.take(slice(0, 2)), Lowest()
        with torch.no_grad(), generators.preserved(), lowest:
            self.loss_of(few).values(self.forward(few.inputs.clone()), few.targets)
        return lowest.dtype or self.dtype

    @property
    def has_decay(self) -> bool:
        """Whether the weight decay, where there is one, enters the inverse."""
        return self.decay_in_inverse and not self.decoupled_decay

    @cached_property
    def decay(self) -> Tensor:
        """w as it enters C + diag(w) + λI, [P]; zero where the decay was decoupled, or was to be
        left out of the inverse."""
        for name, value in self.weight_decay.items():
            if value > torch.finfo(self.dtype).max:
                raise InputError(
                    f"the weight decay of {name}, {value:g}, is beyond {self.dtype}: use a smaller "
                    "one, or problem.to(torch.float64)"
                )
        rows = {
            name: torch.full_like(value, self.weight_decay[name] if self.has_decay else 0.0)
            for name, value in self.theta.items()
        }
        return self.parameters.flatten(rows)

    def loss_of(self, part: Examples) -> Loss:
        """v_n ℓ_n of these examples: the loss as it is where they have no weights."""
        return ScaledLoss.of(self.loss, part.weights)

    def forward(self, inputs: Batched, theta: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs [B, K] at `theta` (by default this problem's weights)."""
        everything = {**self.state, **(self.theta if theta is None else theta)}
        return self.loss.rows(self.run(everything, inputs), len(inputs))

    def holding(self, theta: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """For the backward pass of a `forward` at `theta`; see `Structure.holding`."""
        return self.structure.holding(self.state, self.theta, theta)

    def run(self, values: Mapping[str, Tensor], inputs: Batched) -> Tensor:
        """What the model returns with `values` in place of its tensors."""
        with own_code("the model"):
            try:
                if self.autocast is None:
                    return self.structure(values, inputs)
                # Without a cache: its casts of weights would outlive a pass that changes them.
                with torch.autocast(self.device.type, dtype=self.autocast, cache_enabled=False):
                    output = self.structure(values, inputs)
                return output.to(self.dtype)
            except IndexError as error:
                said = said_of_ids(error, inputs, self.structure.modules)
                raise InputError(f"the model raised IndexError: {error}{said}") from error

    def outputs(self, examples: Data, what: str, chunk: int = 4096) -> Tensor:
        """Outputs of all examples, [N, K], finite or raised with the index."""
        with torch.no_grad():
            rows = torch.cat([self.forward(part.inputs) for _, part in examples.chunks(chunk)])
        require_finite(rows, f"model output for the {what}")
        return rows

    def each_output(self, examples: Data, what: str) -> Iterator[tuple[Examples, Tensor]]:
        """Some examples with their outputs at a time, [B, K], finite or raised with the index."""
        for start, part in examples.chunks(CHECKED):
            with torch.no_grad():
                output = self.forward(part.inputs)
            require_finite(output, f"model output for the {what}", start)
            yield part, output


def require_problem(value: object) -> None:
    if not isinstance(value, Problem):
        raise InputError(
            f"problem must be a curvfluence.Problem; seen {type(value).__name__}: make one with "
            "Problem(model, loss, train, queries)"
        )
