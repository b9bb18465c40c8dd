"""Scores of every rung on every net of the zoo: what a change that moves code must not move.

    python -m tests.golden    # write tests/golden.json anew, where a number was meant to change

Each entry is a list of numbers in 13 digits. A commit that rewrites the file says why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature import hessian, hybrids, inversion
from curvfluence.study.climb import influence_problems
from curvfluence.study.problems import load
from curvfluence.truth import Run, train
from tests.zoo import CASES, TOKENS, zoo_problem

FILE = Path(__file__).with_suffix(".json")
DAMPING = cf.Absolute(0.03)
NETS = tuple(CASES)
PROBLEMS = ("wine", "diabetes", "breast_cancer")

RUNGS: dict[str, Callable[[], cf.Rung]] = {
    "Identity": cf.Identity,
    "Diagonal": cf.Diagonal,
    "Diagonal mc(3)": lambda: cf.Diagonal(cf.MonteCarlo(3, seed=5)),
    "KFAC": cf.KFAC,
    "KFAC apart": lambda: cf.KFAC(joint_bias=False),
    "KFAC reduce": lambda: cf.KFAC(sharing=cf.Reduce()),
    "KFAC empirical": lambda: cf.KFAC(cf.Empirical()),
    "KFAC factored": lambda: cf.KFAC(cf.MonteCarlo(3, seed=5), factored_damping=True),
    "EKFAC": cf.EKFAC,
    "EKFAC apart": lambda: cf.EKFAC(joint_bias=False),
    "EKFAC reduce": lambda: cf.EKFAC(sharing=cf.Reduce()),
    "EKFAC empirical": lambda: cf.EKFAC(cf.Empirical()),
    "EKFAC mc(3), exact values": lambda: cf.EKFAC(cf.MonteCarlo(3, seed=5), values=cf.Type2()),
    "Shampoo": cf.Shampoo,
    "TKFAC": cf.TKFAC,
    "EShampoo": cf.EShampoo,
    "BlockGGN": cf.BlockGGN,
    "BlockGGN apart": lambda: cf.BlockGGN(joint_bias=False),
    "GGN": cf.GGN,
    "GGN sample space": lambda: cf.GGN(inversion.SampleSpace()),
    "GGN iterated": lambda: cf.GGN(inversion.ConjugateGradients(tolerance=1e-14)),
    "Hessian": cf.Hessian,
    "Hessian clip": lambda: cf.Hessian(hessian.Clip()),
    "projected": lambda: hybrids.Project(cf.BlockGGN(), cf.KFAC()),
    "sorted": lambda: hybrids.Sorted(cf.BlockGGN(), cf.KFAC()),
    "trace-matched": lambda: hybrids.TraceMatched(cf.KFAC(), cf.BlockGGN()),
}


def scores(net: str, rung: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """[Q, N] of one rung; a row of NaN where it refuses the net."""
    try:
        return cf.influence(zoo_problem(net).to(dtype), RUNGS[rung](), damping=DAMPING).values
    except cf.errors.InputError:
        return torch.full((1,), torch.nan, dtype=dtype)


def others(net: str) -> Iterator[tuple[str, Tensor]]:
    """Scores of other kinds."""
    problem = zoo_problem(net)
    groups = torch.arange(len(problem.train)) % 3
    yield "self, EKFAC", cf.self_influence(problem, cf.EKFAC(), damping=DAMPING)
    yield "self, GGN", cf.self_influence(problem, cf.GGN(), damping=DAMPING)
    yield "groups, KFAC", cf.group_influence(problem, cf.KFAC(), groups, damping=DAMPING)
    yield "leverage, GGN", cf.influence(problem, cf.GGN(), damping=DAMPING, leverage=True).values
    if CASES[net].inputs == TOKENS:
        yield "tokens, EKFAC", cf.token_influence(problem, cf.EKFAC(), damping=DAMPING)


@cache
def study_problem(name: str) -> cf.Problem:
    """A built-in problem at a model that a few epochs of its recipe gave, in float64."""
    loaded = load(name)
    short = replace(loaded, recipe=replace(loaded.recipe, epochs=5))
    data = loaded.train.to(loaded.train.device, torch.float64)
    trained = train(short.recipe, data, [Run(0, 0)], threads=1)
    (problem,) = influence_problems(short, trained)
    return problem


def of_problem(name: str, rung: str) -> Tensor:
    """Some of the scores: of the first queries, on examples from everywhere."""
    problem = study_problem(name)
    at = cf.influence(problem, RUNGS[rung](), damping=DAMPING).values
    return at[:3, :: len(problem.train) // 7].contiguous()


def everything() -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {}
    for name in PROBLEMS:
        for rung in RUNGS:
            found[f"{name} | {rung}"] = _listed(of_problem(name, rung))
    for net in NETS:
        for rung in RUNGS:
            found[f"{net} | {rung}"] = _listed(scores(net, rung))
        for kind, values in others(net):
            found[f"{net} | {kind}"] = _listed(values)
    return found


def _listed(values: Tensor) -> list[float | None]:
    return [None if x != x else float(f"{x:.13g}") for x in values.flatten().tolist()]


def read() -> dict[str, Tensor]:
    """The entries of the file, None as NaN."""
    kept = json.loads(FILE.read_text())
    return {
        name: torch.tensor([torch.nan if x is None else x for x in row], dtype=torch.float64)
        for name, row in kept.items()
    }


def write() -> None:
    rows = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in everything().items())
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write()
