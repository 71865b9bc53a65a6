"""Files that verbs leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmmr.errors import ConfigError
from vmmr.files import whole_file

__all__ = ["write_json"]


def write_json(path: str, document: dict[str, Any]) -> None:
    """All or nothing."""
    try:
        with whole_file(Path(path)) as file:
            file.write(json.dumps(document, indent=1).encode())
    except OSError as error:
        raise ConfigError("cannot write the JSON file", got=error, do="name a file in an existing folder") from error
