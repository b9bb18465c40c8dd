"""The Hessian by its products beside its matrix: products, seconds and the error of scores.

    python benchmarks/iterated_hessian.py

A bundled problem's trained net and 20 of its queries. `Plain()` with one selected row (no
preconditioner to speak of) and with 1,000, at several dampings; `Abs()` at the largest of them,
whose negative eigenpairs are looked for first; the matrix with its decomposition beside them.
"""

from __future__ import annotations

import argparse
import time

import torch
from selected_rows import counting

import curvfluence as cf
from curvfluence.curvature.hessian import Abs, Plain, Treatment
from curvfluence.curvature.inversion import SelectedRows
from curvfluence.study.problems.given import given


def by_rows(treatment: Treatment, count: int, most: int, asked: argparse.Namespace) -> cf.Rung:
    form = SelectedRows(count, asked.tolerance, asked.max_products, most=most)
    return cf.Hessian(treatment, form=form)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", default="digits-large")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--max-products", type=int, default=400)
    parser.add_argument("--damping", type=float, action="append")
    parser.add_argument("--without-abs", action="store_true", help="it takes minutes")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    problem = given(asked.problem).problem.asking(range(asked.queries))
    print(
        f"{asked.problem}: {problem.parameters.count:,} parameters, {len(problem.train)} examples"
    )
    dampings = asked.damping or [1e-1, 1e-2]
    start = time.perf_counter()
    fits = {"Plain": cf.fit(problem, cf.Hessian(Plain()))}
    print(f"the matrix and its decomposition: {time.perf_counter() - start:.1f} s", flush=True)
    ways = [
        ("plain, 1 row", Plain(), 1, 1, dampings),
        ("plain, 1,000 rows, no more", Plain(), 1000, 1000, dampings),
        ("plain, 1,000 rows or more", Plain(), 1000, 8000, dampings),
        *([] if asked.without_abs else [("abs, 1,000 rows", Abs(), 1000, 8000, dampings[:1])]),
    ]
    print("| λ | way | products | vectors | seconds | largest residual | error | notes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, treatment, count, most, at in ways:
        for damping in at:
            with counting() as products:
                start = time.perf_counter()
                rung = by_rows(treatment, count, most, asked)
                scores = cf.influence(problem, rung, damping=cf.Absolute(damping))
                seconds = time.perf_counter() - start
            kind = type(treatment).__name__
            if kind not in fits:
                fits[kind] = cf.fit(problem, cf.Hessian(treatment))
            true = cf.influence(problem, fits[kind], damping=cf.Absolute(damping)).values
            error = float((scores.values - true).norm() / true.norm())
            notes = "; ".join(note for note in scores.notes if "selected rows" in note)
            print(
                f"| {damping:g} | {name} | {len(products)} | {sum(products):,} | {seconds:.1f} | "
                f"{max(scores.residuals):.1e} | {error:.1e} | {notes} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
