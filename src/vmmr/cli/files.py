"""Files that verbs leave."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from vmmr.errors import ConfigError

__all__ = ["write_json"]


def write_json(path: str, document: dict[str, Any]) -> None:
    """All or nothing."""
    target = Path(path)
    try:
        handle, draft = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(target)
    except OSError as error:
        raise ConfigError("cannot write the JSON file", got=error, do="name a file in an existing folder") from error
