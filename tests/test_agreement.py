"""Models whose rows are not what they seem, and what changes between two calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import gradient_rows, query_gradients
from curvfluence.jacobian.probe import Probe
from curvfluence.runtime import budget

Forward = Callable[["Net", Tensor], Tensor]
N, Q = 60, 6


class Net(nn.Module):
    """Two linear layers and a forward pass of the test's own."""

    def __init__(self, run: Forward, *, bias: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5, bias=bias), nn.Linear(5, 3)
        self.norm = nn.LayerNorm(5)
        self.norm.requires_grad_(False)
        self.run = run
        self.temperature = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def plain(net: Net, x: Tensor) -> Tensor:
    return net.b(torch.tanh(net.a(x))) / net.temperature


def problem(
    run: Forward = plain, x: Tensor | None = None, queries: Tensor | None = None, n: int = N
) -> cf.Problem:
    torch.manual_seed(0)
    net = Net(run).double()
    x = torch.randn(n, 5).double() if x is None else x
    queries = torch.randn(Q, 5).double() if queries is None else queries
    y, yq = torch.randint(3, (len(x),)), torch.randint(3, (len(queries),))
    return cf.Problem(net, cf.CrossEntropy(), (x, y), (queries, yq))


def sorted_inside(net: Net, x: Tensor) -> Tensor:
    order = x[:, 0].argsort(stable=True)
    return net.b(torch.tanh(net.a(x[order])))[order.argsort()]


def hidden_use(net: Net, x: Tensor) -> Tensor:
    """A use of the weight that no watched call shows, of examples with x₀ > ½ alone."""
    extra = torch.einsum("bi,oi->bo", x, net.a.weight)
    return net.b(torch.tanh(net.a(x) + F.relu(x[:, :1] - 0.5) * extra))


class TestReorderedBatches:
    def test_queries_that_are_sorted_inside_where_no_training_example_shows_it(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(N, 5).double()
        with pytest.raises(cf.errors.InputError, match="queries is another alone"):
            cf.influence(problem(sorted_inside, x[x[:, 0].argsort()]), cf.Identity())

    def test_a_key_that_is_equal_on_the_probe(self) -> None:
        torch.manual_seed(0)
        x = torch.randn(N, 5).double()
        x[torch.linspace(0, N - 1, 8).long(), 0] = 0
        with pytest.raises(cf.errors.InputError, match="alone than in its batch"):
            cf.influence(problem(sorted_inside, x), cf.Identity())

    def test_more_examples_than_the_probe_has(self) -> None:
        def capacity(net: Net, x: Tensor) -> Tensor:
            z = net.a(x)
            kept = z[:, 0] >= z[:, 0].topk(max(8, len(x) // 2) if len(x) > 8 else len(x)).values[-1]
            return net.b(torch.tanh(z * kept[:, None]))

        with pytest.raises(cf.errors.InputError, match="alone than in its batch"):
            cf.influence(problem(capacity, n=400), cf.Identity())

    def test_positions_that_the_data_drops(self) -> None:
        class Packed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.b = nn.LayerNorm(5), nn.Linear(5, 3)

            def forward(self, x: Tensor) -> Tensor:
                rows = x.view(-1, 6, 5)
                keep = rows[:, :, 0] > -9
                out = torch.zeros_like(rows)
                out[keep] = self.norm(rows[keep])
                return self.b(torch.tanh(out).sum(1))

        torch.manual_seed(0)
        x = torch.randn(20, 6, 5).double()
        x[[1, 3, 4, 6], :5, 0] = -10  # none of the probe's; 100 of 120 are left, 5 an example
        y, net = torch.randint(3, (20,)), Packed().double()
        given = cf.Problem(
            net, cf.CrossEntropy(), (x.flatten(1), y), (x[[0, 2]].flatten(1), y[[0, 2]])
        )
        with pytest.raises(
            cf.errors.InputError, match="6 positions an example on a probe, on 5 in"
        ):
            cf.influence(given, cf.Identity())


class TestNoise:
    """Gradients that are 0 but for what rounding left, which a batch rounds otherwise."""

    @pytest.mark.parametrize(("share", "noise"), [(1e-17, True), (1e-15, False)])
    def test_of_one_example(self, share: float, noise: bool) -> None:
        """Beside others' whose gradients are not: what attention to one position leaves of its
        query, alone in a group of `memory=`."""

        def run(net: Net, x: Tensor) -> Tensor:
            seen = torch.where(x[:, :1] > 0, 1.0, share * len(x))
            return net.b(torch.tanh(x + seen * net.a(x)))

        torch.manual_seed(0)
        x = torch.randn(N, 5).double().abs()
        x[20, 0] = -1.0  # which is run alone
        given = problem(run, x, x[:3])
        given.model.b.requires_grad_(False)
        given = cf.Problem(given.model, given.loss, given.train, given.queries)
        if noise:
            assert cf.influence(given, cf.Identity()).values.isfinite().all()
            return
        with pytest.raises(
            cf.errors.InputError, match="example 20 of the training set is another alone"
        ):
            cf.influence(given, cf.Identity())


class TestHiddenUses:
    def test_of_queries_alone(self) -> None:
        torch.manual_seed(0)
        x, q = torch.randn(N, 5).double(), torch.randn(Q, 5).double()
        x[:, 0], q[:, 0] = -1, 2
        given = problem(hidden_use, x, q)
        assert not discover(given).proved
        with pytest.raises(cf.errors.InputError, match=r"a\.weight do not add up.*queries"):
            cf.influence(given, cf.Identity())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_of_one_training_example_of_many(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        x = torch.randn(5000, 5).to(dtype)
        x[:, 0] = -1
        x[3, 0] = 2
        net = Net(hidden_use).to(dtype)
        y = torch.randint(3, (5000,))
        given = cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:4] * 0 - 1, y[:4]))
        for refused in (
            lambda: cf.fit(given, cf.GGN()),
            lambda: cf.influence(given, cf.Identity()),
            lambda: cf.self_influence(given, cf.Identity()),
        ):
            with pytest.raises(cf.errors.InputError, match=r"a\.weight do not add up"):
                refused()

    @pytest.mark.parametrize("view", ["squeeze", "none", "as_strided", "unbind", "detached"])
    def test_behind_a_view_of_the_weight(self, view: str) -> None:
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "squeeze": lambda w: w.squeeze(),
            "none": lambda w: w[None][0],
            "as_strided": lambda w: w.as_strided(w.shape, w.stride()),
            "unbind": lambda w: w[None].unbind(0)[0],
            "detached": lambda w: w.detach(),
        }

        def run(net: Net, x: Tensor) -> Tensor:
            w = views[view](net.a.weight)
            other = net.a.weight if view == "detached" else w
            extra = torch.einsum("bi,oi->bo", x, other)
            return net.b(torch.tanh(F.linear(x, w, net.a.bias) + F.relu(x[:, :1] - 0.5) * extra))

        torch.manual_seed(0)
        x, q = torch.randn(N, 5).double(), torch.randn(Q, 5).double()
        x[:, 0] = -1
        q[:, 0] = 2
        given = problem(run, x, q)
        layout = discover(given)
        if not layout.proved:
            with pytest.raises(cf.errors.InputError, match="add up"):
                query_gradients(given, layout)
            return
        found = query_gradients(given, layout).to_dense()[:, 0]
        theta = {k: v.clone().requires_grad_() for k, v in given.theta.items()}
        each = F.cross_entropy(given.forward(q, theta), given.queries.targets, reduction="none")
        for row, loss in zip(found, each, strict=True):
            grads = torch.autograd.grad(loss, list(theta.values()), retain_graph=True)
            wanted = torch.cat([g.flatten() for g in grads])
            torch.testing.assert_close(row, wanted, rtol=1e-10, atol=1e-12)


class TestChanges:
    """What is kept and what was fitted belong to the model and data that they were made with."""

    @pytest.mark.parametrize("change", ["module", "setting", "hook", "forward", "mode", "data"])
    def test_a_problem_is_of_the_model_as_it_was_and_of_the_data_as_they_are(
        self, change: str
    ) -> None:
        torch.manual_seed(0)
        x, y = torch.randn(N, 4).double(), torch.randint(3, (N,))
        q, yq = torch.randn(Q, 4).double(), torch.randint(3, (Q,))

        class Scaled(nn.Sequential):
            scale = 1.0

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * self.scale

        net = Scaled(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3)).double()
        net.scale = 1.0
        hook = net[1].register_forward_hook(lambda m, i, o: o * 1.0)
        given = cf.Problem(net, cf.CrossEntropy(), (x, y), (q, yq))
        for _ in range(2):
            before = cf.influence(given, cf.KFAC()).values
        if change == "module":
            net[1] = nn.ReLU()
        elif change == "setting":
            net.scale = 3.0
        elif change == "hook":
            hook.remove()
            net[1].register_forward_hook(lambda m, i, o: o * 2.0)
        elif change == "forward":
            net[1].forward = torch.relu
        elif change == "mode":
            net[1] = nn.Dropout()
            net.train()
        else:
            x.mul_(3)
        after = cf.influence(given, cf.KFAC()).values
        if change != "data":
            assert torch.equal(before, after)
            return
        fresh = cf.influence(cf.Problem(net, cf.CrossEntropy(), (x, y), (q, yq)), cf.KFAC()).values
        torch.testing.assert_close(after, fresh)
        assert not torch.allclose(before, after)

    def test_a_curvature_of_another_architecture_loss_or_data_is_refused(self) -> None:
        torch.manual_seed(0)
        x, y = torch.randn(N, 4).double(), torch.randint(3, (N,))

        def made(act: nn.Module, weight: Tensor | None = None) -> cf.Problem:
            torch.manual_seed(1)
            net = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3)).double()
            return cf.Problem(net, cf.CrossEntropy(weight=weight), (x, y), (x[:3], y[:3]))

        ones = torch.ones(3).double()
        fitted = cf.fit(made(nn.Tanh(), ones), cf.KFAC())
        cf.influence(made(nn.Tanh(), ones), fitted)
        near = ones.clone()
        near[1] += 1e-6
        for other in (made(nn.ReLU(), ones), made(nn.Tanh(), near)):
            with pytest.raises(cf.errors.InputError, match="the curvature is of "):
                cf.influence(other, fitted)
        given = made(nn.Tanh(), ones)
        x.mul_(3)
        with pytest.raises(cf.errors.InputError, match="the curvature is of "):
            cf.influence(given, fitted)

    def test_two_passes_at_once_see_every_example(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = problem()
        layout = discover(given)
        monkeypatch.setattr("curvfluence.runtime.budget.PASS", 16 * layout.elements(1))
        monkeypatch.setattr("curvfluence.runtime.budget.FEWEST", 1)
        one, two = (gradient_rows(given, layout, again=True) for _ in range(2))
        next(one), next(two), next(one)
        assert [start for start, _ in two] == [16, 32, 48]
        assert [start for start, _ in one] == [32, 48]

    def test_views_are_counted_by_what_they_hold(self) -> None:
        big = torch.randn(20, 50, 8).double()

        class Last(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.b = nn.Linear(8, 3, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                return self.b(torch.tanh(x)[:, -1])

        net, y = Last().double(), torch.randint(3, (20,))
        given = cf.Problem(net, cf.CrossEntropy(), (big, y), (big[:2], y[:2]))
        ((_, rows),) = gradient_rows(given, discover(given))
        assert rows.nbytes < 8 * 20 * 12
        assert rows.held >= big.nbytes

    def test_threads_leave_the_model_as_it_was(self) -> None:
        given, failed = problem(), []

        def score() -> None:
            try:
                cf.influence(given, cf.KFAC())
            except Exception as error:
                failed.append(error)

        for _ in range(3):
            threads = [threading.Thread(target=score) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failed == []
        assert all(isinstance(p, nn.Parameter) for p in given.model.parameters())
        assert len(list(given.model.parameters())) == 6


class TestFingerprint:
    """A fitted curvature is taken by a problem that agrees in all that it rests on, and by no
    other."""

    OTHERS: ClassVar[dict[str, dict[str, Any]]] = {
        "decay": {"weight_decay": 0.02},
        "decay of one": {"weight_decay": {"a.weight": 0.01}},
        "decoupled": {"decoupled_decay": True},
        "example weights": {"sample_weight": torch.arange(1.0, N + 1)},
        "loss": {"loss": cf.CrossEntropy(label_smoothing=0.1)},
        "class weights": {"loss": cf.CrossEntropy(weight=torch.tensor([1.0, 2.0, 1.0]).double())},
        "weights": {"shift": 1e-3},
        "inputs": {"inputs": 1e-3},
        "a label": {"label": True},
    }

    @staticmethod
    def made(
        loss: cf.Loss | None = None,
        shift: float = 0.0,
        inputs: float = 0.0,
        label: bool = False,
        **options: Any,
    ) -> cf.Problem:
        torch.manual_seed(0)
        net = Net(plain).double()
        with torch.no_grad():
            net.a.weight += shift
        x, y = torch.randn(N, 5).double() + inputs, torch.randint(3, (N,))
        if label:
            y[7] = (y[7] + 1) % 3
        given = {"weight_decay": 0.01, **options}
        return cf.Problem(net, loss or cf.CrossEntropy(), (x, y), (x[:3], y[:3]), **given)

    @pytest.mark.parametrize("name", OTHERS)
    def test_another_is_refused(self, name: str) -> None:
        fitted = cf.fit(self.made(), cf.KFAC())
        cf.influence(self.made(), fitted)
        with pytest.raises(cf.errors.InputError, match="the curvature is of "):
            cf.influence(self.made(**self.OTHERS[name]), fitted)

    @pytest.mark.parametrize("how", ["data", "numpy"])
    def test_data_written_behind_torchs_back(self, how: str) -> None:
        """Through `.data` or a NumPy view no version is counted: the values are asked."""
        given = self.made(remember=2**20)
        fitted = cf.fit(given, cf.EKFAC(cf.Empirical()))
        for _ in range(2):
            before = cf.influence(given, fitted).values
        held = given.train.inputs
        if how == "data":
            held.data[3] *= 3
        else:
            held.numpy()[3] *= 3
        with pytest.raises(cf.errors.InputError, match="the curvature is of "):
            cf.influence(given, fitted)
        after = cf.influence(given, cf.EKFAC(cf.Empirical())).values
        none = self.made(remember=0)
        none.train.inputs[3] *= 3
        none.queries.inputs[:3] = given.queries.inputs
        wanted = cf.influence(none, cf.EKFAC(cf.Empirical())).values
        torch.testing.assert_close(after, wanted)
        assert not torch.allclose(before, after)


class TestFiles:
    def test_leverage_is_the_same_in_a_file(self, tmp_path: Path) -> None:
        given, path = problem(), tmp_path / "scores.npy"
        wanted = cf.influence(given, cf.GGN(), leverage=True).values
        found = cf.influence(given, cf.GGN(), leverage=True, out=path).values
        torch.testing.assert_close(found, wanted)
        np.testing.assert_allclose(np.load(path), wanted.numpy(), rtol=1e-6)

    def test_a_failure_leaves_no_file(self, tmp_path: Path) -> None:
        given, path = problem(), tmp_path / "scores.npy"
        with pytest.raises(cf.errors.SingularError):
            cf.influence(given, cf.EKFAC(), damping=cf.Absolute(0), out=path)
        assert list(tmp_path.iterdir()) == []
        cf.influence(given, cf.EKFAC(), out=path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.json", "scores.npy"]


class TestInputs:
    def test_tensors_of_inference_mode(self) -> None:
        with torch.inference_mode():
            x = torch.randn(N, 5).double()
        assert cf.influence(problem(x=x), cf.KFAC()).values.isfinite().all()

    def test_groups(self) -> None:
        given = problem()
        numbers = [0] * 30 + [1] * 30
        found = cf.group_influence(given, cf.KFAC(), numbers)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(
            found, cf.group_influence(given, cf.KFAC(), torch.tensor(numbers))
        )
        with pytest.raises(cf.errors.InputError, match="mask"):
            cf.group_influence(given, cf.KFAC(), torch.ones(N, dtype=torch.bool))
        with pytest.raises(cf.errors.InputError, match="group 0 hold a NaN"):
            cf.group_influence(given, cf.KFAC(), torch.full((1, N), torch.nan))

    @pytest.mark.parametrize("queries", [0, -5, 2.5, True])
    def test_a_plan_of_no_queries(self, queries: int) -> None:
        with pytest.raises(cf.errors.InputError, match="how many"):
            cf.plan(problem(), cf.KFAC(), queries=queries)

    def test_a_plan_of_a_class(self) -> None:
        with pytest.raises(cf.errors.InputError, match="object such as EKFAC"):
            cf.plan(problem(), cf.EKFAC)  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("compress", [0.0, 1.0, 2.0, True])
    def test_compression_by_more_than_all(self, compress: float) -> None:
        with pytest.raises(cf.errors.InputError, match="compress"):
            cf.influence(problem(), cf.KFAC(), compress=compress)

    @pytest.mark.parametrize("remember", ["1GB", float("inf"), float("nan"), -1, True])
    def test_remember(self, remember: int) -> None:
        given = problem()
        with pytest.raises(cf.errors.InputError, match=r"remember \(bytes"):
            cf.Problem(given.model, given.loss, given.train, given.queries, remember=remember)


@pytest.mark.parametrize(("gradients", "most"), [(8, 8), (5.5, 5), (1, 3)])
def test_how_many_examples_are_tried(
    gradients: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight, or as many as have their gradients in the budget, but three; first and last among
    them."""
    given = problem()
    monkeypatch.setattr(budget, "PROBED", int(gradients * given.parameters.count))
    whole, seen = given.train.take(slice(None)).inputs, []
    once = Probe.of

    def of(asked: cf.Problem, inputs: Tensor) -> Probe:
        seen.append(inputs)
        return once(asked, inputs)

    monkeypatch.setattr(Probe, "of", of)
    assert discover(given).layers
    (tried,) = seen
    assert len(tried) == most
    assert torch.equal(tried[[0, -1]], whole[[0, -1]])


class Counting(nn.Module):
    """A layer at twenty positions, which notes how many examples each call has."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return torch.tanh(self.layer(x)).mean(1)


@pytest.mark.parametrize(
    ("examples", "tried", "differed"), [(1000, 8, 8), (5, 5, 5), (2, 3, 2), (1, 3, 1)]
)
def test_layer_inputs_of_the_examples_that_are_tried(
    examples: int, tried: int, differed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as have their layer inputs and output gradients (2 · 120 numbers; the gradients are
    21) in the budget, but three; and of those as many as it allows where derivatives are tried."""
    torch.manual_seed(0)
    x, y = torch.randn(30, 20, 6).double(), torch.randint(3, (30,))
    given = cf.Problem(Counting().double(), cf.CrossEntropy(), (x, y), (x[:4], y[:4]))
    monkeypatch.setattr(budget, "PROBED", 240 * examples)
    inside = given.structure.modules
    assert isinstance(inside, Counting)
    del inside.seen[:]
    discover(given)
    *before, queries = inside.seen
    assert (max(before), before[-1], queries) == (tried, differed, min(4, tried))
