"""The rungs of a protocol by name, and the steps between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

from curvfluence.curvature.block_ggn import BlockGGN
from curvfluence.curvature.curvature import Curvature
from curvfluence.curvature.diagonal import Diagonal
from curvfluence.curvature.ekfac import EKFAC
from curvfluence.curvature.eshampoo import EShampoo
from curvfluence.curvature.estimate.factors import Reduce
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian, Truncate
from curvfluence.curvature.hybrids import Sorted, TraceMatched
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.inversion import ConjugateGradients, Matrix, SampleSpace
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import Rung
from curvfluence.curvature.shampoo import Shampoo
from curvfluence.curvature.tkfac import TKFAC
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher import MonteCarlo, Type2, fisher_named
from curvfluence.study.problems.nets import MLP
from curvfluence.truth import Cosine, Recipe, sgd

EXACT_VALUES = "EKFAC(exact)"  # a sampled basis with exact eigenvalues
SAMPLED = ("mc(1)", "mc(5)", "empirical")  # beside the exact one, on the same truth


@dataclass(frozen=True)
class Chain:
    """An orthogonal part of the ladder, from GGN down to K-FAC of one Fisher type, or to another
    Kronecker product in its own eigenbasis: the squared distances of its steps add up. The
    eigenvalue step is its last."""

    fisher: str
    rungs: tuple[str, str, str, str]
    bottom: str = "KFAC"

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return self.fisher if self.bottom == "KFAC" else f"{self.fisher}, {self.bottom}"

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        return tuple(pairwise(self.rungs))


@dataclass(frozen=True)
class Protocol:
    """How a study trains, and which rung each name stands for, from the top down.

    With `double` the ladder is climbed in float64 and every inverse is held against the exact
    Hessian's, whatever the dtype of training. With `seconds` a rung that is forecast to take longer
    for a fit and scores of a model (at all λ together, where it solves anew at each), or does not
    fit this machine, is left out and named. Without `spectra` no
    rung is decomposed for its own sake.
    """

    name: str
    rungs: Callable[[int], Mapping[str, Rung]]  # of a seed for what is sampled
    steps: tuple[tuple[str, str], ...]
    chains: tuple[Chain, ...]
    recipe: Callable[[Recipe], Recipe]
    double: bool = False
    seconds: float | None = None
    spectra: bool = True

    def with_fishers(self, names: Sequence[str]) -> Protocol:
        """The ladder with K-FAC and EK-FAC of further Fisher types beside its own.

        Of each: EK-FAC with eigenvalues of that type, with exact ones, and K-FAC.
        """
        known = {chain.fisher for chain in self.chains}
        more = tuple(Chain(f, _chain_of(f)) for f in names if f not in known)
        if not more:
            return self

        def rungs(seed: int) -> dict[str, Rung]:
            return {**self.rungs(seed), **{k: v for c in more for k, v in _of(c, seed).items()}}

        return replace(self, rungs=rungs, chains=(*self.chains, *more))


def _chain_of(fisher: str) -> tuple[str, str, str, str]:
    return ("GGN", "BlockGGN", f"{EXACT_VALUES}[{fisher}]", f"KFAC[{fisher}]")


def _of(chain: Chain, seed: int) -> dict[str, Rung]:
    fisher = fisher_named(chain.fisher, seed)
    return {
        chain.rungs[2]: EKFAC(fisher=fisher, values=Type2()),
        f"EKFAC[{chain.fisher}]": EKFAC(fisher=fisher),
        chain.rungs[3]: KFAC(fisher=fisher),
    }


def _clean(seed: int) -> dict[str, Rung]:
    return {
        "Hessian": Hessian(),
        "GGN": GGN(Matrix()),  # its blocks and eigenvalues are looked at
        "BlockGGN": BlockGGN(),
        "EKFAC": EKFAC(),
        "KFAC": KFAC(),
        "Diagonal": Diagonal(),
        "Identity": Identity(),
    }


def _paper(seed: int) -> dict[str, Rung]:
    one = MonteCarlo(1, seed=seed)
    return {
        "Hessian": Hessian(Truncate(1e-6)),
        "GGN": GGN(Matrix()),  # its blocks and eigenvalues are looked at
        "BlockGGN": BlockGGN(fisher=Type2(), joint_bias=False),
        EXACT_VALUES: EKFAC(fisher=one, joint_bias=False, values=Type2()),
        "EKFAC": EKFAC(fisher=one, joint_bias=False),
        "KFAC": KFAC(fisher=one, joint_bias=False, factored_damping=True),
        "Diagonal": Diagonal(fisher=Type2()),
        "Identity": Identity(),
    }


def _frontier(seed: int) -> dict[str, Rung]:
    """Every rung, Fisher type and form of the GGN's inverse; `reduce` differs from the others
    where positions share weights."""
    ladder: dict[str, Rung] = {
        "Hessian": Hessian(),
        "GGN": GGN(Matrix()),
        "GGN(samples)": GGN(SampleSpace()),
        "GGN(iterative)": GGN(ConjugateGradients()),
        "BlockGGN": BlockGGN(),
        "EKFAC": EKFAC(),
        "KFAC": KFAC(),
        "KFAC(factored)": KFAC(factored_damping=True),
        "EKFAC(reduce)": EKFAC(sharing=Reduce()),
        "KFAC(reduce)": KFAC(sharing=Reduce()),
        "EShampoo": EShampoo(),
        "TKFAC": TKFAC(),
        "Shampoo": Shampoo(),
        "Diagonal": Diagonal(),
        "Identity": Identity(),
    }
    for name in SAMPLED:
        ladder |= _of(Chain(name, _chain_of(name)), seed)
        ladder[f"Diagonal[{name}]"] = Diagonal(fisher_named(name, seed))
    return ladder


def _table1(seed: int) -> dict[str, Rung]:
    exact = Type2()
    ladder: dict[str, Rung] = {
        "Hessian": Hessian(),
        "GGN": GGN(Matrix()),
        "BlockGGN": BlockGGN(),
        "EKFAC": EKFAC(exact),
        "KFAC": KFAC(exact),
        "KFAC(factored)": KFAC(exact, factored_damping=True),
        "EShampoo": EShampoo(exact),
        "TKFAC": TKFAC(exact),
        "Shampoo": Shampoo(exact),
        "Diagonal": Diagonal(exact),
        "Identity": Identity(),
    }
    for name in SAMPLED:
        fisher = fisher_named(name, seed)
        ladder |= _of(Chain(name, _chain_of(name)), seed)
        ladder |= {
            f"KFAC(factored)[{name}]": KFAC(fisher, factored_damping=True),
            f"EShampoo[{name}]": EShampoo(fisher),
            f"TKFAC[{name}]": TKFAC(fisher),
            f"Shampoo[{name}]": Shampoo(fisher),
        }
    return ladder


def _table1_recipe(recipe: Recipe) -> Recipe:
    """The paper's own: tanh, no biases, plain SGD at .03 with a cosine to 0, batches of 32, 100
    epochs, no weight decay; one hidden layer of 16 unless a variant says otherwise."""
    net = recipe.architecture
    if not isinstance(net, MLP):
        raise InputError(
            "the protocol table1 is about tanh nets of a depth and a width: it takes the built-in "
            "problems, whose nets can be changed, and this one has an architecture of its own"
        )
    return Recipe(
        architecture=replace(net, activation="tanh", bias=False).with_hidden(depth=1, width=16),
        loss=recipe.loss,
        optimizer=sgd(0.03),
        batch_size=32,
        epochs=100,
        schedule=Cosine(),
    )


def _paper_recipe(recipe: Recipe) -> Recipe:
    """100 epochs, cosine schedule, no weight decay."""
    return replace(recipe, epochs=100, steps=None, schedule=Cosine(), weight_decay=0.0)


def _unchanged(recipe: Recipe) -> Recipe:
    return recipe


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "clean": Protocol(
            "clean",
            _clean,
            steps=tuple(pairwise(_clean(0))),
            chains=(Chain("type2", ("GGN", "BlockGGN", "EKFAC", "KFAC")),),
            recipe=_unchanged,
        ),
        "paper": Protocol(
            "paper",
            _paper,
            steps=(
                ("Hessian", "GGN"),
                ("GGN", "BlockGGN"),
                ("BlockGGN", EXACT_VALUES),
                (EXACT_VALUES, "KFAC"),
                ("EKFAC", "KFAC"),
                ("KFAC", "Diagonal"),
                ("Diagonal", "Identity"),
            ),
            chains=(Chain("mc(1)", ("GGN", "BlockGGN", EXACT_VALUES, "KFAC")),),
            recipe=_paper_recipe,
        ),
        "frontier": Protocol(
            "frontier",
            _frontier,
            steps=tuple(pairwise(_clean(0))),
            chains=(Chain("type2", ("GGN", "BlockGGN", "EKFAC", "KFAC")),),
            recipe=_unchanged,
            seconds=60.0,
            spectra=False,
        ),
        "table1": Protocol(
            "table1",
            _table1,
            steps=(
                *pairwise(("Hessian", "GGN", "BlockGGN", "EKFAC", "KFAC", "Diagonal", "Identity")),
                ("KFAC", "KFAC(factored)"),
                *pairwise(("BlockGGN", "EShampoo", "TKFAC")),
                ("EShampoo", "Shampoo"),
            ),
            chains=(
                Chain("type2", ("GGN", "BlockGGN", "EKFAC", "KFAC")),
                Chain("type2", ("GGN", "BlockGGN", "EShampoo", "TKFAC"), "TKFAC"),
                Chain("type2", ("GGN", "BlockGGN", "EShampoo", "Shampoo"), "Shampoo"),
                *(Chain(name, _chain_of(name)) for name in SAMPLED),
            ),
            recipe=_table1_recipe,
            double=True,
        ),
    }
)


def protocol(name: str) -> Protocol:
    """The protocol of that name. Errors: `InputError` lists the names."""
    if name not in PROTOCOLS:
        raise InputError(f"there is no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def hybrids(fitted: Mapping[str, Curvature]) -> dict[str, Curvature]:
    """Hybrids between the block GGN and K-FAC, of curvatures that are fitted already.

    They tell K-FAC's two mismatches apart: the block's eigenvalues on K-FAC's basis leave the
    eigenvectors wrong, K-FAC's eigenvalues on the block's basis leave the eigenvalues wrong.
    """
    if not {"BlockGGN", "KFAC"} <= set(fitted):
        return {}
    block, kfac = fitted["BlockGGN"], fitted["KFAC"]
    b, k = BlockGGN(), KFAC()
    made = (
        (Sorted(b, k), Sorted(b, k).combine(block, kfac)),
        (Sorted(k, b), Sorted(k, b).combine(kfac, block)),
        (TraceMatched(k, b), TraceMatched(k, b).combine(kfac, block)),
    )
    return {rung.name: replace(value, rung=rung.name) for rung, value in made}
