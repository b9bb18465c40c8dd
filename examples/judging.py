"""Are scores that another library made any good? Ask retraining.

    python examples/judging.py

The scores are of ten lines of plain torch that stand for somebody's own method: cosines of the
gradients of each query and each training example, which many pipelines use to select data. They are
held against retrainings of `wine` that ship with the package (480 models on random halves of the
data, from 4 initialisations), beside EK-FAC and GGN of this library and baselines that any method
must beat.
"""

from __future__ import annotations

from time import perf_counter

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, normalize

import curvfluence as cf
from curvfluence.judging import model_of, problem_of

start = perf_counter()


def cosines(model: torch.nn.Module, train, queries) -> torch.Tensor:
    """Somebody's own scores, [query, train]."""
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def loss(weights, x, y):
        return cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    def gradients(examples) -> torch.Tensor:
        found = vmap(grad(loss), (None, 0, 0))(weights, examples.inputs, examples.targets)
        return torch.cat([part.flatten(1) for part in found.values()], 1)

    return normalize(gradients(queries)) @ normalize(gradients(train)).T


scores = []
for k in range(4):  # the influence models of the bank
    problem = problem_of("wine", k)
    scores.append(cosines(model_of(problem), problem.train, problem.queries))

found = cf.judge(torch.stack(scores), "wine", positive="helps", name="cosines")
print("method                   LDS  95% interval     cosines less it")
for one in found.methods:
    low, high = one.interval
    less = "" if one.less is None else f"{one.less:+.3f}"
    print(f"{one.name:20} {one.lds:+7.3f}  {low:+.3f} to {high:+.3f}  {less}")
print(f"the noise of the truth allows {found.best_lds.matched:.2f}")
print(f"seconds: {perf_counter() - start:.1f}")
