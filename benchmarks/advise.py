"""Is the advice any good? Against retraining, on built-in problems.

    python benchmarks/advise.py [PROBLEM ...] [--subsets 60] [--out advise.json]

For each problem one influence model is trained, and retrained on random halves of the data (matched
initialisation). For each budget: the rung that `cf.advise` names without any retraining, its LDS at
the λ that goes with it, and the highest LDS of any rung that the budget allows at its own best λ of
a grid, which is chosen on the same queries and so a little too high. For each rung and each
criterion for λ: how much LDS it loses to that best λ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from curvfluence.advising import advise
from curvfluence.advising.advise import QUERIES, _few
from curvfluence.advising.dampings import GRID, try_all
from curvfluence.advising.retrained import Retrained, retrained
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.damping import Absolute, Damping
from curvfluence.curvature.named import rung_named
from curvfluence.curvature.rung import fit
from curvfluence.fidelity.lds import spearman
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import query_gradients
from curvfluence.score.best_damping import group_predictions
from curvfluence.score.group_gradients import group_gradients
from curvfluence.study import load

PROBLEMS = ("digits", "digits-noisy", "mnist5k", "breast_cancer", "wine", "diabetes")
BUDGETS = (1.0, 10.0, 60.0)
RUNGS = ("GGN", "BlockGGN", "EKFAC", "KFAC")


def lds(made: Retrained, curvature: Curvature, dampings: tuple[Damping, ...]) -> list[float]:
    """Of a rung at each damping, over all queries."""
    layout = discover(made.problem)
    g_qp = query_gradients(made.problem, layout).to_dense()[:, 0]
    groups = group_gradients(made.problem, layout, made.truth.left_out)
    n = len(made.problem.train)
    rows = group_predictions(curvature, g_qp, groups, dampings, n).double().numpy()
    truth = np.ascontiguousarray(made.truth.values.numpy().T)
    return [float(spearman(np.ascontiguousarray(row), truth).mean()) for row in rows]


def of_problem(name: str, subsets: int, folder: Path) -> dict[str, Any]:
    made = retrained(load(name), subsets, folder / name)
    problem = made.problem
    grid = tuple(map(Absolute, GRID))
    best: dict[str, float] = {}
    regrets: dict[str, dict[str, float]] = {}
    few = problem.asking(_few(len(problem.queries), QUERIES))
    for rung in RUNGS:
        curvature = fit(problem, rung_named(rung))
        best[rung] = max(lds(made, curvature, grid))
        tried = try_all(few, rung_named(rung), curvature)
        found = lds(made, curvature, tuple(one.damping for one in tried))
        regrets[rung] = {
            one.name: best[rung] - value for one, value in zip(tried, found, strict=True)
        }
    budgets = []
    for budget in BUDGETS:
        advice = advise(problem, budget)
        allowed = [one.name for one in advice.candidates if one.affordable]
        curvature = fit(problem, advice.rung)
        (own,) = lds(made, curvature, (curvature.fixed_damping or advice.damping,))
        highest = (
            max((best[rung], rung) for rung in allowed if rung in best)
            if any(rung in best for rung in allowed)
            else (own, advice.name)
        )
        row = {
            "budget": budget, "advised": advice.name, "damping": str(advice.damping), "lds": own,
            "best": highest[1], "best_lds": highest[0], "gap": highest[0] - own,
            "seconds": advice.seconds, "taken": advice.candidate.seconds,
        }  # fmt: skip
        budgets.append(row)
        print(
            f"{name:14} {budget:4g} s: {advice.name:9} {advice.damping!s:15} LDS {own:.3f}; best "
            f"{highest[1]} {highest[0]:.3f}; gap {row['gap']:+.3f}; advised in "
            f"{advice.seconds:.1f} s"
        )
    for rung, found in regrets.items():
        print(f"{name:14} {rung:9} best {best[rung]:.3f}; regret of λ by " + ", ".join(
            f"{criterion} {value:.3f}" for criterion, value in found.items()))  # fmt: skip
    return {"problem": name, "best": best, "regrets": regrets, "budgets": budgets}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=Path("runs/advise"))
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    found = [of_problem(name, asked.subsets, asked.folder) for name in asked.problems]
    for criterion in next(iter(found[0]["regrets"].values())):
        values = [row[criterion] for one in found for row in one["regrets"].values()]
        print(f"{criterion:12} mean regret {np.mean(values):.3f}, largest {max(values):.3f}")
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
