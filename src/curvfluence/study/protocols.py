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
from curvfluence.curvature.ggn import GGN
from curvfluence.curvature.hessian import Hessian, Truncate
from curvfluence.curvature.hybrids import Sorted, TraceMatched
from curvfluence.curvature.identity import Identity
from curvfluence.curvature.inversion import Matrix
from curvfluence.curvature.kfac import KFAC
from curvfluence.curvature.rung import Rung
from curvfluence.errors import InputError
from curvfluence.jacobian.fisher import MonteCarlo, Type2, fisher_named
from curvfluence.truth import Cosine, Recipe

EXACT_VALUES = "EKFAC(exact)"  # a sampled basis with exact eigenvalues


@dataclass(frozen=True)
class Chain:
    """An orthogonal part of the ladder, from GGN down to K-FAC of one Fisher type: the squared
    distances of its steps add up. The eigenvalue step is its last."""

    fisher: str
    rungs: tuple[str, str, str, str]

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        return tuple(pairwise(self.rungs))


@dataclass(frozen=True)
class Protocol:
    """How a study trains, and which rung each name stands for, from the top down."""

    name: str
    rungs: Callable[[int], Mapping[str, Rung]]  # of a seed for what is sampled
    steps: tuple[tuple[str, str], ...]
    chains: tuple[Chain, ...]
    recipe: Callable[[Recipe], Recipe]

    def with_fishers(self, names: Sequence[str]) -> Protocol:
        """The ladder with K-FAC and EK-FAC of further Fisher types beside its own.

        Of each: EK-FAC with eigenvalues of that type, with exact ones, and K-FAC.
        """
        more = tuple(Chain(f, _chain_of(f)) for f in names if f != self.chains[0].fisher)
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
