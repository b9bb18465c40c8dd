"""Whether the watched calls are all that a weight goes into, read off autograd's graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor
from torch.autograd.graph import Node

from curvfluence.watch import Use

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

    None proves that their gradients are those of the watched calls: a leaf's gradient is the sum
    over the nodes that take it, and each of these is one of the calls. Cost: a walk of the graph.
    """
    taken, reached = _takers(output)
    seen: Counter[str] = Counter()
    for use in uses:
        if use.edge is not None and use.edge.node in reached:
            seen.update(piece.name for piece in (use.weight, use.bias) if piece is not None)
    return next((name for name in names if taken[id(leaves[name])] != seen[name]), None)


def _takers(output: Tensor) -> tuple[Counter[int], set[Node]]:
    """(how many nodes below `output` take each leaf, by the leaf's id; all nodes there)."""
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

    def count(node: Node) -> int:
        return sum(
            count(above) if above.name() in VIEWS and above is not root else 1
            for above in takers.get(node, ())
        )

    return Counter({leaf: count(node) for leaf, node in leaves}), reached
