"""One model after another in plain torch: what stacked paths must equal, and their fallback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import cast

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from curvfluence.problem.data import Examples
from curvfluence.problem.parameters import Parameters
from curvfluence.runtime import generators
from curvfluence.runtime.calls import OneCode
from curvfluence.runtime.threads import limited
from curvfluence.store.steps import Steps
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.resume import Alone, Optimized, Resume
from curvfluence.truth.run import Run, Share, batches, share
from curvfluence.truth.subsets import Subsets


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Where one run ended: θ, the frozen parameters and buffers, and its mean training loss."""

    theta: dict[str, Tensor]
    state: dict[str, Tensor]
    final_loss: float


def train_one(
    recipe: Recipe, examples: Examples, run: Run, subsets: Subsets | None = None
) -> Trajectory:
    """Train one model in a loop over minibatches.

    What the model draws while training (dropout masks) comes from torch's global generator, seeded
    from (init_seed, order_seed) and left as found. Retraining on a weighted subset thus sees the
    masks of the full run.
    """
    return _train(recipe, examples, share(run, examples, subsets), Resume(None))


def _train(recipe: Recipe, examples: Examples, share: Share, resume: Resume) -> Trajectory:
    x, y = examples.inputs, examples.targets
    device = examples.device
    model = recipe.build(share.run.init_seed, recipe.dtype(examples), device)
    parameters = Parameters.of(model)
    decay = recipe.decay(parameters)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = recipe.optimizer.build(
        [{"params": [p], "weight_decay": decay[n]} for n, p in named.items()]
    )
    rest = _rest(model, set(named))
    total = recipe.total_steps(len(share))
    found = resume.begin([share], Alone, "alone")
    start = 0 if found is None else found.step
    with generators.preserved(), torch.enable_grad(), OneCode():
        generators.seed(_noise_seed(share.run), device)
        if found is not None:
            found.optimized.put_into(optimizer)
            for key, value in rest.items():
                value.copy_(found.rest[key])
            generators.put_states(found.generators, device)
        for step, (index, weight) in enumerate(islice(batches(recipe, share), start, None), start):
            output = recipe.outputs(model, x[index])
            value_b = recipe.loss.values(output, y[index])
            optimizer.zero_grad()
            ((value_b * weight.to(value_b)).sum() / len(index)).backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(named.values(), recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(step, total)
            optimizer.step()
            if resume.due or (step + 1 == total and resume.near):
                states = generators.states(device)
                resume.keep(Alone(step + 1, Optimized.of(optimizer), rest, states))
    return _finish(recipe, examples, share, model, set(named))


def _rest(model: nn.Module, trained: set[str]) -> dict[str, Tensor]:
    """The model's own frozen parameters and buffers, by name."""
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in everything.items() if name not in trained}


def _finish(
    recipe: Recipe, examples: Examples, share: Share, model: nn.Module, trained: set[str]
) -> Trajectory:
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    final = {name: value.detach().clone() for name, value in everything.items()}
    model.eval()
    total = 0.0
    with torch.no_grad(), OneCode():
        for index, weight in zip(share.index.split(1024), share.weight.split(1024), strict=True):
            output = recipe.outputs(model, examples.inputs[index])
            value_b = recipe.loss.values(output, examples.targets[index])
            total += float((value_b.double() * weight.to(value_b.device)).sum())
    return Trajectory(
        theta={n: v for n, v in final.items() if n in trained},
        state={n: v for n, v in final.items() if n not in trained},
        final_loss=total / float(share.weight.sum()),
    )


def _noise_seed(run: Run) -> int:
    seed = np.random.SeedSequence((run.init_seed, run.order_seed, 1)).generate_state(1, np.uint64)
    return int(seed[0]) & (2**63 - 1)


def train_each(
    recipe: Recipe,
    examples: Examples,
    shares: Sequence[Share],
    processes: int,
    steps: Steps | None = None,
) -> Iterator[list[Trajectory]]:
    """Trajectories of the runs, in order and in pieces, from a pool of processes.

    With one process everything happens in this one. Otherwise recipe and data are pickled (by
    cloudpickle, so lambdas and local classes will do) once for each piece, four for each process.
    """
    size = 1 if processes == 1 else ceil(len(shares) / (4 * processes))
    pieces = [shares[i : i + size] for i in range(0, len(shares), size)]
    parallel = joblib.Parallel(n_jobs=processes, backend="loky", return_as="generator")
    tasks = (joblib.delayed(_train_piece)(recipe, examples, piece, steps) for piece in pieces)
    yield from cast("Iterator[list[Trajectory]]", parallel(tasks))


def _train_piece(
    recipe: Recipe, examples: Examples, piece: Sequence[Share], steps: Steps | None
) -> list[Trajectory]:
    resume = Resume(steps)
    with limited(1):
        return [_train(recipe, examples, share, resume) for share in piece]
