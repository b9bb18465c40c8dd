"""Seconds to train 64 small models at once, against one after another: `python trainer.py`.

The 64-(64, 32)-10 GELU network on data of the size of Digits, batch 32, SGD with momentum, one
thread. The plain loop indexes tensors for its minibatches and is timed on a few models and scaled,
since its time is proportional to their number; the others train all 64. Every figure is the
shortest of several rounds, taken in turn, so that other work on the machine falls on all alike.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import torch
from torch import nn

from curvfluence.problem.data import Examples
from curvfluence.problem.losses import CrossEntropy
from curvfluence.truth import Path, Recipe, Run, grid, random_subsets, sgd, train

MODELS, FEW, ROWS = 64, 2, 1617


def network(*hidden: int) -> nn.Module:
    widths = (64, *hidden, 10)
    modules: list[nn.Module] = []
    for i, o in pairwise(widths):
        modules += [nn.Linear(i, o), nn.GELU()]
    return nn.Sequential(*modules[:-1])


def digits_like() -> Examples:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=generator)
    labels = torch.randint(0, 10, (ROWS,), generator=generator)
    noise = torch.randn(ROWS, 64, generator=generator)
    return Examples(centres[labels] + 2 * noise, labels)


def plain_loop(data: Examples, epochs: int, models: int) -> float:
    """Seconds of the loop anyone would write first, with nothing around it."""
    started = time.perf_counter()
    for seed in range(models):
        torch.manual_seed(seed)
        model = network(64, 32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=3e-3)
        loss = nn.CrossEntropyLoss()
        for _ in range(epochs):
            for index in torch.randperm(ROWS).split(32):
                optimizer.zero_grad()
                loss(model(data.inputs[index]), data.targets[index]).backward()
                optimizer.step()
    return time.perf_counter() - started


def products_alone(epochs: int, hidden: tuple[int, ...], batch: int = 32) -> float:
    """Seconds of the batched products of `stacked` and of nothing else: the limit of what stacking
    can reach. Eight a step (forward, into the weights, into the inputs but for the first layer), in
    memory that is used again, and the forward ones of the losses at the end."""
    shapes = tuple(pairwise((64, *hidden, 10)))
    weights = [torch.randn(MODELS, i, o) for i, o in shapes]
    grads = [torch.empty_like(weight) for weight in weights]

    def buffers(rows: int) -> list[torch.Tensor]:
        widths = (shapes[0][0], *(o for _, o in shapes))
        return [torch.randn(MODELS, rows, width) for width in widths]

    values, backward, last = buffers(batch), buffers(batch), buffers(256)
    started = time.perf_counter()
    for _ in range(epochs * -(-ROWS // batch)):
        for k, weight in enumerate(weights):
            torch.bmm(values[k], weight, out=values[k + 1])
        for k in reversed(range(len(weights))):
            torch.bmm(values[k].transpose(1, 2), backward[k + 1], out=grads[k])
            if k:
                torch.bmm(backward[k + 1], weights[k].transpose(1, 2), out=backward[k])
    for _ in range(-(-ROWS // 256)):
        for k, weight in enumerate(weights):
            torch.bmm(last[k], weight, out=last[k + 1])
    return time.perf_counter() - started


def compare(rounds: int, epochs: int) -> None:
    data = digits_like()
    recipe = Recipe(
        lambda: network(64, 32),
        CrossEntropy(),
        sgd(0.03, 0.9),
        32,
        epochs=epochs,
        weight_decay=3e-3,
    )
    runs = [Run(i, i) for i in range(MODELS)]
    seconds: dict[str, list[float]] = {"plain loop": [], "stacked": [], "functional": []}
    for _ in range(rounds):
        seconds["plain loop"].append(plain_loop(data, epochs, FEW) * MODELS / FEW)
        for path in (Path.STACKED, Path.FUNCTIONAL):
            seconds[path.value].append(train(recipe, data, runs, path=path, threads=1).seconds)
    slowest = min(seconds["plain loop"])
    print(f"{MODELS} models of 64-(64,32)-10, {epochs} epochs of {ROWS} rows, batch 32, 1 thread")
    for name, values in seconds.items():
        scaled = f"  ({FEW} models timed, scaled)" if name == "plain loop" else ""
        print(f"  {name:<12}{min(values):8.3f} s{slowest / min(values):8.1f}×{scaled}")


def share_of_limit(rounds: int, epochs: int) -> None:
    """How much of a training of usual length is its batched products, by width."""
    data = digits_like()
    for hidden in ((16, 16), (64, 32), (128, 64), (256, 256)):
        recipe = Recipe(
            lambda hidden=hidden: network(*hidden),
            CrossEntropy(),
            sgd(0.03, 0.9),
            32,
            epochs=epochs,
            weight_decay=3e-3,
        )
        runs = [Run(i, i) for i in range(MODELS)]
        shares: list[float] = []
        for _ in range(rounds):
            alone = products_alone(epochs, hidden)
            trained = train(recipe, data, runs, path=Path.STACKED, threads=1)
            shares.append(alone / trained.seconds)
        shares.sort()
        print(
            f"  64-{hidden}-10, {epochs} epochs: batched products alone take "
            f"{shares[rounds // 2]:.0%} ({shares[0]:.0%} to {shares[-1]:.0%})"
        )


def study(threads: int, epochs: int) -> None:
    """The retrainings of a small study: 480 models on half of the data each."""
    data = digits_like()
    recipe = Recipe(
        lambda: network(16, 16),
        CrossEntropy(),
        sgd(0.03, 0.9),
        32,
        epochs=epochs,
        weight_decay=3e-3,
    )
    subsets = random_subsets(ROWS, keep=0.5, count=96, seed=0)
    trained = train(recipe, data, grid(range(5), [0], 96), subsets, threads=threads)
    print(
        f"480 models of 64-(16,16)-10, {epochs} epochs of {len(subsets.own(0)[0])} rows, "
        f"{threads} threads: {trained.seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--study-epochs", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain_loop(digits_like(), 1, 1)  # torch's lazy imports
    compare(options.rounds, options.epochs)
    share_of_limit(max(3, options.rounds), options.study_epochs)
    for threads in (1, 2):
        study(threads, options.study_epochs)


if __name__ == "__main__":
    main()
