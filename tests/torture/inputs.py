"""Bad inputs to every public function: an error of the package's own, or a finite result."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.errors import CurvfluenceError
from curvfluence.truth import Run, Subsets, grid, random_subsets
from tests.problems import make, mlp

LIMIT = 10  # seconds
Call = Callable[[], Any]


def run(count: int, seed: int) -> dict[str, Any]:
    generator = random.Random(seed)
    torch.manual_seed(seed)
    calls = _Calls(generator)
    clear = 0
    for k in range(count):
        name, call = calls.one()
        said = _tried(call)
        clear += said is None
        if said is not None:
            print(f"{k} {name}: {said}", flush=True)
    return {"inputs": count, "inputs_clear": clear}


def _tried(call: Call) -> str | None:
    """What is wrong with how a call ended; None where nothing is."""
    before = torch.random.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    try:
        with within(LIMIT), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            value = call()
    except CurvfluenceError as error:
        return None if str(error).strip() else "an error without a word"
    except TypeError as error:
        # Python's own of a call that its signature refuses.
        said = str(error)
        own = "argument" in said and error.__traceback__ is not None
        deep = error.__traceback__.tb_next if error.__traceback__ else None
        return (
            None if own and (deep is None or deep.tb_next is None) else f"TypeError: {said}"[:300]
        )
    except Hang:
        return f"no answer within {LIMIT} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    after = torch.random.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    if not torch.equal(before[0], after[0]) or before[1:] != after[1:]:
        return "torch's state is not as found"
    return None if _finite(value) else f"not finite: {value!r}"[:300]


def _finite(value: Any) -> bool:
    if isinstance(value, cf.Scores):
        value = value.values
    if isinstance(value, Tensor) and value.is_floating_point():
        return bool(value.isfinite().all())
    return True


class Hang(BaseException):
    """No answer: an exception that nobody's `except Exception` takes for its own."""


@contextmanager
def within(seconds: int) -> Generator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


ODD: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 10**12, lambda: 2**62,
    lambda: 10**30, lambda: 1.5, lambda: float("nan"), lambda: float("inf"), lambda: -0.0,
    lambda: 1e-320, lambda: 1e300,
    lambda: 2 + 1j, lambda: "", lambda: "é\0\n", lambda: "x" * 10_000, lambda: b"bytes", list, dict,
    lambda: (), set, lambda: [float("nan")], lambda: [[1], [2, 3]], object, lambda: lambda: 0,
    lambda: torch.zeros(0), lambda: torch.zeros(3, 0), lambda: torch.full((4, 5), float("nan")),
    lambda: torch.full((4, 5), float("inf")), lambda: torch.randn(4, 5).to_sparse(),
    lambda: torch.randn(5, 4).T, lambda: torch.randn(4, 5, dtype=torch.complex64),
    lambda: torch.randn(4, 5, dtype=torch.float16), lambda: torch.randint(-9, 9, (4,)),
    lambda: torch.tensor(3), lambda: torch.ones(4, dtype=torch.bool), lambda: np.zeros((4, 5)),
    lambda: np.array(["a", "b"]), lambda: np.array([1, None], dtype=object),
    lambda: torch.empty(4, 5, device="meta"), lambda: torch.randn(4, 5) * 1e30,
    lambda: torch.randn(4, 5) * 1e-30, lambda: nn.Linear(5, 3), lambda: nn.Parameter(torch.ones(2)),
    lambda: cf.KFAC(), lambda: cf.KFAC, lambda: cf.Absolute(0.1), lambda: cf.CrossEntropy(),
    lambda: [0], lambda: [0, 0], lambda: [99], lambda: [-1], lambda: range(3), lambda: {"a": 1},
    lambda: torch.float64, lambda: "cuda:99", lambda: np.float32(0.5), lambda: np.int64(2),
)  # fmt: skip


class _Calls:
    """Calls of public functions, each with an odd value in the place of one of its arguments."""

    def __init__(self, generator: random.Random) -> None:
        self.generator = generator
        self.problem = make(mlp(5, 4, 3), cf.CrossEntropy(), n=12, q=4)
        self.curvature = cf.fit(self.problem, cf.EKFAC())
        self.scores = cf.influence(self.problem, cf.EKFAC(), damping=cf.Absolute(0.1))
        self.subsets = random_subsets(12, keep=0.5, count=4, seed=0)

    def one(self) -> tuple[str, Call]:
        name = self.generator.choice(sorted(self._table))
        function, good = self._table[name]
        arguments = dict(good)
        many = self.generator.choice([1, 1, 1, 2, len(good)]) if len(good) > 1 else 1
        for key in self.generator.sample(sorted(good), many):
            arguments[key] = self._odd(good[key])
        return f"{name}({', '.join(f'{k}={_short(v)}' for k, v in arguments.items())})", (
            lambda: function(**arguments)
        )

    def _odd(self, good: Any) -> Any:
        if isinstance(good, Tensor) and self.generator.random() < 0.5:
            return self._damaged(good)
        if isinstance(good, tuple) and good and self.generator.random() < 0.7:
            parts = list(good)
            k = self.generator.randrange(len(parts))
            parts[k] = self._odd(parts[k])
            return tuple(parts)
        return self.generator.choice(ODD)()

    def _damaged(self, good: Tensor) -> Tensor:
        value = good.clone()
        way = self.generator.randrange(7)
        if way == 0 and value.is_floating_point() and value.numel():
            value.view(-1)[self.generator.randrange(value.numel())] = self.generator.choice(
                [float("nan"), float("inf"), -float("inf"), 1e38]
            )
        elif way == 1:
            value = value[:-1]
        elif way == 2:
            value = value[..., None]
        elif way == 3:
            value = value.to(self.generator.choice([torch.int8, torch.float16, torch.complex64]))
        elif way == 4:
            value = value.double() * self.generator.choice([1e200, 1e-200, 0.0, -1.0])
        elif way == 5:
            value = value.to("meta")
        else:
            value = value.flatten()
        return value

    @property
    def _table(self) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
        p, x, y = self.problem, torch.randn(12, 5).double(), torch.randint(0, 3, (12,))
        model = mlp(5, 4, 3)
        loss = cf.CrossEntropy()
        at = cf.Absolute(0.1)
        return {
            "Problem": (
                cf.Problem,
                {"model": model, "loss": loss, "train": (x, y), "queries": (x[:3], y[:3]),
                 "weight_decay": 0.1},
            ),
            "Problem, options": (
                lambda **o: cf.Problem(model, loss, (x, y), (x[:3], y[:3]), **o),
                {"measurement": cf.Margin(), "weights": dict(model.state_dict()),
                 "sample_weight": torch.ones(12), "remember": 1000, "unmodelled": "x",
                 "decoupled_decay": True, "eval_mode": True, "output": None, "forward": None,
                 "autocast": None, "decay_in_inverse": True},
            ),
            "Examples": (cf.Examples, {"inputs": x, "targets": y, "weights": torch.ones(12)}),
            "influence": (
                cf.influence,
                {"problem": p, "rung": cf.KFAC(), "damping": at, "leverage": False,
                 "strict": False, "by_block": False, "compress": None},
            ),
            "fit": (cf.fit, {"problem": p, "rung": cf.KFAC(), "strict": False}),
            "self_influence": (
                cf.self_influence, {"problem": p, "rung": cf.KFAC(), "damping": at}
            ),
            "group_influence": (
                cf.group_influence,
                {"problem": p, "rung": cf.KFAC(), "groups": self.subsets.left_out, "damping": at},
            ),
            "solve": (
                self.curvature.solve,
                {"vectors": torch.randn(3, p.parameters.count).double(), "damping": at},
            ),
            "Absolute": (cf.Absolute, {"value": 0.1}),
            "Relative": (cf.Relative, {"value": 0.1}),
            "MonteCarlo": (cf.MonteCarlo, {"samples": 2, "seed": 0}),
            "EKFAC": (
                cf.EKFAC, {"fisher": cf.Type2(), "joint_bias": True, "sharing": cf.Expand()}
            ),
            "CrossEntropy": (cf.CrossEntropy, {"label_smoothing": 0.1, "weight": torch.ones(3)}),
            "Positions": (
                cf.Positions, {"loss": loss, "reduction": "mean", "ignore_index": -100}
            ),
            "scores.top": (self.scores.top, {"k": 3}),
            "scores[...]": (self.scores.__getitem__, {"key": 1}),
            "scores.for_group": (self.scores.for_group, {"indices": [1, 2]}),
            "scores.with_ids": (
                self.scores.with_ids,
                {"train": [str(k) for k in range(12)], "queries": ["a", "b", "c", "d"]},
            ),
            "load_scores": (cf.load_scores, {"path": "none.npy", "verify": True}),
            "plan": (cf.plan, {"problem": p, "rung": cf.GGN()}),
            "advise": (cf.advise, {"problem": p, "budget": 1.0, "by": "relative", "queries": 2}),
            "audit": (
                cf.audit, {"problem": p, "k": 3, "damping": at, "examined": 12, "flipped": [1]}
            ),
            "Run": (Run, {"init_seed": 0, "order_seed": 0, "subset": None}),
            "grid": (grid, {"init_seeds": [0], "order_seeds": [0], "subsets": 2}),
            "random_subsets": (
                random_subsets, {"n": 12, "keep": 0.5, "count": 4, "seed": 0}
            ),
            "Subsets": (Subsets, {"weights": torch.ones(3, 12)}),
            "sgd": (cf.truth.sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": False}),
            "adam": (cf.truth.adam, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}),
            "lds": (
                cf.fidelity.lds,
                {"predicted": torch.randn(2, 1, 5, 4), "truth": torch.randn(2, 1, 5, 4)},
            ),
            "at": (p.at, {"weights": {n: v.clone() for n, v in p.theta.items()}}),
            "to": (p.to, {"dtype": torch.float64, "device": "cpu"}),
            "asking": (p.asking, {"queries": [0, 1]}),
        }  # fmt: skip


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)} {value.dtype}"
    text = repr(value).replace("\n", " ")
    return text if len(text) < 40 else f"{text[:40]}…"
