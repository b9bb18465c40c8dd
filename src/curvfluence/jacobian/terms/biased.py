"""Terms with a bias, and of successive examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvfluence.jacobian.terms.base import Factored, Term
from curvfluence.jacobian.terms.formed import Formed
from curvfluence.jacobian.terms.last import LastOuter
from curvfluence.jacobian.terms.lookup import LookupOuter
from curvfluence.jacobian.terms.outer import Outer
from curvfluence.jacobian.terms.products import with_ones
from curvfluence.jacobian.terms.shared import SharedOuter
from curvfluence.jacobian.terms.tied import TiedOuter


def with_bias(term: Term) -> Term:
    """The rows of [W | b]: a 1 is appended to every a."""
    assert isinstance(term, Outer | SharedOuter | LastOuter | Formed)
    if term.ones:
        return replace(term, biased=True)
    assert not isinstance(term, Formed)
    return replace(term, data=with_ones(term.a), biased=True, ones=True)


def bias_alone(term: Term) -> Term:
    """The rows of the bias, o × 1."""
    if isinstance(term, Formed):
        return Formed(term.summed(), biased=True)
    assert isinstance(term, Outer | SharedOuter | LastOuter)
    ones = term.data.new_ones(*term.data.shape[:-1], 1)
    return replace(term, data=ones, biased=True, ones=False)


def joined(parts: Sequence[Term]) -> Term:
    """The rows of successive examples as one term."""
    if any(isinstance(part, Formed) for part in parts):
        return _formed(parts)
    first = parts[0]

    def cat(field: Callable[[Term], Tensor]) -> Tensor:
        return torch.cat([field(part) for part in parts])

    if isinstance(first, TiedOuter):
        tied = cast("Sequence[TiedOuter]", parts)
        lookup, head = joined([p.lookup for p in tied]), joined([p.head for p in tied])
        return TiedOuter(cast(LookupOuter, lookup), cast(SharedOuter, head))
    if isinstance(first, LastOuter):
        hessian = first.hessian.joined([cast(LastOuter, part).hessian for part in parts])
        return replace(first, data=cat(lambda p: cast(LastOuter, p).data), hessian=hessian)
    if isinstance(first, Outer):
        s = cat(lambda part: cast(Factored, part).s)
        return replace(first, data=cat(lambda p: cast(Outer, p).data), s=s)
    many = _padded(cast("Sequence[SharedOuter | LookupOuter]", parts))
    s = torch.cat([part.s for part in many])
    masks = [part.counted for part in many if part.counted is not None]
    counted = torch.cat(masks) if masks else None
    if isinstance(first, SharedOuter):
        data = torch.cat([cast(SharedOuter, part).data for part in many])
        return replace(first, data=data, s=s, counted=counted)
    ids = torch.cat([cast(LookupOuter, part).ids for part in many])
    return replace(cast(LookupOuter, first), ids=ids, s=s, counted=counted)


def _padded(parts: Sequence[SharedOuter | LookupOuter]) -> Sequence[SharedOuter | LookupOuter]:
    """With as many positions each: further ones have no gradient and do not count."""
    counts = [part.s.shape[2] for part in parts]
    if len(set(counts)) == 1:
        return parts
    found: list[SharedOuter | LookupOuter] = []
    for part, count in zip(parts, counts, strict=True):
        more = max(counts) - count
        mask = part.counted
        if mask is None:
            mask = part.s.new_ones(len(part.s), count, dtype=torch.bool)
        changes: dict[str, Tensor] = {
            "s": pad(part.s, (0, 0, 0, more)),
            "counted": pad(mask, (0, more), value=False),
        }
        if isinstance(part, SharedOuter):
            changes["data"] = pad(part.data, (0, 0, 0, more))
        else:
            changes["ids"] = pad(part.ids, (0, more))
        found.append(replace(part, **changes))
    return found


def _formed(parts: Sequence[Term]) -> Formed:
    """As the first that is formed: in its basis, with its bias."""
    like = next(part for part in parts if isinstance(part, Formed))
    held: list[Tensor] = []
    for part in parts:
        whole = with_bias(part) if like.ones else part
        if isinstance(whole, SharedOuter):
            held.append(whole.formed(like.out_basis, like.in_basis).held_nio)
        else:
            held.append(cast(Formed, whole).rotated(like.out_basis, like.in_basis).held_nio)
    return replace(like, held_nio=torch.cat(held))
