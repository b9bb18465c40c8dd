"""Commands that several processes under `torchrun` do together."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from curvfluence.errors import InputError

SHARED = frozenset({"attribute", "index"})  # commands that are shared out
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process


def launched() -> int | None:
    """How many processes torchrun started for this command; None without it. One by itself adds up
    in the order of several, and so has their bits."""
    return int(os.environ["WORLD_SIZE"]) if all(k in os.environ for k in LAUNCHED) else None


def require_shared(command: str | None) -> None:
    """Errors: `InputError` for a command that several processes would each do by themselves."""
    count = launched()
    if count is not None and count > 1 and command is not None and command not in SHARED:
        raise InputError(
            f"{count} processes were started for `curvfluence {command}`, and each would do all of "
            f"it: under torchrun there is {', '.join(sorted(SHARED))}. Start it once, without "
            "torchrun"
        )


@contextmanager
def together() -> Generator[bool]:
    """Join the processes that were started with this one; whether this is the one that speaks and
    writes."""
    if launched() is None:
        yield True
        return
    import torch.distributed as dist

    from curvfluence.runtime import backend, ranks

    dist.init_process_group(backend.own())
    try:
        with ranks.together() as team:
            if team.rank:
                warnings.simplefilter("ignore")  # the first process says them
            yield team.rank == 0
    except BaseException:
        ranks.destroy()
        raise
    ranks.leave()
