"""Files that are there whole or not at all, and folders that one process at a time works in."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vmmr.errors import ConfigError

__all__ = ["alone_in", "whole_file", "write_json"]


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` once the block has ended well, and leaves no trace else.

    Whoever dies within leaves what was there before, and beside it a draft with a dot in front. Raises OSError as
    writing does.
    """
    handle, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, document: dict[str, Any] | list[Any]) -> None:
    """The document as a `whole_file`. Raises ConfigError where none can be written there."""
    try:
        with whole_file(Path(path)) as file:
            file.write(json.dumps(document, indent=1).encode())
    except OSError as error:
        raise ConfigError("cannot write the JSON file", got=error, do="name one in a folder with room") from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone; one that was killed leaves nothing locked.

    Raises ConfigError where another process is in it, or no folder can be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError("cannot make the folder", got=error, do="name another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError("another run works in this folder", got=folder, do="wait for it") from error
        yield
