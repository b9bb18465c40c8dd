"""Per-example losses, their output gradients, and the output-space factor S.

For outputs f (one row an example) and a loss ℓ, everything above the output needs only

    ∂ℓ/∂f            [N, K]
    S with S Sᵀ = ∂²ℓ/∂f²   [N, K, C]
    t with S t = ∂ℓ/∂f      [N, C]

DESIGN: an example's loss is unreduced; `MSE` and `BinaryCrossEntropy` are means over outputs, as
in torch. Gradients are formed without cancellation, so that a well-fitted example in float32 keeps
its relative precision.
"""

from curvfluence.problem.losses.base import Loss
from curvfluence.problem.losses.causal import CausalLM
from curvfluence.problem.losses.cross_entropy import CrossEntropy, residual
from curvfluence.problem.losses.custom import CustomLoss
from curvfluence.problem.losses.elementwise import MSE, BinaryCrossEntropy
from curvfluence.problem.losses.positions import Positions
from curvfluence.problem.losses.scaled import ScaledLoss

__all__ = [
    "Loss",
    "CrossEntropy",
    "residual",
    "MSE",
    "BinaryCrossEntropy",
    "CustomLoss",
    "Positions",
    "CausalLM",
    "ScaledLoss",
]
