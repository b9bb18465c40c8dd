"""The cosine of features: how alike two examples look to the last layer."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.jacobian.columns import of_gradient
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.layers import Layout
from curvfluence.jacobian.passes import rows_in_chunks
from curvfluence.jacobian.terms import Factored, Outer
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import Data


def last_layer_cosine(problem: Problem) -> Tensor:
    """a_qᵀ a_n / (‖a_q‖ ‖a_n‖), [Q, N], with a the input of the Linear layer that is called last;
    negative where higher is better. Where a is 0 the cosine is 0. Labels play no part. No units.

    Cost: a pass over all examples, and 2 Q N i operations. Errors: `InputError` for a model without
    a Linear layer.
    """
    layout = discover(problem)
    a_qi, a_ni = (last_features(problem, layout, data) for data in (problem.queries, problem.train))
    cosine_qn = torch.nn.functional.normalize(a_qi) @ torch.nn.functional.normalize(a_ni).T
    return cosine_qn if problem.measurement.lower_is_better else -cosine_qn


def last_features(problem: Problem, layout: Layout, data: Data) -> Tensor:
    """a of the Linear layer that is called last, [N, i], without the 1 of the bias; over positions
    that share the layer, their mean."""
    linear = [k for k, layer in enumerate(layout.layers) if layer.kind == "Linear"]
    if not linear:
        raise InputError("the model has no Linear layer, whose inputs would be its features")
    last = max(linear, key=lambda k: max(layout.layers[k].uses))
    features: list[Tensor] = []
    for _, rows in rows_in_chunks(problem, layout, data, of_gradient("features")):
        term = rows.terms[last]
        assert isinstance(term, Factored)
        mean = term.reduced()
        assert isinstance(mean, Outer)
        features.append(mean.a.clone())
    return torch.cat(features)
