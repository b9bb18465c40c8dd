"""Your own problem for Curvfluence. It runs as it is:

    curvfluence study my_problem.py

The study reads two names from this file. `problem` is a trained model with its data; `recipe` says
how it was trained, so that the study can train it again without some of the data and see what
really changes. Before any work it trains once by the recipe and checks that it gets your weights.
"""

from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import curvfluence as cf

# The data: 569 tumours with 30 measurements each, malignant (0) or benign (1). Yours can be any
# tensors of inputs and targets. What is learnt from data, here mean and spread, comes from the
# training rows alone.
data: Any = load_breast_cancer()
features, labels = data.data, data.target
x, y = torch.as_tensor(features, dtype=torch.float32), torch.as_tensor(labels)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
training, held_out = order[:455], order[455:]
mean, spread = x[training].mean(0), x[training].std(0)
train = cf.Examples((x[training] - mean) / spread, y[training])
queries = cf.Examples((x[held_out] - mean) / spread, y[held_out])


def architecture() -> nn.Module:
    """A fresh model on each call. Keep it small: the exact Hessian is P × P."""
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


# How it is trained. Weight decay belongs here, not into the optimiser: influence needs it too.
recipe = cf.truth.Recipe(
    architecture=architecture,
    loss=cf.CrossEntropy(),
    optimizer=cf.truth.sgd(0.03, momentum=0.9),
    batch_size=32,
    epochs=60,
    weight_decay=1e-2,
)

# Which run of the recipe gave the weights: the seeds of its initialisation and of its data order.
run = cf.truth.Run(init_seed=0, order_seed=0)

# The weights. Trained here they are the recipe's own; if training takes long, save
# trained.weights(0) with torch.save once and load it instead.
trained = cf.truth.train(recipe, train, [run])

# What is asked: which training examples changed the loss of each query, and by how much.
problem = cf.Problem(
    recipe.build(run.init_seed),
    recipe.loss,
    train,
    queries,
    weight_decay=recipe.weight_decay,
    weights=trained.weights(0),
)

# Optional: a title, and how many random subsets to retrain on.
name = "Breast cancer, a small net"
subsets = 40


# Optional: what a person sees of an example, on the pages of `curvfluence attribute` and `audit`. A
# mapping of features; or a text, a list of tokens, an image (an array [h, w] or [h, w, 3]).
class_names = list(data.target_names)


def show(inputs: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    values = (inputs * spread + mean).tolist()
    return dict(zip(data.feature_names, values, strict=True))
