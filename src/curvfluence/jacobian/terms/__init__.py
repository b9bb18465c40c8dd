"""Per-example rows of one weight matrix as sums of outer products, never formed unless cheap.

A row (example n, column c) is Σ_t s_nct ⊗ a_nt, an o × i matrix. `Outer` has one position,
`SharedOuter` several, in `LookupOuter` every a is a unit vector, and `TiedOuter` has both of these
for one weight; `LastOuter` has the loss's Hessian in the place of s; `Formed` holds the matrix.
Each knows the sums that the rungs are made of; the letters of a name are its axes: n example,
t position, c column, o and i outputs and inputs of the layer, q query, m group.
"""

from curvfluence.jacobian.terms.base import Factored, Term
from curvfluence.jacobian.terms.biased import bias_alone, joined, with_bias
from curvfluence.jacobian.terms.formed import Formed
from curvfluence.jacobian.terms.gram import gram
from curvfluence.jacobian.terms.last import LastOuter
from curvfluence.jacobian.terms.lookup import LookupOuter
from curvfluence.jacobian.terms.outer import Outer
from curvfluence.jacobian.terms.products import Memo, mixed, sum_of, with_ones
from curvfluence.jacobian.terms.shared import SharedOuter
from curvfluence.jacobian.terms.tied import TiedOuter

__all__ = [
    "Factored",
    "Formed",
    "LastOuter",
    "LookupOuter",
    "Memo",
    "Outer",
    "SharedOuter",
    "Term",
    "TiedOuter",
    "bias_alone",
    "gram",
    "joined",
    "mixed",
    "sum_of",
    "with_bias",
    "with_ones",
]
