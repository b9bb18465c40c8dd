"""What float32 and a bfloat16 forward pass cost: scores against the same in float64.

    python benchmarks/precision.py [--docs docs/precision.md]

W1 (digits), W3 (a convolutional net) and W4 (a transformer on bytes), see `workloads`, at their
trained weights. Without --docs the table is printed.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from workloads import load

import curvfluence as cf

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Question:
    """Some examples and queries of a workload, and the rungs that are asked of it."""

    workload: str
    examples: int
    queries: int
    rungs: tuple[cf.Rung, ...]
    damping: float


@dataclass(frozen=True)
class Row:
    workload: str
    rung: str
    errors: tuple[float, ...]  # of each dtype: ‖scores − float64's‖ / ‖float64's‖
    ranks: tuple[float, ...]  # the lowest Spearman correlation of a query with float64's


LAYERED = (cf.Identity(), cf.Diagonal(), cf.KFAC(), cf.EKFAC())
QUESTIONS = (
    Question("W1", 1617, 180, (*LAYERED, cf.BlockGGN(), cf.GGN(), cf.Hessian()), 1e-3),
    Question("W3", 500, 20, LAYERED, 1e-3),
    # sampled labels could fall differently in another dtype: the training labels' own gradients
    Question(
        "W4",
        32,
        8,
        (cf.Identity(), cf.Diagonal(cf.Empirical()), cf.EKFAC(cf.Empirical())),
        1e-1,
    ),
)


def problem_of(question: Question, dtype: str) -> cf.Problem:
    trained = load(question.workload)
    data, n, q = trained.data, question.examples, question.queries
    positions = data.targets.ndim > 1
    loss = cf.CrossEntropy()
    single = cf.Problem(
        trained.model(),
        cf.Positions(loss, reduction="sum") if positions else loss,
        (data.inputs[:n], data.targets[:n]),
        (data.query_inputs[:q], data.query_targets[:q]),
        autocast=torch.bfloat16 if dtype == "bfloat16" else None,
    )
    return single.to(torch.float64) if dtype == "float64" else single


def rows_of(question: Question) -> Iterator[Row]:
    exact = problem_of(question, "float64")
    others = [problem_of(question, dtype) for dtype in DTYPES]
    damping = cf.Absolute(question.damping)
    for rung in question.rungs:
        wanted = cf.influence(exact, rung, damping=damping)
        errors: list[float] = []
        ranks: list[float] = []
        for problem in others:
            found = cf.influence(problem, rung, damping=damping).values.double()
            errors.append(float((found - wanted.values).norm() / wanted.values.norm()))
            pairs = zip(found, wanted.values, strict=True)
            ranks.append(min(float(spearmanr(a, b).statistic) for a, b in pairs))
        yield Row(question.workload, wanted.rung, tuple(errors), tuple(ranks))


def table(rows: list[Row]) -> str:
    head = "| | " + " | ".join(f"{d}: error | lowest rank correlation" for d in DTYPES) + " |"
    lines = [head, "|---|" + "---|---|" * len(DTYPES)]
    for row in rows:
        cells = [f"{e:.1e} | {r:.4f}" for e, r in zip(row.errors, row.ranks, strict=True)]
        lines.append(f"| {row.workload} {row.rung} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    asked = "\n".join(
        f"- {q.workload}: {load(q.workload).workload.title}; {q.examples} examples, {q.queries} "
        f"queries, λ = {q.damping:g}"
        for q in QUESTIONS
    )
    return f"""# Precision

Scores against the same rung in float64, at the same trained weights: relative Frobenius error of
all scores, and of the queries the lowest Spearman correlation with float64. `bfloat16` is
`Problem(..., autocast=torch.bfloat16)`: the model's forward and backward passes under
`torch.autocast`, as mixed-precision training runs them; layer inputs and gradients are then turned
into float32, and factors, eigendecompositions, solves and scores are made in that. `float32` and
`float64` are the dtype of the model's weights.

{table(rows)}

{asked}

Made by `python benchmarks/precision.py --docs docs/precision.md` (torch {torch.__version__},
{platform.machine()}).

- A factor with two equal eigenvalues has no unique eigenbasis: in float32 EK-FAC may then differ
  between any two machines. In float64 it does not (but see `Reduce()` in [limits](limits.md)).
- The Hessian, products by double backward (conjugate gradients of losses with many outputs) and
  certificates are computed without autocast, and so are the checks of which weights have a rule and
  that per-example gradients add up.
- `float32` is float32 on CUDA too: where torch would take TF32 (convolutions by default, matrix
  products if told so), that is off while a rung is fitted or scored, and then as it was found
  (`Curvature.solve` and `matvec` called by hand run under torch's settings). Checks of an example
  alone against its batch would find TF32's rounding.
- Where a ReLU's input is within rounding of 0, its gradient is another one on another device or in
  another dtype. On a CUDA device one of W2's 4.6 million first hidden units was (−5e-8): EK-FAC
  with training labels then has an error of 1.6e-4; on the CPU none was, and it has 1.4e-6.
- The residual of a certificate holds what bfloat16 cost the inverse and the queries' gradients; the
  training examples' own gradients are not in it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, help="write the page to this file")
    docs = parser.parse_args().docs
    rows = [row for question in QUESTIONS for row in rows_of(question)]
    if docs is None:
        print(table(rows))
    else:
        docs.write_text(page(rows))


if __name__ == "__main__":
    main()
