"""vmmr: vehicle make and model recognition that holds up in bad images.

The face is small: `load` a bundle and call it, or `recognize` one picture. torch is imported when either is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmmr.answer import Answer, Box, Candidate, LevelAnswer
from vmmr.errors import VmmrError

if TYPE_CHECKING:
    from vmmr.recognizer import Crop, Recognizer, load, recognize

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Box",
    "Candidate",
    "Crop",
    "LevelAnswer",
    "Recognizer",
    "VmmrError",
    "__version__",
    "load",
    "recognize",
]


def __getattr__(name: str) -> Any:
    if name in ("Crop", "Recognizer", "load", "recognize"):
        return getattr(import_module("vmmr.recognizer"), name)
    raise AttributeError(f"module 'vmmr' has no attribute {name!r}")
