"""The command line in this process: how it starts, and every way in which it ends."""

from __future__ import annotations

import re
import signal
import sys
import warnings
from contextlib import suppress
from functools import partial

from curvfluence.cli.consoles import console, refuse, show_warning
from curvfluence.cli.root import app
from curvfluence.cli.stop import Stopped, stoppable
from curvfluence.cli.together import launched
from curvfluence.errors import CurvfluenceError, InputError, ProcessEndedError
from curvfluence.runtime.child import is_child
from curvfluence.runtime.log import logger
from curvfluence.runtime.unfinished import kept_by

LOG = logger(__name__)


def main() -> None:
    """The command line in this process: a request that cannot be carried out ends with its reason
    and exit code 2, Ctrl-C with 130, SIGTERM with 143."""
    with warnings.catch_warnings(), stoppable():
        warnings.showwarning = partial(show_warning, warnings.showwarning)
        _run()


def _by_torchrun(stopped: Stopped) -> str:
    if stopped.number != signal.SIGTERM or (launched() or 1) == 1:
        return ""
    return " by torchrun, as all processes of a run are once another one has ended"


def _run() -> None:
    try:
        app(prog_name="curvfluence")  # python -m would be called otherwise
    except ProcessEndedError as error:
        with suppress(ValueError):  # in no main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, before this is said
        refuse("error", f"{error}; {kept_by(sys.argv[1:])}")
    except CurvfluenceError as error:
        refuse("error" if isinstance(error, InputError) else type(error).__name__, str(error))
    except (MemoryError, RuntimeError) as error:
        from curvfluence.runtime.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        asked = re.search(r"allocate ([\d.]+ ?\w+)", str(error))
        kept = kept_by(sys.argv[1:])
        refuse(
            "error",
            f"memory is short{f': {asked[1]} could not be had' if asked else ''}. Take a rung that "
            "needs less (`curvfluence advise` forecasts them), --jobs 1, or a larger limit; "
            f"{kept}",
        )
    except OSError as error:
        from curvfluence.study.words import clipped

        LOG.debug("the system refused", exc_info=True)
        place = "" if error.filename is None else f"{clipped(str(error.filename), 200)}: "
        refuse("error", f"{place}{error.strerror or error}")
    except Stopped as stopped:
        if not is_child():  # the supervisor says so
            console(stderr=True).print(f"stopped{_by_torchrun(stopped)}: {kept_by(sys.argv[1:])}")
        sys.exit(128 + stopped.number)
