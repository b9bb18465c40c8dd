"""What a library does with layers that K-FAC's Kronecker structure does not cover.

    python benchmarks/kinds.py peers.dattri LayerNorm      # one line of JSON

A small net with every parameter trainable is asked for EK-FAC scores at a very large λ, where
λ N I[q, n] must be g_qᵀ g_n over the parameters that count, whatever the curvature. Over which they
agree says whether the layer was included or left out.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from question import Question, Task
from torch import Tensor, nn
from workloads import example_losses

EXAMPLES, QUERIES = 64, 8
DAMPING, SAME = 1e4, 1e-3


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.head(self.attention(x_btd, x_btd, x_btd, need_weights=False)[0].mean(1))


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "LayerNorm": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
        lambda: torch.randn(EXAMPLES + QUERIES, 6),
    ),
    "Embedding": (
        lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)),
        lambda: torch.randint(0, 5, (EXAMPLES + QUERIES, 3)),
    ),
    "MultiheadAttention": (Attended, lambda: torch.randn(EXAMPLES + QUERIES, 4, 8)),
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3)),
        lambda: torch.randn(EXAMPLES + QUERIES, 2, 6),
    ),
}


def ask(kind: str, fisher: str) -> Question:
    torch.manual_seed(0)
    build, draw = KINDS[kind]
    model, inputs = build(), draw()
    targets = torch.randint(0, 3, (EXAMPLES + QUERIES,))
    task = Task("W1", "EKFAC", fisher, EXAMPLES, QUERIES, DAMPING, parameters="all")
    n = EXAMPLES
    return Question(task, model.eval(), inputs[:n], targets[:n], inputs[n:], targets[n:])


def said(library: str, kind: str) -> str:
    """In words: the message, or whether the layer counts."""
    fisher = "type2" if library == "peers.pydvl" else "empirical"
    question = ask(kind, fisher)
    modules = dict(question.model.named_modules())
    known = [f"{n}." for n, m in modules.items() if type(m) in (nn.Linear, nn.Conv2d)]
    every = inner(question, [""])
    others = inner(question, known)
    try:
        module = import_module(library)
        found = module.pairwise(question, module.fit(question)).double() * DAMPING * EXAMPLES
    except Exception as failure:
        return f"declines: {type(failure).__name__}: {failure}".splitlines()[0][:160]
    if float((found - every).norm() / every.norm()) <= SAME:
        return "included"
    if float((found - others).norm() / others.norm()) <= SAME:
        return "left out in silence"
    off = float((found - every).norm() / every.norm())
    return f"wrong: {off:.1e} from g_qᵀ g_n / λ at large λ"


def inner(question: Question, prefixes: list[str]) -> Tensor:
    """g_qᵀ g_n over the parameters whose names begin so, [Q, N]."""
    parameters = [
        p for name, p in question.model.named_parameters() if name.startswith(tuple(prefixes))
    ]

    def gradients(inputs: Tensor, targets: Tensor) -> Tensor:
        rows = [
            torch.autograd.grad(example_losses(question.model(x[None]), y[None]).sum(), parameters)
            for x, y in zip(inputs, targets, strict=True)
        ]
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).double()

    queries = gradients(question.query_inputs, question.query_targets)
    return queries @ gradients(question.inputs, question.targets).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library")
    parser.add_argument("kind", choices=list(KINDS))
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("\n" + json.dumps(said(options.library, options.kind)))


if __name__ == "__main__":
    main()
