"""The commented example that `curvfluence init` writes."""

from __future__ import annotations

from pathlib import Path

from curvfluence.errors import InputError

TEMPLATE = Path(__file__).with_name("my_problem.py")


def write_template(path: Path) -> None:
    """Write the example to `path`. Errors: `InputError` where that is no new .py file."""
    if path.suffix != ".py":
        raise InputError(f"the file must end in .py; seen {path}")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"{path} exists and is left as it is: name a new file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
