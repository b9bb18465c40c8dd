"""Which layers have a rule: probed against autograd, example by example, on models that mislead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from curvfluence.jacobian.discovery import discover
from curvfluence.jacobian.gradients import training_gradients
from curvfluence.problem.losses import Loss
from curvfluence.runtime import budget
from tests import oracles
from tests.problems import make, mlp, seeded


class Model(nn.Module):
    """A small net whose forward is given."""

    def __init__(self, forward: Callable[[Model, Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5, bias=bias)
        self.b = nn.Linear(5, 3)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def model(forward: Callable[[Model, Tensor], Tensor], **options: bool) -> Model:
    seeded()
    return Model(forward, **options)


def check(problem: cf.Problem, reason: str, name: str = "a.weight") -> None:
    """A parameter has no rule, for this reason, and every rung is right all the same."""
    layout = discover(problem)
    assert reason in layout.others[name]
    ggn = oracles.dense_ggn(problem)
    assert torch.allclose(cf.fit(problem, cf.GGN()).to_dense(), ggn, rtol=1e-9, atol=1e-12)
    scores = cf.influence(problem, cf.Identity()).values
    wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T / 12
    assert torch.allclose(scores, wanted, rtol=1e-9, atol=1e-12)
    assert any(line.fallback for line in cf.fit(problem, cf.EKFAC()).coverage)


def sorting(m: Model, x: Tensor) -> Tensor:
    """Reorders the batch and puts it back: sums over examples do not show it, examples do."""
    order = x[:, 0].argsort()
    return m.b(torch.tanh(m.a(x[order])))[order.argsort()]


def small_tied(m: Model, x: Tensor) -> Tensor:
    return 1e-5 * m.b(torch.tanh(m.a(x) @ m.a.weight))


class TestMisleadingModels:
    def test_a_batch_that_is_reordered_inside(self) -> None:
        check(make(model(sorting), cf.CrossEntropy()), "not that of its own calls alone")

    def test_a_second_use_with_tiny_gradients_in_float32(self) -> None:
        net = model(small_tied)
        x, y = torch.randn(12, 5), torch.randn(12, 3)
        problem = cf.Problem(net, cf.MSE(), (x, y), (x[:4], y[:4]))
        assert "a.weight" in discover(problem).others
        assert "b.weight" not in discover(problem).others

    def test_a_bias_used_elsewhere(self) -> None:
        def forward(m: Model, x: Tensor) -> Tensor:
            return m.b(torch.tanh(m.a(x)) + m.a.bias)

        check(make(model(forward), cf.CrossEntropy()), "not that of its own calls alone", "a.bias")

    def test_a_second_use_that_only_some_examples_show(self) -> None:
        """Found by the probe where it is common; where no probed example shows it, the sum over the
        training set disagrees, and that is refused by name."""

        def forward(m: Model, x: Tensor) -> Tensor:
            unseen = torch.einsum("bi,oi->bo", x, m.a.weight)
            return m.b(m.a(x) + F.relu(x[:, :1] - 0.5) * unseen)

        check(make(model(forward), cf.CrossEntropy()), "not that of its own calls alone")
        x = torch.randn(200, 5, dtype=torch.float64)
        x[:, 0] = -1.0
        x[3, 0] = 2.0  # the only one, between two probes
        y = torch.randint(0, 3, (200,))
        problem = cf.Problem(model(forward).double(), cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
        with pytest.raises(cf.errors.InputError, match=r"a\.weight do not add up"):
            cf.influence(problem, cf.Identity())

    def test_a_use_that_appears_with_the_data(self) -> None:
        """Where the graph of the probe proves that the calls are all uses, each batch's must too:
        refused in the fit, before any score."""

        def forward(m: Model, x: Tensor) -> Tensor:
            h = m.a(x)
            if bool((x[:, 0] > 1).any()):
                h = h + torch.einsum("bi,oi->bo", x, m.a.weight)
            return m.b(h)

        x = -torch.ones(200, 5, dtype=torch.float64)
        x[3, 0] = 2.0  # the only one, between two probes
        y = torch.randint(0, 3, (200,))
        problem = cf.Problem(model(forward).double(), cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
        assert discover(problem).proved
        with pytest.raises(
            cf.errors.InputError, match=r"a\.weight reaches the output by other operations"
        ):
            cf.fit(problem, cf.EKFAC())

    def test_what_the_graph_proves(self) -> None:
        def unseen(m: Model, x: Tensor) -> Tensor:
            rare = torch.einsum("bi,oi->bo", x, m.a.weight)
            return m.b(m.a(x) + F.relu(x[:, :1] - 1e3) * rare)

        def twice(m: Model, x: Tensor) -> Tensor:
            return m.b(m.a(m.a(x)))

        assert not discover(make(model(unseen), cf.CrossEntropy())).proved
        assert discover(make(model(twice), cf.CrossEntropy())).proved

    def test_a_layer_under_no_grad(self) -> None:
        def forward(m: Model, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = m.a(x)
            return m.b(h)

        check(make(model(forward), cf.CrossEntropy()), "without a gradient")

    def test_a_layer_that_does_not_reach_the_output(self) -> None:
        def forward(m: Model, x: Tensor) -> Tensor:
            m.a(x)
            return m.b(x)

        check(make(model(forward), cf.CrossEntropy()), "does not reach the output")

    def test_an_input_by_keyword_keeps_its_rule(self) -> None:
        def forward(m: Model, x: Tensor) -> Tensor:
            return m.b(torch.tanh(m.a(input=x)))

        problem = make(model(forward), cf.CrossEntropy())
        assert discover(problem).others == {}

    def test_a_functional_second_use_is_seen(self) -> None:
        """A call is known by the weight that it was given, whoever makes it."""

        def forward(m: Model, x: Tensor) -> Tensor:
            return m.b(m.a(x) + F.relu(x[:, :1] - 0.5) * F.linear(x, m.a.weight))

        problem = make(model(forward), cf.CrossEntropy())
        (first, _) = discover(problem).layers
        assert (first.positions, first.bias) == (2, None)
        assert discover(problem).others == {"a.bias": "a (Linear): a bias alone, not a matrix"}
        ggn = oracles.dense_ggn(problem)
        assert torch.allclose(cf.fit(problem, cf.GGN()).to_dense(), ggn, rtol=1e-9, atol=1e-12)

    def test_which_layers_run_depends_on_the_data(self) -> None:
        def forward(m: Model, x: Tensor) -> Tensor:
            return m.b(m.a(x) if bool((x[:, 0] > 1.5).any()) else x)

        x = torch.full((200, 5), -1.0, dtype=torch.float64)
        x[3] = 2.0
        y = torch.randint(0, 3, (200,))
        problem = cf.Problem(model(forward).double(), cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
        with pytest.raises(cf.errors.InputError, match="must not depend on the data"):
            cf.influence(problem, cf.EKFAC())

    def test_a_hook_that_changes_an_output(self) -> None:
        """The call's own output is watched, before any hook."""
        net = model(lambda m, x: m.b(torch.tanh(m.a(x))))
        net.a.register_forward_hook(lambda module, args, out: out * 2.0)
        hooked = make(net, cf.CrossEntropy())
        assert discover(hooked).others == {}
        ggn = oracles.dense_ggn(hooked)
        assert torch.allclose(cf.fit(hooked, cf.GGN()).to_dense(), ggn, rtol=1e-9, atol=1e-12)
        sequential = mlp(5, 4, 3)
        sequential[0].register_forward_hook(lambda module, args, out: out * 2.0)
        problem = make(sequential, cf.CrossEntropy())
        found = cf.fit(problem, cf.Hessian())
        assert torch.allclose(found.to_dense(), oracles.dense_hessian(problem), atol=1e-12)


class TestRefused:
    @pytest.mark.parametrize(
        ("forward", "said"),
        [
            (lambda m, x: m.b(x - x.mean(0)), "depends on the others"),
            (lambda m, x: m.b(F.dropout(x, 0.5)), "random or changes its own state"),
            (lambda m, x: m.b(x.mul_(0.5)), "changes its inputs in place"),
            (lambda m, x: m.b(x).float(), "float32"),
        ],
    )
    def test_what_is_no_function_of_one_example(
        self, forward: Callable[[Model, Tensor], Tensor], said: str
    ) -> None:
        problem = make(model(forward), cf.CrossEntropy())
        rng = torch.get_rng_state()
        before = problem.train.inputs.clone()
        with pytest.raises(cf.errors.InputError, match=said):
            cf.influence(problem, cf.EKFAC())
        assert torch.equal(rng, torch.get_rng_state())
        if "in place" not in said:
            assert torch.equal(problem.train.inputs, before)

    def test_a_module_set_to_training_later(self) -> None:
        net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).eval()
        problem = make(net, cf.CrossEntropy())
        wanted = cf.influence(problem, cf.EKFAC()).values
        net.train()
        assert torch.equal(cf.influence(problem, cf.EKFAC()).values, wanted)
        with pytest.raises(cf.errors.InputError, match="random"):
            make(net, cf.CrossEntropy())

    def test_inference_mode_and_autocast(self) -> None:
        problem = make(mlp(5, 4, 3), cf.CrossEntropy())
        with torch.inference_mode(), pytest.raises(cf.errors.InputError, match="inference_mode"):
            cf.influence(problem, cf.EKFAC())
        with torch.autocast("cpu"), pytest.raises(cf.errors.InputError, match="autocast"):
            cf.influence(problem, cf.EKFAC())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(1, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x[:, :, None])[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[:, :, None])
        return self.head(self.attention(h, h, h)[0].mean(1))


def branching(m: Model, x: Tensor) -> Tensor:
    if not torch.isfinite(x).all():
        raise ValueError
    return m.b(torch.tanh(m.a(x) * m.a.weight.sum()))


ANY = {
    "gru": Recurrent,
    "attention": Attention,
    "prelu": lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 3)),
    "branching": lambda: Model(branching),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 3)
    ),
    "conv": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3)
    ),
    "flatten in the middle": lambda: nn.Sequential(
        nn.Linear(5, 4), nn.Unflatten(1, (2, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)
    ),
    "identity": lambda: nn.Sequential(nn.Linear(5, 4), nn.Identity(), nn.Tanh(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", ANY)
def test_any_differentiable_model(name: str) -> None:
    """GGN and Identity for whatever autograd takes; the Hessian where it can be taken twice."""
    seeded()
    problem = make(ANY[name](), cf.CrossEntropy())
    ggn = cf.fit(problem, cf.GGN()).to_dense()
    assert torch.allclose(ggn, oracles.dense_ggn(problem), rtol=1e-8, atol=1e-11)
    wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T / 12
    found = cf.influence(problem, cf.Identity()).values
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-12)
    assert cf.influence(problem, cf.EKFAC()).values.isfinite().all()
    if name == "weight norm":
        # torch's double backward of the fused operation is not symmetric: refused, not averaged
        with pytest.raises(cf.errors.InputError, match="wrong double backward"):
            cf.fit(problem, cf.Hessian())
        return
    hessian = cf.fit(problem, cf.Hessian()).to_dense()
    assert torch.allclose(hessian, oracles.dense_hessian(problem), rtol=1e-8, atol=1e-11)


def test_padding_of_an_embedding_has_no_curvature() -> None:
    """Forward-mode derivatives of an embedding ignore padding_idx; reverse mode does not."""
    seeded()
    net = nn.Sequential(
        nn.Embedding(6, 3, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)
    )
    x, y = torch.randint(0, 6, (12, 4)), torch.randint(0, 3, (12,))
    problem = cf.Problem(net.double(), cf.CrossEntropy(), (x, y), (x[:2], y[:2]))
    dense = cf.fit(problem, cf.Hessian()).to_dense()
    assert torch.allclose(dense, oracles.dense_hessian(problem), rtol=1e-9, atol=1e-12)
    assert (dense[:3] == 0).all()


def test_more_examples_than_a_chunk() -> None:
    """Everything that is summed or cut by chunks, against one chunk's worth of weights."""
    seeded()
    problem = make(mlp(5, 3), cf.CrossEntropy(), n=4500)
    assert torch.allclose(
        cf.fit(problem, cf.GGN()).to_dense(), oracles.dense_ggn(problem), rtol=1e-9, atol=1e-13
    )
    assert torch.allclose(
        cf.fit(problem, cf.Hessian()).to_dense(),
        oracles.dense_hessian(problem),
        rtol=1e-9,
        atol=1e-13,
    )
    scores = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.1), leverage=True).values
    plain = cf.influence(problem, cf.GGN(), damping=cf.Absolute(0.1)).values
    assert scores.shape == (4, 4500)
    # leverage is small at this N, so corrected and plain agree example by example
    assert (scores - plain).norm(dim=0).max() <= 0.02 * plain.norm(dim=0).max()
    assert torch.corrcoef(torch.stack([scores[0], plain[0]]))[0, 1] > 0.999
    wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T / 4500
    assert torch.allclose(
        cf.influence(problem, cf.Identity()).values, wanted, rtol=1e-9, atol=1e-14
    )


def test_products_over_more_examples_than_a_chunk() -> None:
    seeded()
    problem = make(ANY["conv"](), cf.CrossEntropy(), n=600)
    dense = cf.fit(problem, cf.Hessian()).to_dense()
    assert torch.allclose(dense, oracles.dense_hessian(problem), rtol=1e-8, atol=1e-12)


def test_sampled_labels_differ_between_chunks() -> None:
    """The same example in two chunks draws anew: its columns are not the same twice."""
    seeded()
    x = torch.randn(1, 5, dtype=torch.float64).expand(8192, 5).contiguous()
    y = torch.zeros(8192, dtype=torch.long)
    problem = cf.Problem(mlp(5, 3).double(), cf.CrossEntropy(), (x, y), (x[:1], y[:1]))
    columns = cf.MonteCarlo(1, seed=0).columns()
    output = problem.outputs(problem.train, "training set")
    first = columns(problem.loss, output[:4096], y[:4096])
    second = columns(problem.loss, output[4096:], y[4096:])
    assert not torch.equal(first, second)


class TestOrdinaryModels:
    """What users write, and once met a rule that did not expect it."""

    def check(self, net: nn.Module, x: Tensor, *, loss: Loss | None = None) -> cf.Problem:
        net = net.double()
        loss = loss or cf.MSE()
        shape = net(x).shape
        y = torch.randn(shape, dtype=torch.float64)
        problem = cf.Problem(net, loss, (x, y), (x[:2], y[:2]))
        ggn = oracles.dense_ggn(problem)
        assert torch.allclose(cf.fit(problem, cf.GGN()).to_dense(), ggn, rtol=1e-9, atol=1e-12)
        wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T / len(x)
        found = cf.influence(problem, cf.Identity()).values
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)
        return problem

    def test_padding_dropped_inside_is_refused(self) -> None:
        """Rows are then no longer in the order of examples, though their sum is right."""

        def forward(m: Model, x: Tensor) -> Tensor:
            rows = x.view(len(x), 6, 5)
            keep = (rows != 0).any(-1)
            out = torch.zeros(len(x), 6, 5, dtype=x.dtype)
            out[keep] = m.a(rows[keep])
            return m.b(out.sum(1))

        x = torch.randn(20, 6, 5, dtype=torch.float64)
        probed = set(torch.linspace(0, 19, 8).long().tolist())
        padded = [n for n in range(20) if n not in probed][:10]
        x[padded, :2] = 0.0
        y = torch.randn(20, 3, dtype=torch.float64)
        flat = x.flatten(1)
        problem = cf.Problem(model(forward).double(), cf.MSE(), (flat, y), (flat[:2], y[:2]))
        with pytest.raises(cf.errors.InputError, match="told apart by example"):
            cf.influence(problem, cf.Identity())

    def test_one_training_example_with_time_first(self) -> None:
        def forward(m: Model, x: Tensor) -> Tensor:
            return m.b(torch.tanh(m.a(x.view(len(x), 4, 5).transpose(0, 1)))).sum(0)

        net = model(forward).double()
        x, y = torch.randn(3, 20, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
        problem = cf.Problem(net, cf.MSE(), (x[:1], y[:1]), (x, y))
        wanted = oracles.query_gradients(problem) @ oracles.example_gradients(problem).T
        found = cf.influence(problem, cf.Identity()).values
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)

    def test_padding_of_a_lookup_is_no_position(self) -> None:
        """K-FAC with padded columns is K-FAC without them."""
        seeded()
        table, top = nn.Embedding(6, 3, padding_idx=0), nn.Linear(3, 4)
        net = nn.Sequential(table, nn.Tanh(), top).double()
        ids, y = torch.randint(1, 6, (7, 3)), torch.randint(0, 4, (7, 3))
        long_ids = torch.cat([ids, torch.zeros(7, 5, dtype=torch.long)], dim=1)
        long_y = torch.cat([y, torch.full((7, 5), -100)], dim=1)
        loss = cf.Positions(cf.CrossEntropy())
        short = cf.Problem(net, loss, (ids, y), (ids[:1], y[:1]))
        padded = cf.Problem(net, loss, (long_ids, long_y), (long_ids[:1], long_y[:1]))
        for rung in (cf.KFAC(), cf.EKFAC()):
            a, b = cf.fit(short, rung).to_dense(), cf.fit(padded, rung).to_dense()
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-13)

    def test_a_key_bias_has_its_rule(self) -> None:
        """Softmax does not see it: its gradient is what rounding leaves of a sum."""

        class Keys(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)).mean(1)

        seeded()
        x = torch.randn(8, 24, 32, dtype=torch.float64)
        net = Keys().double()
        problem = cf.Problem(net, cf.MSE(), (x, net(x).detach() + 1), (x[:1], net(x[:1]).detach()))
        assert discover(problem).others == {}

    def test_sizes_of_one_element(self) -> None:
        class Conv(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(2, 1, 3, 3))
                self.bias = nn.Parameter(torch.randn(2))

            def forward(self, x: Tensor) -> Tensor:
                images = x.view(-1, 1, 4, 5)
                return F.conv2d(images, self.weight, self.bias, stride=[1], padding=(1,)).flatten(1)

        problem = self.check(Conv(), torch.randn(5, 20, dtype=torch.float64))
        assert discover(problem).others == {}

    def test_weights_of_one_axis_and_biases_that_broadcast(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.row = nn.Parameter(torch.randn(5))
                self.weight = nn.Parameter(torch.randn(2, 5))
                self.bias = nn.Parameter(torch.randn(1))

            def forward(self, x: Tensor) -> Tensor:
                return F.linear(x, self.weight, self.bias) * F.linear(x, self.row)[:, None]

        self.check(Odd(), torch.randn(5, 5, dtype=torch.float64))

    def test_a_bag_that_does_not_reach_the_output(self) -> None:
        class Bags(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bag = nn.EmbeddingBag(6, 3, mode="sum")

            def forward(self, x: Tensor) -> Tensor:
                return self.bag(x) + 0 * self.bag(x.flip(1)).detach()

        self.check(Bags(), torch.randint(0, 6, (5, 4)))

    def test_groups_keep_their_own_inputs_only(self) -> None:
        seeded()
        net = nn.Sequential(
            nn.Unflatten(1, (8, 2, 2)), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten()
        )
        x = torch.randn(4, 32)
        problem = cf.Problem(net, cf.MSE(), (x, x), (x[:1], x[:1]))
        rows = training_gradients(problem, discover(problem))
        held = sum(term.data.untyped_storage().nbytes() for term in rows.terms)
        assert held == sum(term.data.nbytes for term in rows.terms)


class Placed(nn.Module):
    """Words and places, these by indices [1, T] that all examples share, as GPT-2 and BERT do."""

    def __init__(self, how: str = "added") -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        places = self.places(torch.arange(x.shape[1])[None])
        if self.how == "summed":
            places = places.sum(0)
        elif self.how == "squeezed":
            places = places.squeeze(0).view(x.shape[1], 4)
        return self.head(torch.tanh(self.words(x) + places).mean(1))


class TestSharedLookups:
    def problem(self, how: str, per_example: bool = False) -> cf.Problem:
        seeded()
        net = Placed(how).double()
        x, y = torch.randint(7, (40, 5)), torch.randint(3, (40,))
        return cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:4], y[:4]))

    def test_they_have_a_rule(self) -> None:
        given = self.problem("added")
        layout = discover(given)
        assert "places.weight" not in layout.others
        assert cf.fit(given, cf.EKFAC(), strict=True).coverage
        found = oracles.example_gradients(given)
        torch.testing.assert_close(training_gradients(given, layout).to_dense()[:, 0], found)

    @pytest.mark.parametrize("how", ["added", "summed", "squeezed"])
    @pytest.mark.parametrize("rung", [cf.EKFAC(), cf.GGN(), cf.BlockGGN()], ids=str)
    def test_whatever_is_made_of_them(self, how: str, rung: cf.Rung) -> None:
        """A model that does more than give them another shape keeps them shared, without a rule."""
        given = self.problem(how)
        ggn = cf.fit(given, cf.GGN()).to_dense()
        torch.testing.assert_close(ggn, oracles.dense_ggn(given), rtol=1e-9, atol=1e-12)
        scores = cf.influence(given, rung, damping=cf.Absolute(0.1))
        fallback = any(line.fallback for line in scores.coverage)
        assert fallback == (how == "summed" and not isinstance(rung, cf.GGN | cf.BlockGGN))


IN_FRONT: dict[str, Callable[..., Tensor]] = {
    "[None]": lambda p, *_: p[None],
    "[None, :, :]": lambda p, *_: p[None, :, :],
    "unsqueeze": lambda p, *_: p.unsqueeze(0),
    "torch.unsqueeze": lambda p, *_: torch.unsqueeze(p, 0),
    "view": lambda p, b, t, d: p.view(1, t, d),
    "reshape": lambda p, b, t, d: p.reshape(1, t, d),
    "expand": lambda p, b, t, d: p.expand(b, t, d),
    "unsqueeze, expand": lambda p, b, t, d: p.unsqueeze(0).expand(b, -1, -1),
    "repeat": lambda p, b, t, d: p.repeat(b, 1, 1),
    "tile": lambda p, b, t, d: torch.tile(p, (b, 1, 1)),
}

OF_ONE: dict[str, Callable[..., Tensor]] = {
    "ids[None]": lambda p, *_: p,
    "ids[None], [0]": lambda p, *_: p[0],
    "ids[None], squeeze": lambda p, *_: p.squeeze(0),
    "ids[None], expand": lambda p, b, *_: p.expand(b, -1, -1),
    "ids[None], repeat": lambda p, b, *_: p.repeat(b, 1, 1),
}
MADE = {
    **IN_FRONT,
    "the first": lambda p, *_: p[:1],
    "with their mean": lambda p, *_: p[None] * p.mean(0),
    "by number": lambda p, *_: p[None, 0] + p[-1],
}


class Numbered(nn.Module):
    """Words and places, these by indices [T] alone, as nanoGPT does; or a class of each example; or
    the words of all examples in a row."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.words, self.table, self.head = nn.Embedding(7, 4), nn.Embedding(12, 4), nn.Linear(4, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how in ("row", "row and places"):
            words = self.words(x.flatten()).view(len(x), -1, 4)
        else:
            words = self.words(x)
        if self.how == "row and places":
            words = words + self.table(torch.arange(x.shape[1])[None])
        if self.how == "small row":
            words = self.words(x.flatten()).reshape(*x.shape, -1)[..., :4]
            return 1e-8 * self.head(torch.tanh(words).mean(1))
        if self.how in ("places", "both"):
            words = words + self.table(torch.arange(x.shape[1]))
        if self.how in ("classes", "both"):
            words = words + self.table(x[:, 0])[:, None]
        if self.how in MADE:
            words = words + MADE[self.how](self.table(torch.arange(x.shape[1])), *words.shape)
        if self.how in OF_ONE:
            ids = torch.arange(x.shape[1])[None]
            words = words + OF_ONE[self.how](self.table(ids), *words.shape)
        return self.head(torch.tanh(words).mean(1))


class TestNumberedPlaces:
    """Whatever the numbers of positions and examples are, one and the same among them."""

    def problem(self, how: str, length: int, n: int = 9) -> cf.Problem:
        seeded()
        net = Numbered(how).double()
        x, y = torch.randint(7, (n, length)), torch.randint(3, (n,))
        return cf.Problem(net, cf.CrossEntropy(), (x, y), (x[:4], y[:4]))

    @pytest.mark.parametrize("chunk", [1, 2, 5, 8, 9])
    @pytest.mark.parametrize("length", [1, 2, 5, 7, 8, 9])
    @pytest.mark.parametrize("how", ["places", "classes"])
    def test_they_have_a_rule(
        self, how: str, length: int, chunk: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budget, "EXAMPLES", chunk)
        given = self.problem(how, length)
        layout = discover(given)
        assert "table.weight" not in layout.others
        assert cf.fit(given, cf.EKFAC(), strict=True).coverage
        found = oracles.example_gradients(given)
        torch.testing.assert_close(training_gradients(given, layout).to_dense()[:, 0], found)

    @pytest.mark.parametrize("length", [1, 3, 9])
    @pytest.mark.parametrize("how", [*IN_FRONT, *OF_ONE])
    def test_an_axis_in_front_of_them(self, how: str, length: int) -> None:
        given = self.problem(how, length)
        assert "table.weight" not in discover(given).others
        found, wanted = (
            cf.fit(at, cf.EKFAC(), strict=True).to_dense()
            for at in (given, self.problem("places", length))
        )
        torch.testing.assert_close(found, wanted)
        rows = training_gradients(given, discover(given)).to_dense()[:, 0]
        torch.testing.assert_close(rows, oracles.example_gradients(given))

    @pytest.mark.parametrize("n", [2, 3, 9])
    @pytest.mark.parametrize("length", [1, 2, 3, 8])
    @pytest.mark.parametrize("how", ["both", *MADE, *OF_ONE])
    def test_whatever_is_made_of_them(self, how: str, length: int, n: int) -> None:
        """One table for both; a part of them, or their mean, which is not that of every example."""
        given = self.problem(how, length, n)
        found = oracles.example_gradients(given)
        rows = training_gradients(given, discover(given)).to_dense()[:, 0]
        torch.testing.assert_close(rows, found)
        ggn = cf.fit(given, cf.GGN()).to_dense()
        torch.testing.assert_close(ggn, oracles.dense_ggn(given), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("n", [1, 2, 9])
    @pytest.mark.parametrize("length", [1, 2, 5, 8])
    @pytest.mark.parametrize("how", ["row", "row and places", "small row"])
    def test_words_of_all_examples_in_a_row(self, how: str, length: int, n: int) -> None:
        """They are no positions, also where they are of one example twice, or outputs so small that
        others are as small; what else is looked up keeps its rule."""
        given = self.problem(how, length, n)
        layout = discover(given)
        assert "words.weight" not in layout.others
        assert ("table.weight" in layout.others) == (how != "row and places")
        found = oracles.example_gradients(given)
        torch.testing.assert_close(training_gradients(given, layout).to_dense()[:, 0], found)

    def test_two_problems_of_one_model(self) -> None:
        """What is known of a model is right for its problems of as many examples as places."""
        seeded()
        net = Numbered("places").double()
        for n in (9, 5, 5):
            x, y = torch.randint(7, (n, 5)), torch.randint(3, (n,))
            given = cf.Problem(net, cf.CrossEntropy(), (x, y), (x, y))
            rows = training_gradients(given, discover(given)).to_dense()[:, 0]
            torch.testing.assert_close(rows, oracles.example_gradients(given))
