"""What a study is about: data, training, and how a person sees the examples."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.problem.measurement import Measurement
from curvfluence.truth import Recipe, Run

SUBSETS = 60  # random subsets of a study, unless the problem says otherwise


@dataclass(frozen=True, eq=False)
class Display:
    """The examples as they were before anything was standardised, for a report to show.

    `train` and `queries` are rows in the order of the problem's examples: uint8 [N, h, w] images
    (0 background, 255 full ink) or float [N, D] features in their own units, named by
    `feature_names`. `class_names` has a name for each label and is empty in regression, where a
    target y stands for `target_offset + target_scale · y` in `target_unit`.

    Errors: `InputError` for arrays of another form, or names that do not fit them.
    """

    title: str
    description: str
    train: Tensor
    queries: Tensor
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    input_unit: str = ""
    target_unit: str = ""
    target_offset: float = 0.0
    target_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, rows in (("train", self.train), ("queries", self.queries)):
            image = rows.ndim == 3 and not rows.is_floating_point() and rows.element_size() == 1
            if not image and not (rows.ndim == 2 and rows.is_floating_point()):
                raise InputError(
                    f"{name} must be uint8 images [N, h, w] or float features [N, D]; seen "
                    f"{rows.dtype} {tuple(rows.shape)}"
                )
        if self.train.shape[1:] != self.queries.shape[1:]:
            raise InputError(
                f"train and queries must have rows of one shape; seen {tuple(self.train.shape)} "
                f"and {tuple(self.queries.shape)}"
            )
        if self.kind == "features" and len(self.feature_names) != self.train.shape[1]:
            raise InputError(
                f"feature_names must name each of the {self.train.shape[1]} features; seen "
                f"{len(self.feature_names)} names"
            )

    @property
    def kind(self) -> str:
        """ "image" or "features"."""
        return "image" if self.train.ndim == 3 else "features"

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w) of an image, (D,) of a row of features."""
        return tuple(self.train.shape[1:])


@dataclass(frozen=True, eq=False)
class StudyProblem:
    """Data and training of a study, and how many subsets it takes unless told otherwise.

    `flipped` [F] are the training examples whose label was changed on purpose, ascending, and
    `flipped_from` [F] their true labels. `run` is the run of the recipe that gave the weights of a
    problem of one's own: with it, the first influence model is that very model. `unmodelled` is
    what its `Problem` says that training had beside its objective, `decay_in_inverse` whether its
    inverse has weight decay. `source_hash` identifies the text of its file, helpers from the same
    folder included, and what problem and recipe do (`reproduce.observed`).

    Errors: `InputError` where `display` does not have a row for each example.
    """

    name: str
    train: Examples
    queries: Examples
    recipe: Recipe
    measurement: Measurement
    display: Display
    subsets: int = SUBSETS
    flipped: Tensor | None = None
    flipped_from: Tensor | None = None
    run: Run | None = None
    unmodelled: tuple[str, ...] = ()
    decay_in_inverse: bool = True
    source_hash: str | None = None

    def __post_init__(self) -> None:
        for name in ("train", "queries"):
            rows, examples = len(getattr(self.display, name)), len(getattr(self, name))
            if rows != examples:
                raise InputError(
                    f"display.{name} must show each of the {examples} examples of {name}; seen "
                    f"{rows} rows"
                )

    def with_queries(self, count: int | None) -> StudyProblem:
        """The problem with its first `count` queries, or as it is where it has no more."""
        if count is None or count >= len(self.queries):
            return self
        first = Examples(self.queries.inputs[:count], self.queries.targets[:count])
        shown = replace(self.display, queries=self.display.queries[:count])
        return replace(self, queries=first, display=shown)
