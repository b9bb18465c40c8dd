"""What `tests/test_ranks.py` runs in each process: `torchrun ... -m tests.ranked WHAT OUT`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import warnings
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.curvature.inversion import ConjugateGradients, Matrix, SampleSpace, SelectedRows
from curvfluence.curvature.operators import low_rank_search
from curvfluence.errors import CurvfluenceWarning
from curvfluence.explore import kept
from curvfluence.indexing import encode, make
from curvfluence.runtime import budget, journal, ranks
from curvfluence.score import influence
from tests.problems import mlp

RUNGS: dict[str, cf.Rung] = {
    "identity": cf.Identity(),
    "diagonal": cf.Diagonal(),
    "kfac": cf.KFAC(),
    "kfac mc": cf.KFAC(fisher=cf.MonteCarlo(2, seed=5)),
    "kfac empirical": cf.KFAC(fisher=cf.Empirical()),
    "ekfac": cf.EKFAC(),
    "ekfac mc": cf.EKFAC(fisher=cf.MonteCarlo(2, seed=5)),
    "ekfac empirical": cf.EKFAC(fisher=cf.Empirical()),
    "kfac of two": cf.KFAC(eigenvectors=2),
    "ekfac of two": cf.EKFAC(eigenvectors=2),
    "ekfac apart": cf.EKFAC(joint_bias=False),
    "kfac apart": cf.KFAC(joint_bias=False),
    "kfac reduce": cf.KFAC(sharing=cf.Reduce()),
    "ekfac reduce": cf.EKFAC(sharing=cf.Reduce()),
    "kfac factored": cf.KFAC(factored_damping=True),
    "shampoo": cf.Shampoo(),
    "shampoo mc": cf.Shampoo(fisher=cf.MonteCarlo(2, seed=5)),
    "tkfac": cf.TKFAC(),
    "tkfac empirical": cf.TKFAC(fisher=cf.Empirical()),
    "eshampoo": cf.EShampoo(),
    "eshampoo mc": cf.EShampoo(fisher=cf.MonteCarlo(2, seed=5)),
    "diagonal mc": cf.Diagonal(fisher=cf.MonteCarlo(2, seed=5)),
    "block empirical": cf.BlockGGN(fisher=cf.Empirical()),
    "projected": cf.hybrids.Project(cf.BlockGGN(), cf.KFAC()),
    "sorted": cf.hybrids.Sorted(cf.BlockGGN(), cf.Shampoo()),
    "trace matched": cf.hybrids.TraceMatched(cf.KFAC(), cf.BlockGGN()),
    "block": cf.BlockGGN(),
    "ggn": cf.GGN(Matrix()),
    "ggn sample space": cf.GGN(SampleSpace()),
    "ggn kernel iterated": cf.GGN(SampleSpace(iterate=True, tolerance=1e-8)),
    "ggn selected rows": cf.GGN(SelectedRows(count=5, tolerance=1e-8)),
    "ggn iterated": cf.GGN(ConjugateGradients(tolerance=1e-8)),
    "hessian": cf.Hessian(),
    "hessian plain": cf.Hessian(cf.hessian.Plain()),
    "hessian clipped": cf.Hessian(cf.hessian.Clip()),
    "hessian truncated": cf.Hessian(cf.hessian.Truncate(0.01)),
    "hessian iterated": cf.Hessian(cf.hessian.Plain(), form=ConjugateGradients(tolerance=1e-8)),
    "hessian selected rows": cf.Hessian(cf.hessian.Plain(), form=SelectedRows(5, tolerance=1e-8)),
}
# conjugate gradients ask for a definite Hessian, and MINRES is soon done there
DAMPINGS = dict.fromkeys(("hessian iterated", "hessian selected rows"), cf.Absolute(3.0))

REFUSED_INDEX = (
    "folder",
    "dimension",
    "seed",
    "dtype",
    "damping",
    "appended",
    "appended by one",
    "append",
    "write",
    "reading",
)
SELF = ("shared", "damping", "curvature", "its damping")


class Convolutional(nn.Module):
    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, width, 3), nn.LayerNorm(3 * width)
        self.head = nn.Linear(3 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x[:, None]).tanh().flatten(1)))


class Rooted(nn.Module):
    """√ has an infinite derivative at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6, bias=False), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).abs().sqrt())


SOME = (
    "kfac",
    "ekfac",
    "ekfac of two",
    "ekfac mc",
    "ekfac empirical",
    "eshampoo",
    "ggn selected rows",
)


class Reusing(nn.Module):
    """Copies its inputs into memory of its own, in which earlier rows would lie."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 6, bias=False), nn.Linear(6, 4)
        self.held: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        held = self.held.setdefault(len(x), torch.empty_like(x))
        return self.head(self.body(held.copy_(x)).tanh())


def problems() -> dict[str, cf.Problem]:
    """37 examples are no multiple of any number of ranges; of 5 most ranges are empty."""
    found: dict[str, cf.Problem] = {}
    for name, n, built in (
        ("mlp", 37, lambda: mlp(5, 7, 4)),
        ("shared", 37, Convolutional),
        ("few", 5, lambda: mlp(5, 7, 4)),
        ("reusing", 80, Reusing),
        ("wide", 37, lambda: Convolutional(23)),
    ):
        torch.manual_seed(0)
        model = built().double()
        x, y = torch.randn(n + 3, 5, dtype=torch.float64), torch.randint(0, 4, (n + 3,))
        weights = torch.rand(n, dtype=torch.float64) if name == "shared" else None
        train = cf.Examples(x[:n], y[:n], weights=weights)
        found[name] = cf.Problem(model, cf.CrossEntropy(), train, (x[n:], y[n:]), weight_decay=1e-2)
    return found


def everything() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, problem in problems().items():
        for rung_name, rung in RUNGS.items():
            if name not in ("mlp", "shared") and rung_name not in SOME:
                continue
            at = cf.Relative(0.1) if name == "wide" else DAMPINGS.get(rung_name, cf.Absolute(0.1))
            scores = cf.influence(problem, rung, damping=at)
            found[f"{name}, {rung_name}"] = scores.values
            found[f"{name}, {rung_name}, notes"] = scores.notes
        blocks = cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(0.1), by_block=True).blocks
        found[f"{name}, by block"] = blocks
        self_influence = cf.self_influence(problem, cf.EKFAC(), damping=cf.Absolute(0.1))
        found[f"{name}, self"] = self_influence
    of_products = cf.self_influence(
        problems()["few"], RUNGS["ggn iterated"], damping=cf.Absolute(0.1)
    )
    found["few, self by products"] = of_products
    scores = at_low_rank()
    found["at low rank"] = scores.values
    found["at low rank, notes"] = scores.notes
    for name in ("mlp", "shared"):
        scores = within_a_memory(problems()[name])
        found[f"{name}, within a memory"] = scores.values
        found[f"{name}, within a memory, notes"] = (scores.notes, scores.coverage, scores.lambdas)
    single = problems()["mlp"].to(torch.float32)
    found["float32"] = cf.influence(single, cf.EKFAC(), damping=cf.Absolute(0.1)).values
    return found


def at_low_rank() -> cf.Scores:
    """By inverses whose ranks are looked for and checked, however short the product is: five
    queries at a time."""
    torch.manual_seed(0)
    x, y = torch.randn(120, 30, dtype=torch.float64), torch.randint(0, 4, (120,))
    model = mlp(30, 36, 4).double()
    problem = cf.Problem(model, cf.CrossEntropy(), (x[:97], y[:97]), (x[97:], y[97:]))
    least, checked = low_rank_search.LEAST, budget.CHECKED
    low_rank_search.LEAST, budget.CHECKED = 0.0, 5 * problem.parameters.count
    try:
        return cf.influence(problem, cf.EKFAC(), damping=cf.Absolute(0.1), inverse_error=0.1)
    finally:
        low_rank_search.LEAST, budget.CHECKED = least, checked


def within_a_memory(problem: cf.Problem) -> cf.Scores:
    """In two groups or more."""
    at = cf.Absolute(0.1)
    return cf.influence(problem, RUNGS["ekfac mc"], damping=at, memory=5400)


def divided() -> dict[str, Any]:
    """How many groups of blocks each process fits, and the bytes of the largest object that is
    handed on, where scores are 2 MB."""
    fitted, largest, fit, gather = [0], [0], influence.fitted, dist.all_gather_object

    def counted(*args: Any, **more: Any) -> Any:
        fitted[0] += 1
        return fit(*args, **more)

    def gathered(every: list[Any], one: Any) -> None:
        largest[0] = max(largest[0], len(pickle.dumps(one)))
        gather(every, one)

    influence.fitted, dist.all_gather_object = counted, gathered
    given = problems()["shared"]
    x, y = given.train.inputs.repeat(70, 1), given.train.targets.repeat(70)
    problem = cf.Problem(given.model, given.loss, (x, y), (x[:100], y[:100]))
    at = cf.Absolute(0.1)
    cf.influence(problem, cf.EKFAC(cf.Empirical()), damping=at, memory=50_000)
    all_: list[Any] = [None] * dist.get_world_size()
    gather(all_, (fitted[0], largest[0]))
    return {"groups": [a for a, _ in all_], "objects": max(b for _, b in all_)}


def in_a_file(out: Path) -> Tensor:
    path = out.with_suffix(".npy")
    cf.influence(problems()["mlp"], cf.EKFAC(), damping=cf.Absolute(0.1), out=path)
    return cf.load_scores(path).values.clone()


def indexed(out: Path, stop: int | None = None) -> dict[str, Any] | list[str]:
    """An index of shards of four examples; with `stop` one whose making ends in an error once so
    many of them are done."""
    encode.SHARD = 4
    wrote, write = list[int](), make.write_shard

    def told(done: int) -> None:
        if done == stop:
            raise ValueError("enough")

    def written(folder: Path, number: int, *rest: Any) -> Any:
        wrote.append(number)
        return write(folder, number, *rest)

    make.write_shard = written

    problem, folder = problems()["mlp"], out.with_name("index")
    given = {"damping": cf.Absolute(0.1), "dimension": 12, "progress": told}
    if stop is not None:
        try:
            cf.index(problem, cf.EKFAC(), out=folder, **given)
        except ValueError as error:
            return every(str(error))
    index = cf.index(problem, cf.EKFAC(), out=folder, **given)
    found = index.query(k=3, candidates=20)
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.npy"))}
    return {
        "files": files,
        "recall": index.record.recall,
        "shards": [(s.examples, s.phi, s.ids, s.ends) for s in index.record.shards],
        "wrote": every(wrote),
        "top": found.top.values,
        "numbers": found.top.indices,
    }


def refused_index(out: Path, what: str) -> list[str]:
    """The errors of what does not go together."""
    problem, rank = problems()["mlp"], dist.get_rank()
    folder = out.with_name("other" if what == "folder" and rank else "index")
    more = [(problem.train.inputs[:2], problem.train.targets[:2])]
    other = what if rank else ""
    given: dict[str, Any] = {
        "dimension": 12 + (other == "dimension"),
        "seed": int(other == "seed"),
        "dtype": torch.float16 if other == "dtype" else torch.float32,
        "damping": cf.Absolute(0.2 if other == "damping" else 0.1),
        "appended": more if what == "appended" or other == "appended by one" else [],
    }
    encode.SHARD = 4
    if other == "write":
        make.write_shard = fails
    if other == "reading":
        make.opened = fails
    try:
        index = cf.index(problem, cf.EKFAC(), out=folder, **given)
        if what == "append":
            index.append(more[0])
    except Exception as error:
        return every(str(error))
    return every("nothing")


def fails(*_: object, **__: object) -> Any:
    raise OSError(28, "no space left")


def every(value: Any) -> list[Any]:
    """Of all processes."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def self_influence(what: str) -> Any:
    """How many examples each process looks at; or the errors of what does not go together."""
    problem, rank = problems()["mlp"], dist.get_rank()
    if what == "shared":
        looked, quadratic = [0], cf.Curvature.quadratic

        def counted(self: cf.Curvature, rows: Any, damping: cf.Damping) -> Tensor:
            looked[0] += len(rows)
            return quadratic(self, rows, damping)

        cf.Curvature.quadratic = counted  # type: ignore[method-assign]
        cf.self_influence(problem, cf.EKFAC(), damping=cf.Absolute(0.1))
        return every(looked[0])
    rung: Any = cf.EKFAC()
    if what != "damping":
        with ranks.apart():
            other = what == "curvature" and rank
            rung = cf.fit(problem, cf.KFAC() if other else cf.EKFAC())
    at = cf.Absolute(0.2 if what.endswith("damping") and rank else 0.1)
    try:
        cf.self_influence(problem, rung, damping=at)
    except cf.errors.CurvfluenceError as error:
        return every(str(error))
    return every("nothing")


def handed_on() -> int:
    """Bytes of one K-FAC's scores, of all processes."""
    cf.influence(problems()["mlp"], cf.KFAC(), damping=cf.Absolute(0.1))
    return sum(every(ranks.sent()))


def _own(output: Tensor, target: Tensor) -> Tensor:
    return -output.log_softmax(-1).gather(-1, target[..., None])[..., 0]


def problem_with(loss: cf.CustomLoss) -> cf.Problem:
    given = problems()["mlp"]
    return cf.Problem(given.model, loss, given.train, given.queries)


def refused(what: str) -> str:
    """The error that disagreeing processes get."""
    problem = problems()["few" if what == "examples" else "mlp"]
    if what == "loss":
        problem = problem_with(cf.CustomLoss(_own))
    if what == "not finite":
        torch.manual_seed(0)
        x, y = torch.randn(37, 5, dtype=torch.float64), torch.randint(0, 4, (37,))
        x[30] = 0
        problem = cf.Problem(Rooted().double(), cf.CrossEntropy(), (x, y), (x[:3], y[:3]))
    return error_of(problem)


def error_of(problem: cf.Problem, rung: cf.Rung | None = None, damping: float = 0.1) -> str:
    try:
        cf.influence(problem, rung or cf.KFAC(), damping=cf.Absolute(damping))
    except cf.errors.CurvfluenceError as error:
        return str(error)
    return "nothing"


class Turned(nn.Sequential):
    """Whose modules are those of another that computes something else."""

    def __init__(self, sign: float, model: nn.Module) -> None:
        super().__init__(*model.children())
        self.sign = sign

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * super().forward(x)


def disagreements() -> dict[str, list[str]]:
    """The errors of both processes, by what the second was given otherwise."""
    usual, other = problems()["mlp"], dist.get_rank() == 1
    (x, y), (asked, answers) = usual.train.tensors, usual.queries.tensors

    def given(loss: Any = usual.loss, **options: Any) -> cf.Problem:
        options = {"weight_decay": 1e-2, **options}
        of = [options.pop(name, getattr(usual, name)) for name in ("model", "train", "queries")]
        return cf.Problem(of[0], loss, *of[1:], **options)

    def scaled(output: Tensor, target: Tensor) -> Tensor:
        return (1.5 if other else 1.0) * _own(output, target)

    moved = {name: value.clone() for name, value in usual.theta.items()}
    moved["0.weight"][0, 0] += 1e-6
    renamed = nn.Sequential()
    for name, layer in zip("014", usual.model.children(), strict=True):
        renamed.add_module(name, layer)
    torch.manual_seed(1)  # of what is built here
    weights = torch.full((37,), 1.5, dtype=torch.float64)
    many = asked.repeat(4, 1)
    many[11, 0] += 1e-6 * other
    seconds: dict[str, cf.Problem] = {
        "weights": given(weights=moved),
        "weight decay": given(weight_decay=0.02),
        "loss": given(cf.CrossEntropy(label_smoothing=0.1)),
        "order of the data": given(train=(x.flip(0), y.flip(0))),
        "weights of examples": given(train=cf.Examples(x, y, weights=weights)),
        "order of queries": usual.asking([1, 0, 2]),
        "measurement": given(measurement=cf.LogProbability()),
        "names of layers": given(model=renamed),
        "widths": given(model=mlp(5, 8, 4).double()),
        "dtype": usual.to(torch.float32),
    }
    own = cf.CustomMeasurement(scaled, lower_is_better=True)
    both = {
        "nothing": given(),
        "one of many queries": given(queries=(many, answers.repeat(4))),
        "code of the loss": given(cf.CustomLoss(scaled)),
        "code of the measurement": given(measurement=own),
        "class of the measurement": given(measurement=cf.LogProbability(int(other))),
        "autocast": given(model=mlp(5, 7, 4), autocast=torch.bfloat16 if other else None),
        "code of the model": given(model=Turned(-1.0 if other else 1.0, usual.model)),
    }
    for what, second in seconds.items():
        both[what] = second if other else given()
    said = {what: error_of(problem) for what, problem in both.items()}
    said["rung"] = error_of(given(), cf.KFAC(fisher=cf.Empirical()) if other else cf.KFAC())
    said["damping"] = error_of(given(), damping=0.2 if other else 0.1)
    several = given(
        cf.CrossEntropy(label_smoothing=0.1), weights=moved, queries=(many, answers.repeat(4))
    )
    said["several"] = error_of(several if other else given(), damping=0.2 if other else 0.1)
    return {what: every(one) for what, one in said.items()}


def going_on(out: Path, after: int) -> dict[str, Any]:
    """Scores whose works are kept beside a page; the second process dies once it has kept `after`
    of them. How many works were found, by process."""
    journal.LONG, journal.SHARE = 0.0, 0.0
    kept.kept_in = partial(journal.kept_in, every=0.0)
    made, count = journal.Work.keep, [0]

    def keep(self: journal.Work, value: object) -> None:
        made(self, value)
        count[0] += 1
        if count[0] == after and dist.get_rank() == 1:
            os._exit(9)

    journal.Work.keep = keep  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    problem = problems()["shared"]
    with kept.going_on(out.with_name("page.html"), problem):
        for name in ("ekfac mc", "ekfac empirical", "block"):
            scores = cf.influence(problem, RUNGS[name], damping=cf.Absolute(0.1))
            found[name], found[f"{name}, notes"] = scores.values, scores.notes
        all_ = every(journal.found())
    return {**found, "found": all_}


def sharded() -> dict[str, Any]:
    """Scores of a model that FSDP2 shards, and of the same that it does not; and what is left of
    the former."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, given in problems().items():
        plain, model = deepcopy(given.model), deepcopy(given.model)
        low = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if name == "mlp" else None)
        for child in model.children():
            if list(child.parameters(recurse=False)):
                fully_shard(child, mesh=mesh, mp_policy=low)
        fully_shard(model, mesh=mesh, mp_policy=low)
        before = {n: (type(m), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
        both = [
            cf.Problem(one, given.loss, given.train, given.queries, weight_decay=0.01)
            for one in (plain, model)
        ]
        rung, damping = cf.EKFAC(), cf.Absolute(0.1)
        scores = [cf.influence(problem, rung, damping=damping) for problem in both]
        after = {n: (type(m), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
        found[name] = {
            "same": torch.equal(scores[0].values, scores[1].values),
            "left as found": before == after
            and all(hasattr(p, "full_tensor") for p in model.parameters()),
            "modules": [type(m).__name__ for m in both[1].structure.modules.modules()],
            "plain": [type(m).__name__ for m in plain.modules()],
            "hooks": sum(len(m._forward_pre_hooks) for m in both[1].structure.modules.modules()),
            "unmodelled": both[1].unmodelled,
        }
    return found


def main() -> None:
    what, out = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CurvfluenceWarning)
    dist.init_process_group("gloo")
    if what == "killed":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, before the other has spoken
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    works = {
        "everything": everything,
        "sharded": sharded,
        "disagreements": disagreements,
        "file": lambda: in_a_file(out),
        "bytes": handed_on,
        "memory": divided,
        "index": lambda: indexed(out),
        "index stopped": lambda: indexed(out, 16),
        **{f"index {k}": lambda k=k: refused_index(out, k) for k in REFUSED_INDEX},
        **{f"self {k}": lambda k=k: self_influence(k) for k in SELF},
        "going on": lambda: going_on(out, int(out.stem.rpartition("-")[2])),
    }
    with cf.together():
        found = works.get(what, lambda: refused(what))()
    if what == "everything":  # all have the same
        mine = [v for v in found.values() if isinstance(v, Tensor)]
        found["alike"] = all(
            torch.equal(a, b) for one in every(mine) for a, b in zip(one, mine, strict=True)
        )
    if dist.get_rank() == 0:
        torch.save(found, out)
    ranks.leave()


if __name__ == "__main__":
    main()
