"""Linear systems beyond one dense matrix: in the space of samples, and by conjugate gradients."""

from curvfluence.solvers.cholesky import Cholesky
from curvfluence.solvers.conjugate import Solution, conjugate_gradients

__all__ = ["Cholesky", "Solution", "conjugate_gradients"]
