"""Whether the traced calls are all that a weight goes into, read off autograd's graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor
from torch.autograd.graph import Node

from curvfluence.jacobian.tracing import Use

# Nodes that hand on what they were given, or a part of it: what takes a view takes the weight.
VIEWS: Final = frozenset(
    f"{name}Backward0"
    for name in (
        "T",
        "Transpose",
        "Permute",
        "View",
        "UnsafeView",
        "Alias",
        "Expand",
        "Split",
        "SplitWithSizes",
        "Slice",
        "Select",
        "Unbind",
        "ToCopy",
    )
)


def unaccounted(
    output: Tensor, leaves: Mapping[str, Tensor], uses: Iterable[Use], names: Iterable[str]
) -> str | None:
    """The first of `names` that reaches `output` by another operation than those of `uses`.

    None proves that their gradients are those of the traced calls: a leaf's gradient is the sum
    over the nodes that take it, and each of these is one of the calls, itself or below the views
    that a call ends in. Cost: a walk of the graph.
    """
    traced = [use for use in uses if use.edge is not None]
    taken, reached = _takers(output, {use.edge.node for use in traced if use.edge is not None})
    seen: dict[str, Counter[Node | None]] = {name: Counter() for name in names}
    for use in traced:
        if use.edge is not None and use.edge.node in reached:
            for piece in (use.weight, use.bias):
                if piece is not None and piece.name in seen:
                    seen[piece.name][use.edge.node] += 1
    return next((name for name in seen if taken.get(id(leaves[name]), {}) != seen[name]), None)


def _takers(output: Tensor, ends: set[Node]) -> tuple[dict[int, Counter[Node | None]], set[Node]]:
    """(the calls, given by the nodes that they end in, that take each leaf below `output`, by the
    leaf's id, None for anything else; all nodes there)."""
    root = output.grad_fn
    takers: dict[Node, list[Node]] = {}
    leaves: list[tuple[int, Node]] = []
    reached: set[Node] = set() if root is None else {root}
    todo = list(reached)
    while todo:
        node = todo.pop()
        for below, _ in node.next_functions:
            if below is None:
                continue
            takers.setdefault(below, []).append(node)
            if below not in reached:
                reached.add(below)
                todo.append(below)
                leaf = getattr(below, "variable", None)
                if isinstance(leaf, Tensor):
                    leaves.append((id(leaf), below))
    found: dict[int, Counter[Node | None]] = {}
    for leaf, node in leaves:
        for taker in takers.get(node, ()):
            found.setdefault(leaf, Counter()).update(_call(taker, root, takers, ends, left=1))
    return found, reached


def _call(
    node: Node, root: Node | None, takers: dict[Node, list[Node]], ends: set[Node], *, left: int
) -> list[Node | None]:
    """The calls that take what `node` takes; after an operation, the one that it is part of,
    whose end hands on its result as it is.

    No closure: one that calls itself would hold the graph, with all that it saved, until the
    garbage collector's next round.
    """
    if node in ends:
        return [node]
    above = takers.get(node, [])
    if node.name() in VIEWS and node is not root:
        return [end for taker in above for end in _call(taker, root, takers, ends, left=left)]
    inside = left > 0 and len(above) == 1 and (above[0] in ends or above[0].name() in VIEWS)
    return _call(above[0], root, takers, ends, left=left - 1) if inside else [None]
