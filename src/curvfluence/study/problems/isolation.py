"""Run a file of the user's as a module of its own, and leave the process as it was found."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cloudpickle
import numpy as np
import torch

from curvfluence.errors import CurvfluenceError, InputError
from curvfluence.runtime import generators
from curvfluence.runtime.guards import one_process, own_streams, time_limit

_SHOWN = 60  # characters of a line of code in a message


@dataclass(frozen=True, eq=False)
class Source:
    """A Python file and its text; `where` and `reason` say of an error what a reader can act on."""

    path: Path
    text: str

    def where(self, line: int | None) -> str:
        """The file and, where known, the line and what stands there."""
        lines = self.text.splitlines()
        if line is None or not 0 < line <= len(lines):
            return str(self.path)
        shown = lines[line - 1].strip()
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN].rstrip()} …"
        return f"{self.path}, line {line} ({shown})"

    def line_of(self, error: BaseException) -> int | None:
        """The last line of this file that ran before the error, or before what it is due to, or
        that cannot be parsed."""
        if error.__cause__ is not None:
            due = self.line_of(error.__cause__)
            if due is not None:
                return due
        own = str(self.path.resolve())
        if isinstance(error, SyntaxError) and error.filename == own:
            return error.lineno
        frames = traceback.extract_tb(error.__traceback__)
        return next((frame.lineno for frame in reversed(frames) if frame.filename == own), None)

    def line_of_name(self, name: str) -> int | None:
        """The last line outside of functions and classes that binds `name`."""
        lines: list[int] = []
        nodes: list[ast.AST] = [ast.parse(self.text)]
        while nodes:
            node = nodes.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                lines += [node.lineno] if node.name == name else []
                continue
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
                lines.append(node.lineno)
            if isinstance(node, ast.alias) and (node.asname or node.name) == name:
                lines.append(node.lineno)
            nodes += ast.iter_child_nodes(node)
        return max(lines, default=None)

    def reason(self, error: BaseException) -> str:
        """What was raised, with its type unless the message is our own."""
        if isinstance(error, CurvfluenceError):
            return str(error)
        if isinstance(error, SystemExit):
            return f"SystemExit: the file ends the program (exit code {error.code})"
        said = error.msg if isinstance(error, SyntaxError) else str(error).strip()
        if isinstance(error, ModuleNotFoundError) and error.name:
            beside = self.path.resolve().parent / error.name.partition(".")[0]
            if beside.is_dir() or beside.with_suffix(".py").exists():
                said += " (import what lies beside the file at its top, not inside of a function)"
        return f"{type(error).__name__}: {said}" if said else type(error).__name__


@dataclass(frozen=True, eq=False)
class Executed:
    """A file that was run: the names it defines, and a hash of its text and of the text of all
    modules that it imported from its own folder."""

    source: Source
    names: dict[str, Any]
    source_hash: str


def execute(path: Path) -> Executed:
    """Run the file at `path` under a module name of its own.

    Its folder heads `sys.path` meanwhile, so that it can import what lies beside it. Afterwards
    `sys.path`, `sys.modules` (the file and what came from its folder), the working directory, the
    environment, signal handlers and alarms, the random states, torch's default dtype, threads and
    gradient mode are as before. A copy of the process that the file forks ends with the file. On
    the command line the standard streams are as before too, and the file has `CURVFLUENCE_IMPORT`
    seconds (3600 unless set).

    Errors: `InputError` where there is no such file or running it fails, with the line.
    """
    raw = _read(path)
    source = Source(path, "")
    try:
        source = Source(path, importlib.util.decode_source(raw))
        code = compile(source.text, str(path.resolve()), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        at = source.where(source.line_of(error))
        raise InputError(f"{at}: this is no Python: {source.reason(error)}") from None
    digest = hashlib.sha256(raw)
    # A recipe's description names functions with their module: equal text, equal name.
    name = f"curvfluence_own_{path.stem}_{digest.hexdigest()[:8]}"
    with _global_state(), _imports_from(path.resolve().parent) as imported:
        try:
            with one_process(f"{path}"), own_streams(), time_limit(f"{path}"):
                names = _run(code, name, path.resolve())
        except (Exception, SystemExit) as error:
            at = source.where(source.line_of(error))
            raise InputError(f"{at}: the file cannot be imported: {source.reason(error)}") from None
        for file in imported():
            digest.update(file.read_bytes())
    return Executed(source, names, digest.hexdigest()[:16])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"there is no file {path}; `curvfluence init {path}` writes an example"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): name a Python file that defines `problem` "
            "and `recipe`"
        ) from None


def _run(code: CodeType, name: str, path: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(path))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    sys.modules[name] = module
    # Processes that train a model of this file cannot import it: they are sent its functions.
    cloudpickle.register_pickle_by_value(module)
    try:
        exec(code, module.__dict__)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules[name]
    return module.__dict__


@contextmanager
def _imports_from(folder: Path) -> Generator[Callable[[], list[Path]]]:
    """`folder` heads `sys.path` inside; what was imported from it is forgotten at the end.

    Other modules stay imported, as after any import: an extension module cannot be loaded twice.
    Yields a function that lists the files imported from the folder so far.
    """
    before, path = set(sys.modules), list(sys.path)

    def imported() -> dict[str, ModuleType]:
        new = {name: m for name, m in sys.modules.items() if name not in before}
        own = {name for name, module in new.items() if _home(module) == folder}
        return {name: m for name, m in new.items() if name.partition(".")[0] in own}

    def files() -> list[Path]:
        found = (getattr(module, "__file__", None) for module in imported().values())
        return sorted(Path(file) for file in found if file)

    sys.path.insert(0, str(folder))
    try:
        yield files
    finally:
        for name in imported():
            del sys.modules[name]
        sys.path[:] = path


def _home(module: ModuleType) -> Path | None:
    """The folder that a module, or the package that it is, lies in."""
    inside = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return Path(inside[0]).resolve().parent if inside[0] else None


@contextmanager
def _global_state() -> Generator[None]:
    cwd, dtype, threads = os.getcwd(), torch.get_default_dtype(), torch.get_num_threads()
    grad, numpy_state, python_state = (
        torch.is_grad_enabled(),
        np.random.get_state(),  # noqa: NPY002
        random.getstate(),
    )
    environment, handlers = dict(os.environ), _handlers()
    with generators.preserved():
        try:
            yield
        finally:
            os.chdir(cwd)
            os.environ.clear()
            os.environ.update(environment)
            _set_handlers(handlers)
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            torch.set_grad_enabled(grad)
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _handlers() -> dict[int, Any]:
    """Who handles which signal; nobody but the main thread can change that."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _set_handlers(handlers: Mapping[int, Any]) -> None:
    if not handlers:
        return
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
