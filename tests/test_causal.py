"""CausalLM: the shift of Hugging Face, against the shift made by hand."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import curvfluence as cf
from tests.problems import seeded

N, Q, T, V = 12, 3, 6, 7
GENERATOR = torch.Generator().manual_seed(5)
IDS = torch.randint(1, V, (N + Q, T), generator=GENERATOR)
LENGTHS = torch.randint(3, T + 1, (N + Q,), generator=GENERATOR)
REAL = torch.arange(T) < LENGTHS[:, None]
LABELS = torch.where(REAL, IDS, -100)
TRAIN, QUERIES = slice(0, N), slice(N, N + Q)


class Causal(nn.Module):
    """A position sees the mean of what is up to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(V, 4)
        self.mix = nn.Linear(4, 5)
        self.head = nn.Linear(5, V)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.head(torch.tanh(self.mix(x.cumsum(1) / count)))


def model() -> nn.Module:
    seeded()
    return Causal().double()


def problem(loss: cf.CausalLM) -> cf.Problem:
    parts = [{"input_ids": IDS[at], "labels": LABELS[at]} for at in (TRAIN, QUERIES)]
    return cf.Problem(model(), loss, *parts)


def by_hand(loss: cf.Positions) -> cf.Problem:
    """The last token is not given to the model, and labels are shifted: what the loss stands for,
    since nothing depends on a position that nothing follows."""
    parts = [(IDS[at, :-1], LABELS[at, 1:]) for at in (TRAIN, QUERIES)]
    return cf.Problem(model(), loss, *parts)


RUNGS = (
    cf.Diagonal(), cf.KFAC(), cf.EKFAC(), cf.KFAC(sharing=cf.Reduce()), cf.BlockGGN(), cf.GGN(),
    cf.Hessian(), cf.EKFAC(cf.MonteCarlo(2)), cf.KFAC(cf.Empirical()),
)  # fmt: skip


# The scale of ℓ_n enters every rung alike.
CASES = [(rung, "token_mean") for rung in RUNGS]
CASES += [(rung, how) for rung in (cf.KFAC(), cf.GGN()) for how in ("sum", "mean")]


@pytest.mark.parametrize(("rung", "reduction"), CASES, ids=str)
def test_every_rung_is_that_of_the_shift_by_hand(rung: cf.Rung, reduction: str) -> None:
    found, wanted = (
        cf.influence(made, rung, damping=cf.Absolute(0.01)).values
        for made in (
            problem(cf.CausalLM(reduction=reduction)),
            by_hand(cf.Positions(cf.CrossEntropy(), reduction=reduction)),
        )
    )
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-13)


def test_the_objective_is_that_of_transformers() -> None:
    """(1/N) Σ ℓ_n is the mean over all tokens that are predicted, as `ForCausalLMLoss` has it."""
    made = problem(cf.CausalLM())
    with torch.no_grad():
        logits = model()(IDS[TRAIN])
    shifted = F.pad(LABELS[TRAIN], (0, 1), value=-100)[:, 1:]
    wanted = F.cross_entropy(logits.flatten(0, 1), shifted.flatten(), ignore_index=-100)
    output = made.outputs(made.train, "training set")
    assert float(made.loss.values(output, LABELS[TRAIN]).mean()) == pytest.approx(float(wanted))


def test_influence_of_tokens() -> None:
    """T − 1 of them, of each label that is predicted; 0 where none is."""
    found = cf.token_influence(problem(cf.CausalLM()), cf.EKFAC())
    wanted = cf.token_influence(by_hand(cf.Positions(cf.CrossEntropy())), cf.EKFAC())
    assert found.shape == (Q, N, T - 1)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-14)
    assert not found[:, ~REAL[TRAIN, 1:]].any()


def test_labels_that_are_not_shifted_are_said() -> None:
    parts = [(IDS[at], LABELS[at]) for at in (TRAIN, QUERIES)]
    with pytest.warns(cf.errors.CurvfluenceWarning, match=r"labels are the inputs themselves"):
        made = cf.Problem(model(), cf.Positions(cf.CrossEntropy()), *parts)
    scores = cf.influence(made, cf.EKFAC())
    assert any("CausalLM(), which shifts them" in note for note in scores.notes)


def test_labels_that_are_shifted_twice_are_said() -> None:
    shifted = F.pad(LABELS, (0, 1), value=-100)[:, 1:]
    parts = [(IDS[at], shifted[at]) for at in (TRAIN, QUERIES)]
    with pytest.warns(cf.errors.CurvfluenceWarning, match=r"CausalLM shifts them once more"):
        cf.Problem(model(), cf.CausalLM(), *parts)


def test_a_decoder_with_its_own_shift_is_not_taken_for_unshifted() -> None:
    """An encoder reads the tokens that a decoder is to write, which reads them a place late."""

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.causal = Causal()

        def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
            return self.causal(decoder_input_ids) + self.causal(input_ids).mean(1, keepdim=True)

    late = F.pad(IDS, (1, 0))[:, :-1]
    parts = [
        {"input_ids": IDS[at], "decoder_input_ids": late[at], "labels": LABELS[at]}
        for at in (TRAIN, QUERIES)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cf.Problem(Copies(), cf.Positions(cf.CrossEntropy()), *parts)


def test_masked_tokens_are_not_taken_for_unshifted_ones() -> None:
    """Labels at masked places alone are not what stands in the inputs there."""
    masked = IDS.clone()
    masked[:, ::2] = 0
    labels = torch.where(masked == 0, IDS, -100)
    parts = [(masked[at], labels[at]) for at in (TRAIN, QUERIES)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cf.Problem(model(), cf.Positions(cf.CrossEntropy()), *parts)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS[:, 1:], r"CausalLM needs labels \[B, T\], the tokens themselves"),
        (LABELS[:, 0], r"CausalLM needs labels \[B, T\]"),
        (torch.where(REAL, V + 3, -100), r"label 10 of example 0 is outside 0\.\.6"),
        (torch.full_like(LABELS, -100), r"example 0 has no counted position"),
    ],
)
def test_bad_labels(labels: Tensor, said: str) -> None:
    parts = [(IDS[at], labels[at]) for at in (TRAIN, QUERIES)]
    with pytest.raises(cf.errors.InputError, match=said):
        cf.Problem(model(), cf.CausalLM(), *parts)


def test_one_token() -> None:
    parts = [(IDS[at, :1], LABELS[at, :1]) for at in (TRAIN, QUERIES)]
    with pytest.raises(cf.errors.InputError, match="nothing follows a single one"):
        cf.Problem(model(), cf.CausalLM(), *parts)
