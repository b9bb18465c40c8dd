"""What any method must beat. Each is a function of problems to scores [Q, N] or [J, Q, N], with the
sign of influence: the predicted change of the measurement when an example is left out."""

from curvfluence.judging.baselines.cosine import last_features, last_layer_cosine
from curvfluence.judging.baselines.random import random_scores
from curvfluence.judging.baselines.trac_in import CHECKPOINTS, trac_in, trac_in_of_training
from curvfluence.judging.baselines.trak import Trak, trak

__all__ = [
    "CHECKPOINTS",
    "Trak",
    "last_features",
    "last_layer_cosine",
    "random_scores",
    "trac_in",
    "trac_in_of_training",
    "trak",
]
