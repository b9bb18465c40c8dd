"""The entry point of the command line: work is done in a process of its own, which is watched.

What a problem file does to its process (ends it, closes its streams, forks, leaves an alarm or a
loop behind) is then told in a sentence, and Ctrl-C ends everything within two seconds, whatever a
linear algebra library is busy with. Three processes:

    supervisor   the one that the terminal knows; imports nothing that is heavy
    child        `python -m curvfluence …`, in a session of its own with all of its workers
    reaper       ends the child's session where the supervisor was killed before it could

Where there are no sessions (Windows) the command runs in the one process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from curvfluence.runtime.child import CHILD, FINISHED
from curvfluence.runtime.unfinished import WORK, kept_by

GRACE = 1.0  # seconds between asking the child to stop and ending it
STOPS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Entry point of `curvfluence`."""
    words = sys.argv[1:]
    alone = os.name != "posix" or CHILD in os.environ
    # the other commands are over before a second process would have started
    if alone or WORK.isdisjoint(words) or "--help" in words:
        from curvfluence.cli import main as run

        run()
    else:
        sys.exit(supervise([sys.executable, "-m", "curvfluence", *words]))


def supervise(command: list[str]) -> int:
    """Run the command in a session of its own to its end; the exit code for this process.

    130 after Ctrl-C and 143 after SIGTERM, with what is kept said; 2 where the child ended without
    having finished, with how it ended said.
    """
    asked: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        asked.append(number)

    started: list[int] = []

    def pause(number: int, _: FrameType | None) -> None:
        for group in started:
            _signal(group, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for group in started:  # after the shell's fg
            _signal(group, signal.SIGCONT)

    before = {number: signal.signal(number, stop) for number in STOPS}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, pause)
    reaper = _Reaper()
    told, telling = os.pipe()  # after the reaper, which would hold it open
    os.set_blocking(told, False)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, CHILD: f"{os.getpid()}:{telling}"},
            pass_fds=(telling,),
            start_new_session=True,
        )
        os.close(telling)
        started.append(child.pid)
        reaper.watch(child.pid)
        code = _until_end(child, asked)
        if asked:
            _end(child)
            return _stopped(asked[0], kept_by(command))
        finished = _read(told) == FINISHED
        _end(child)
        return code if finished else _broken(code, kept_by(command))
    finally:
        reaper.dismiss()
        os.close(told)
        for number, handler in before.items():
            signal.signal(number, handler)


def _read(told: int) -> bytes:
    try:
        return os.read(told, len(FINISHED))
    except BlockingIOError:  # something that the child started holds it open
        return b""


def _until_end(child: subprocess.Popen[bytes], asked: list[int]) -> int:
    """The child's exit code, or -1 as soon as somebody has asked to stop."""
    while not asked:
        try:
            return child.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    return -1


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started: first by asking, then by force."""
    if child.poll() is None:
        _signal(child.pid, signal.SIGINT)
    until = time.monotonic() + GRACE
    while time.monotonic() < until and _alive(child):
        time.sleep(0.02)
    _signal(child.pid, signal.SIGKILL)
    child.wait()


def _alive(child: subprocess.Popen[bytes]) -> bool:
    """Whether any process of the child's session is left."""
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _stopped(number: int, kept: str) -> int:
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h\r\x1b[K")  # a progress bar hides the cursor
    word = "interrupted" if number == signal.SIGINT else "stopped"
    _say(f"{word}: {kept}. Nothing of it is running any more")
    return 128 + number


def _broken(code: int, kept: str) -> int:
    if code < 0:
        name = signal.Signals(-code).name
        why = f"it was ended by {name}"
        if -code == signal.SIGKILL:
            why += " (not enough memory, or somebody did so)"
    else:
        why = f"a problem file or a library ended its process, with exit code {code}"
    _say(f"error: the command did not finish: {why}. {kept[0].upper()}{kept[1:]}")
    return 2


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class _Reaper:
    """A process that waits for this one's end, and ends what it was told to watch unless dismissed
    before."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(reading)
            return
        os.close(self.writing)
        os.setsid()
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)
        self._wait(reading)
        os._exit(0)

    def _wait(self, reading: int) -> None:
        text = b""
        while part := os.read(reading, 64):
            text += part
        group, _, rest = text.partition(b"\n")
        if group and not rest:
            _signal(int(group), signal.SIGKILL)

    def watch(self, group: int) -> None:
        os.write(self.writing, f"{group}\n".encode())

    def dismiss(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self.writing, b"dismissed")
        os.close(self.writing)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
