"""Train many small models: which path, how they are spread over cores, what comes back."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from curvfluence import kinds
from curvfluence.errors import InputError, NonFiniteError
from curvfluence.jacobian.own_functions import ROWS, require_own_loss
from curvfluence.problem.data import Examples
from curvfluence.problem.own_code import own_code
from curvfluence.problem.parameters import Parameters
from curvfluence.runtime.calls import OneCode
from curvfluence.store.steps import Steps
from curvfluence.truth.paths import Path, choose_path, network_of, require_path, theta_of
from curvfluence.truth.processes import train_each
from curvfluence.truth.recipe import Recipe
from curvfluence.truth.resume import Resume
from curvfluence.truth.run import Run, Share, share
from curvfluence.truth.subsets import Subsets
from curvfluence.truth.threads import spread
from curvfluence.truth.together import final_losses, train_together


@dataclass(frozen=True, eq=False)
class Trained:
    """M trained models, in the order of `runs`.

    `theta[name]` is [M, *shape], and so is `state[name]` of frozen parameters and buffers.
    `final_loss` [M] is the weighted mean loss over a run's own examples at the end, in evaluation
    mode, in float64.
    """

    runs: tuple[Run, ...]
    theta: dict[str, Tensor] = field(repr=False)
    state: dict[str, Tensor] = field(repr=False)
    final_loss: Tensor = field(repr=False)
    path: Path
    reason: str
    seconds: float

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def diverged(self) -> Tensor:
        """Which of them hold a NaN or infinity, or have such a loss, [M]."""
        return _diverged(self.theta, self.final_loss)

    def only(self, positions: Sequence[int]) -> Trained:
        """Some of them."""
        at = list(positions)
        return replace(
            self,
            runs=tuple(self.runs[k] for k in at),
            theta={name: value[at] for name, value in self.theta.items()},
            state={name: value[at] for name, value in self.state.items()},
            final_loss=self.final_loss[at],
        )

    def weights(self, model: int) -> dict[str, Tensor]:
        """The checkpoint of one model, for `Problem(weights=...)` or `load_state_dict`."""
        return {name: value[model] for name, value in {**self.state, **self.theta}.items()}


@dataclass(frozen=True, eq=False)
class _Piece:
    """What a path hands back for some of the runs: `theta[name]` is [len(positions), *shape]."""

    positions: Sequence[int]
    theta: dict[str, Tensor]
    state: dict[str, Tensor]
    final_loss: Tensor


def train(
    recipe: Recipe,
    examples: Examples,
    runs: Sequence[Run],
    subsets: Subsets | None = None,
    *,
    path: Path | None = None,
    chunk: int | None = None,
    threads: int | None = None,
    steps: Steps | None = None,
    keep_diverged: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Train one model for each run; a run's result does not depend on the others.

    Each is a function of (recipe, examples, weights of its subset, init_seed, order_seed). On the
    stacked path the parameters are bitwise the same however many models train together. `path`
    overrides the choice (`choose_path`). At most `chunk` models (by default as many as hold two
    million parameters, 8 to 256) train side by side in each of `threads` threads (by default as
    many as torch uses). Where it takes long, states are kept in `steps`, and a training of the same
    recipe, data and runs goes on from the last. `progress` is told how many runs are done so far.

    Cost: the models' flops at the speed of batched products; memory for `chunk` · `threads` models'
    activations, gradients and optimiser state, and for what is returned.

    Errors: `InputError` where loss, data, subsets and architecture do not fit; `NonFiniteError`
    naming the first run found to have diverged, unless `keep_diverged`: see `Trained.diverged`.
    """
    started = time.perf_counter()
    if not isinstance(recipe, Recipe):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"recipe must be a curvfluence.truth.Recipe; seen {recipe!r}")
    if not isinstance(examples, Examples):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            "examples must be curvfluence.Examples(inputs, targets); seen "
            f"{type(examples).__name__}"
        )
    runs = _runs(runs)
    for given, name in ((chunk, "chunk"), (threads, "threads")):
        if given is not None:
            kinds.count(given, name)
    if subsets is not None and not isinstance(subsets, Subsets):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"subsets must be curvfluence.truth.Subsets; seen {subsets!r}")
    if progress is not None:
        kinds.function(progress, "progress")
    shares = [share(run, examples, subsets) for run in runs]
    model = recipe.build(runs[0].init_seed, recipe.dtype(examples), examples.device)
    recipe = _fitting(recipe, model, examples)
    choice = choose_path(recipe, examples) if path is None else require_path(path, recipe, examples)
    workers = torch.get_num_threads() if threads is None else threads
    if choice.path is Path.PROCESSES:
        pieces = _by_processes(recipe, examples, shares, workers, steps)
    else:
        size = _chunk(choice.path, Parameters.of(model).count) if chunk is None else chunk
        together = _pieces(shares, size, workers)
        pieces = _side_by_side(choice.path, recipe, examples, shares, together, workers, steps)
    with closing(pieces):  # or threads would outlive an error for as long as its traceback
        theta, state, final_loss = _collect(runs, pieces, progress, keep_diverged=keep_diverged)
    seconds = time.perf_counter() - started
    return Trained(runs, theta, state, final_loss, choice.path, choice.reason, seconds)


def _chunk(path: Path, parameters: int) -> int:
    """Many for little networks, where most time goes into calling kernels; few for large ones.

    Under vmap activations are not reused, and for convolutions far outweigh the parameters.
    """
    return max(8, min(256 if path is Path.STACKED else 64, 2_000_000 // parameters))


def _runs(runs: object) -> tuple[Run, ...]:
    several: list[Any] = list(runs) if isinstance(runs, Iterable) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if not several or not all(isinstance(run, Run) for run in several):
        raise InputError(
            f"nothing to train: runs must be curvfluence.truth.Run, one or more, as grid(...) "
            f"makes them; seen {reprlib.repr(runs)}"
        )
    return tuple(several)


def _fitting(recipe: Recipe, model: nn.Module, examples: Examples) -> Recipe:
    """The recipe with its loss bound to the examples, once both are known to fit."""
    mode, few = model.training, examples[:ROWS]
    with torch.no_grad(), OneCode(), own_code("the recipe's model"):
        output = recipe.calls(model.eval(), few.inputs)
    model.train(mode)
    loss = recipe.loss
    if not loss.is_bound:
        loss = loss.bound(tuple(output.shape[1:]), [(examples.targets, examples.weights)])
    rows = loss.rows(output, len(few))
    loss.check(rows.shape[-1], examples.targets)
    require_own_loss(loss, rows, few.targets)
    return replace(recipe, loss=loss)


def _by_processes(
    recipe: Recipe,
    examples: Examples,
    shares: Sequence[Share],
    processes: int,
    steps: Steps | None,
) -> Generator[_Piece, None, None]:
    done = 0
    for trajectories in train_each(recipe, examples, shares, processes, steps):
        positions = range(done, done + len(trajectories))
        done += len(trajectories)
        first = trajectories[0]
        yield _Piece(
            positions,
            {n: torch.stack([t.theta[n] for t in trajectories]) for n in first.theta},
            {n: torch.stack([t.state[n] for t in trajectories]) for n in first.state},
            torch.tensor([t.final_loss for t in trajectories], dtype=torch.float64),
        )


def _side_by_side(
    path: Path,
    recipe: Recipe,
    examples: Examples,
    shares: Sequence[Share],
    pieces: Sequence[list[int]],
    threads: int,
    steps: Steps | None,
) -> Generator[_Piece, None, None]:
    dtype, device = recipe.dtype(examples), examples.device
    model = recipe.build(shares[0].run.init_seed, dtype, device)
    # Building draws on the global generator, so it stays in this thread.
    fresh = {seed: recipe.start(seed, dtype) for seed in {one.run.init_seed for one in shares}}

    def work(positions: list[int]) -> _Piece:
        batch = [shares[i] for i in even(positions)]
        starts = [fresh[s.run.init_seed] for s in batch]
        theta, state = (
            {name: torch.stack([s[k][name] for s in starts]).to(device) for name in starts[0][k]}
            for k in (0, 1)
        )
        network = network_of(path, recipe, model, theta, state)
        train_together(network, recipe, examples, batch, Resume(steps))
        loss_m = final_losses(network, recipe, examples, batch)
        theta = theta_of(network)
        m = len(positions)
        return _Piece(
            positions,
            {name: value[:m] for name, value in theta.items()},
            {name: value[:m] for name, value in state.items()},
            loss_m[:m],
        )

    with closing(spread(work, pieces, threads)) as done:
        for _, piece in done:
            yield piece


def even(positions: Sequence[int]) -> list[int]:
    """The same positions, the last one twice if they are odd in number: see `StackedChain`."""
    return [*positions, *positions[-1:]] if len(positions) % 2 else list(positions)


def _pieces(shares: Sequence[Share], chunk: int, threads: int) -> list[list[int]]:
    """Positions of runs that train side by side: equally many examples, so equally many steps."""
    groups: dict[int, list[int]] = {}
    for i, one in enumerate(shares):
        groups.setdefault(len(one), []).append(i)
    pieces: list[list[int]] = []
    for group in groups.values():
        # A multiple of the threads, so that all finish together.
        count = threads * ceil(len(group) / (chunk * threads))
        size = ceil(len(group) / count)
        pieces += [group[i : i + size] for i in range(0, len(group), size)]
    return pieces


def _collect(
    runs: Sequence[Run],
    pieces: Iterable[_Piece],
    progress: Callable[[int], None] | None,
    *,
    keep_diverged: bool,
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    theta: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    final_loss = torch.empty(len(runs), dtype=torch.float64)
    done = 0
    for piece in pieces:
        positions = torch.as_tensor(piece.positions)
        for into, values in ((theta, piece.theta), (state, piece.state)):
            for name, value in values.items():
                if name not in into:
                    into[name] = value.new_empty(len(runs), *value.shape[1:])
                into[name][positions] = value
        final_loss[positions] = piece.final_loss.cpu()
        if not keep_diverged:
            _require_converged(runs, piece)
        done += len(piece.positions)
        if progress is not None:
            progress(done)
    return theta, state, final_loss


def _diverged(theta: Mapping[str, Tensor], final_loss: Tensor) -> Tensor:
    bad_m = ~final_loss.isfinite().cpu()
    for value in theta.values():
        bad_m |= ~value.isfinite().reshape(len(value), -1).all(1).cpu()
    return bad_m


def _require_converged(runs: Sequence[Run], piece: _Piece) -> None:
    bad_m = _diverged(piece.theta, piece.final_loss)
    bad = bad_m.nonzero().flatten()
    if len(bad):
        position = piece.positions[int(bad[0])]
        raise NonFiniteError(
            f"training diverged to NaN or infinity in run {position} ({runs[position]}), and in "
            f"{len(bad)} of the {len(bad_m)} trained with it: lower the learning rate, or set "
            "clip_norm"
        )
