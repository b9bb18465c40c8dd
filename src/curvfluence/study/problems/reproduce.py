"""Whether a recipe is what gave a problem its weights: the ground that retraining stands on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isclose

import torch
from torch import Tensor

from curvfluence.errors import InputError
from curvfluence.problem.problem import Problem
from curvfluence.problem.stream import in_memory
from curvfluence.store.hashes import hash_tensors
from curvfluence.truth import Recipe, Run, Trained, train

SEEN = 64  # examples whose outputs stand for what a model does
TOLERANCE = 1e-3  # of ‖θ_recipe − θ_given‖ / ‖θ_given‖


def require_same_setting(problem: Problem, recipe: Recipe) -> None:
    """The recipe trains the problem's parameters on its loss with its weight decay."""
    if problem.autocast is not None:
        raise InputError(
            "it has autocast, and a study trains and measures in one dtype: leave it out of "
            "cf.Problem"
        )
    _require_parameters(problem, recipe)
    target, trained = in_memory(problem.train).targets, recipe.loss.bound_as(problem.loss)
    trained.check(problem.n_outputs, target)
    output = problem.outputs(problem.train, "training set")
    ours, theirs = problem.loss.values(output, target), trained.values(output, target)
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
        raise InputError(
            f"their losses differ: {problem.loss} and {recipe.loss} give "
            f"{float(ours.mean()):.6g} and {float(theirs.mean()):.6g} on the training set at the "
            "given weights; pass recipe.loss to cf.Problem"
        )
    decay = recipe.decay(problem.parameters)
    for name, value in problem.weight_decay.items():
        if not isclose(value, decay[name], rel_tol=1e-6):
            raise InputError(
                f"their weight decay differs: {value} and {decay[name]} "
                f"for {name}; pass weight_decay=recipe.weight_decay to cf.Problem"
            )
    if problem.decoupled_decay != recipe.optimizer.decoupled and any(decay.values()):
        raise InputError(
            f"decoupled_decay is {problem.decoupled_decay}, while the optimiser of `recipe` "
            f"({recipe.optimizer.kind.__name__}) has {recipe.optimizer.decoupled}: pass "
            "decoupled_decay=recipe.optimizer.decoupled to cf.Problem"
        )


def _require_parameters(problem: Problem, recipe: Recipe) -> None:
    built, rest = recipe.start(0, problem.dtype)
    kinds = (("parameter", built, problem.theta), ("buffer", rest, problem.state))
    for kind, theirs, ours in kinds:
        for name in [*ours, *(name for name in theirs if name not in ours)]:
            seen = tuple(ours[name].shape) if name in ours else None
            found = tuple(theirs[name].shape) if name in theirs else None
            if seen != found:
                raise InputError(
                    f"its model and the architecture of `recipe` differ in {kind} "
                    f"{name!r}: {_shape(seen)} and {_shape(found)}; build the model with "
                    "recipe.build(seed)"
                )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"shape {shape}"


def one_step(problem: Problem, recipe: Recipe, run: Run) -> Trained:
    """The shortest retraining. Errors: whatever the architecture, the loss or the step raises."""
    return train(replace(recipe, epochs=None, steps=1), in_memory(problem.train), [run])


def observed(problem: Problem, recipe: Recipe, run: Run, stepped: Trained) -> str:
    """A hash of what problem and recipe do, whatever their text says: the given weights and
    buffers, the weights that the recipe starts from (of this run and of another), those after one
    step, and outputs, losses and measurements of the first examples.

    A file that reads its activation from a configuration, the environment or another module has
    the text it had; its hash is another. What first shows later in training than its first step,
    and neither in the given weights, is not seen.
    """
    few, queries = problem.train.take(slice(0, SEEN)), problem.queries.take(slice(0, SEEN))
    with torch.no_grad():
        outputs = [problem.forward(part.inputs.clone()) for part in (few, queries)]
        seen = [
            *outputs,
            problem.loss.values(outputs[0], few.targets),
            problem.measurement.values(outputs[1], queries.targets),
        ]
    starts = [recipe.start(seed, problem.dtype) for seed in (run.init_seed, run.init_seed + 1)]
    weights = [problem.theta, problem.state, *(part for start in starts for part in start)]
    weights += [stepped.theta, stepped.state]
    return hash_tensors(*(value for part in weights for value in part.values()), *seen)


def require_same_function(problem: Problem, stepped: Trained) -> None:
    """At equal parameters the problem's own model has the loss of the model that was trained.

    After a step rather than at the initialisation, where many a net is constant.
    """
    theirs, own = float(stepped.final_loss[0]), _loss(problem, stepped.weights(0))
    if not isclose(own, theirs, rel_tol=1e-3, abs_tol=1e-6):
        raise InputError(
            "its model and the architecture of `recipe` are different functions of the same "
            f"parameters: after one step of training the loss is {own:.6g} and {theirs:.6g}; "
            "build the model with recipe.build(seed)"
        )


def require_reproduced(problem: Problem, recipe: Recipe, run: Run) -> None:
    """Training by the recipe gives the weights of the problem, to a relative distance of 1e-3."""
    trained = train(recipe, in_memory(problem.train), [run])
    given = {**problem.state, **problem.theta}
    distance, worst = _distance(trained, given)
    if distance <= TOLERANCE:
        return
    start, _ = recipe.start(run.init_seed, problem.dtype)
    if all(torch.allclose(start[n].to(value), value) for n, value in problem.theta.items()):
        raise InputError(
            f"they are untrained, the initialisation of {_plain(run)}: pass "
            "weights=trained.weights(0), with trained = cf.truth.train(recipe, train, [run]), to "
            "cf.Problem"
        )
    raise InputError(
        f"training with {_plain(run)} ends elsewhere: "
        f"‖θ_recipe − θ_given‖ / ‖θ_given‖ is {distance:.2g}, most in {worst}; expected is at most "
        f"{TOLERANCE:g}. The training loss is {float(trained.final_loss[0]):.6g} after retraining "
        f"and {_loss(problem, given):.6g} at the given weights. Likely causes: another seed (set "
        "run = cf.truth.Run(init_seed=…, order_seed=…)), training by another loop or in another "
        "order of the data (train with cf.truth.train(recipe, train, [run])), other data than the "
        "problem's, or training that is not deterministic"
    )


def _plain(run: Run) -> str:
    return f"cf.truth.Run(init_seed={run.init_seed}, order_seed={run.order_seed})"


def _loss(problem: Problem, weights: Mapping[str, Tensor]) -> float:
    at = problem.at(weights)
    output = at.outputs(at.train, "training set")
    value_n = at.loss.values(output, in_memory(at.train).targets).double()
    v_n = torch.ones_like(value_n) if at.train.weights is None else at.train.weights
    return float((value_n * v_n).sum() / v_n.sum())


def _distance(trained: Trained, given: Mapping[str, Tensor]) -> tuple[float, str]:
    """Relative distance over all floating tensors, and the one that is farthest."""
    found = trained.weights(0)
    floating = [name for name, value in given.items() if value.is_floating_point()]
    far = {n: float((found[n].to(given[n]) - given[n]).double().norm()) for n in floating}
    total = sum(value**2 for value in far.values()) ** 0.5
    size = sum(float(given[n].double().norm()) ** 2 for n in floating) ** 0.5
    return total / size if size else total, max(far, key=far.__getitem__)
