"""What really happens when data is left out and the model is trained again."""

from curvfluence.truth.bregman import BregmanResponse, bregman_response
from curvfluence.truth.measure import measure
from curvfluence.truth.paths import ChosenPath, Path, choose_path
from curvfluence.truth.processes import Trajectory, train_one
from curvfluence.truth.questions import (
    independent,
    independent_repeats,
    matched,
    matched_repeats,
    very_run,
)
from curvfluence.truth.recipe import (
    Constant,
    Cosine,
    Optimizer,
    Recipe,
    Schedule,
    adam,
    adamw,
    sgd,
)
from curvfluence.truth.run import Run, grid
from curvfluence.truth.subsets import (
    Kept,
    Subsets,
    Weighted,
    down_weight,
    leave_one_out,
    random_subsets,
)
from curvfluence.truth.trainer import Trained, train

__all__ = [
    "Optimizer",
    "sgd",
    "adam",
    "adamw",
    "Schedule",
    "Constant",
    "Cosine",
    "Recipe",
    "Subsets",
    "Kept",
    "Weighted",
    "random_subsets",
    "leave_one_out",
    "down_weight",
    "Run",
    "grid",
    "Path",
    "ChosenPath",
    "choose_path",
    "train",
    "train_one",
    "Trained",
    "Trajectory",
    "measure",
    "matched",
    "matched_repeats",
    "independent",
    "independent_repeats",
    "very_run",
    "BregmanResponse",
    "bregman_response",
]
