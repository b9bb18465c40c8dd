"""Rows that are handed over to a solve: a layer's are gone once nothing more is solved with it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import curvfluence as cf
from curvfluence.curvature.operators.operator import Against
from curvfluence.curvature.places import LayerPart
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import own_gradients, query_gradients
from curvfluence.jacobian.rows import Rows
from curvfluence.runtime import heap
from curvfluence.score import influence
from tests.problems import chain_problem
from tests.zoo import zoo_problem

AT = cf.Absolute(0.1)
NAMES = ("chain", "conv2d", "embedding", "multi-head attention", "tied transformer")
RUNGS: dict[str, cf.Rung] = {
    "EKFAC": cf.EKFAC(),
    "apart": cf.EKFAC(joint_bias=False),
    "BlockGGN": cf.BlockGGN(),
    "GGN": cf.GGN(cf.inversion.Matrix()),
}


def problem_of(name: str) -> cf.Problem:
    return chain_problem() if name == "chain" else zoo_problem(name, n=9)


def rows_of(problem: cf.Problem) -> Rows:
    return query_gradients(problem, discover(problem))


def own_tensors(rows: Rows, layer: int) -> list[Tensor]:
    """Of one layer, that no other has."""
    others = {
        t.untyped_storage().data_ptr()
        for k, term in enumerate(rows.terms)
        if k != layer
        for t in term.tensors
    }
    mine = rows.terms[layer].tensors
    return [t for t in mine if t.untyped_storage().data_ptr() not in others]


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", NAMES)
def test_the_same_bits(name: str, rung: str) -> None:
    problem = problem_of(name)
    curvature = cf.fit(problem, RUNGS[rung])
    wanted = curvature.solve_rows(rows_of(problem), AT, against=Against(9)).flat()
    handed = [rows_of(problem)]
    found = curvature.solve_handed(handed, AT, against=Against(9))
    assert handed == []
    assert torch.equal(found.flat(), wanted)


@pytest.mark.parametrize("rung", ["EKFAC", "apart"])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_solved_is_gone(name: str, rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a block is solved, the rows of layers that were before it and have no block after it are
    not in memory."""
    problem = problem_of(name)
    curvature = cf.fit(problem, RUNGS[rung])
    rows = rows_of(problem)
    held = {k: [weakref.ref(t) for t in own_tensors(rows, k)] for k in range(len(rows.terms))}
    places = [block.places for block in curvature.blocks]
    layers = [at.position if isinstance(at, LayerPart) else None for at in places]
    gone: list[int] = []

    def looked(number: int) -> None:
        for layer in set(layers[:number]) - set(layers[number:]) - {None}:
            assert layer is not None
            assert all(ref() is None for ref in held[layer]), (name, number)
            gone.append(layer)

    def blocks() -> Iterator[tuple[object, float]]:
        for number, block in enumerate(zip(curvature.blocks, curvature.lambdas(AT), strict=True)):
            looked(number)
            yield block

    monkeypatch.setattr(type(curvature), "damped", lambda *_: blocks())
    handed = [rows]
    del rows
    curvature.solve_handed(handed, AT, against=Against(9))
    assert gone


def test_a_layer_that_is_left_out() -> None:
    rows = rows_of(chain_problem())
    less = rows.without(1)
    assert [term.n for term in less.terms] == [len(rows), 0, len(rows)]
    assert less.terms[0] is rows.terms[0]
    assert torch.equal(less.dense, rows.dense)
    assert all(t.untyped_storage().nbytes() == 0 for t in less.terms[1].tensors)


@pytest.mark.parametrize("rung", [cf.EKFAC(), cf.GGN(cf.inversion.ConjugateGradients())])
def test_queries_rows_are_gone_when_scores_are_made(
    rung: cf.Rung, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the result tells residuals, which ask for them once more."""
    held: list[weakref.ref[Tensor]] = []
    looked: list[bool] = []

    def asked(*given: Any) -> Rows:
        rows = query_gradients(*given)
        held.extend(weakref.ref(t) for term in rows.terms for t in term.tensors)
        return rows

    def gradients(*given: Any, **more: Any) -> Any:
        looked.append(any(ref() is not None for ref in held))
        return own_gradients(*given, **more)

    problem = chain_problem()
    monkeypatch.setattr(influence, "query_gradients", asked)
    monkeypatch.setattr(influence, "own_gradients", gradients)
    scores = cf.influence(problem, rung, damping=AT)
    assert held
    assert looked == [False]
    assert (scores.residuals is not None) == (rung.name == "GGN")


def test_freed_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the C library does it, and nothing elsewhere."""
    called: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: called.append)
    heap.trim()
    assert called == [0]
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.trim()
    assert called == [0]


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = heap._malloc_trim.__wrapped__  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(sys, "platform", "darwin")
    assert found() is None
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda name: object())
    assert found() is None
