"""Influence functions under every curvature approximation, measured against retraining."""

from curvfluence._version import __version__
from curvfluence.curvature import (
    EKFAC,
    GGN,
    KFAC,
    Abs,
    BlockGGN,
    Clip,
    ConjugateGradients,
    Curvature,
    Diagonal,
    Expand,
    Form,
    Hessian,
    Identity,
    Matrix,
    Plain,
    Project,
    Reduce,
    Rung,
    SampleSpace,
    Sharing,
    Sorted,
    TraceMatched,
    Truncate,
    fit,
)
from curvfluence.curvature.damping import Absolute, BestOf, Damping, Relative
from curvfluence.errors import (
    CoverageError,
    CurvfluenceError,
    CurvfluenceWarning,
    InputError,
    NonFiniteError,
    SingularError,
)
from curvfluence.fidelity import SubsetTruth, calibrate
from curvfluence.forecast import Plan, plan
from curvfluence.jacobian.fisher import Empirical, Fisher, MonteCarlo, Type2
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import (
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    CustomLoss,
    Loss,
    Positions,
)
from curvfluence.problem.measurement import (
    CustomMeasurement,
    LogProbability,
    LossMeasurement,
    Margin,
    Measurement,
)
from curvfluence.problem.problem import Problem
from curvfluence.score.certificate import Certificate
from curvfluence.score.influence import group_influence, influence, self_influence
from curvfluence.score.scores import Scores
from curvfluence.score.tokens import token_influence
from curvfluence.truth import (
    Constant,
    Cosine,
    Recipe,
    Run,
    Subsets,
    adam,
    adamw,
    down_weight,
    leave_one_out,
    measure,
    random_subsets,
    sgd,
    train,
)

__all__ = [
    # what was trained, and what is asked
    "Problem",
    "Examples",
    "Loss",
    "CrossEntropy",
    "MSE",
    "BinaryCrossEntropy",
    "CustomLoss",
    "Positions",
    "Measurement",
    "LossMeasurement",
    "Margin",
    "LogProbability",
    "CustomMeasurement",
    # the ladder
    "Rung",
    "Identity",
    "Diagonal",
    "KFAC",
    "EKFAC",
    "Sharing",
    "Expand",
    "Reduce",
    "Form",
    "Matrix",
    "SampleSpace",
    "ConjugateGradients",
    "BlockGGN",
    "GGN",
    "Hessian",
    "Abs",
    "Plain",
    "Clip",
    "Truncate",
    "Project",
    "Sorted",
    "TraceMatched",
    "Fisher",
    "Type2",
    "MonteCarlo",
    "Empirical",
    "fit",
    "Curvature",
    # damping
    "Damping",
    "Absolute",
    "Relative",
    "BestOf",
    # the answer
    "influence",
    "self_influence",
    "group_influence",
    "token_influence",
    "Certificate",
    "plan",
    "Plan",
    "Scores",
    # the truth it is measured against
    "Recipe",
    "Run",
    "Subsets",
    "sgd",
    "adam",
    "adamw",
    "Constant",
    "Cosine",
    "train",
    "measure",
    "random_subsets",
    "leave_one_out",
    "down_weight",
    "SubsetTruth",
    "calibrate",
    # what can go wrong
    "CurvfluenceError",
    "InputError",
    "NonFiniteError",
    "SingularError",
    "CoverageError",
    "CurvfluenceWarning",
    "__version__",
]
