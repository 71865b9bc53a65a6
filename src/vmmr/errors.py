"""Everything vmmr raises on purpose.

    VmmrError
    ├── ConfigError       a setting, a recipe or a combination of them makes no sense
    ├── DataError         something about the samples
    │   ├── ImageError    bytes that are no acceptable image
    │   ├── ManifestError a table or annotation file that cannot be read as one
    │   └── LeakageError  test images would reach training or selection
    ├── BundleError       a model on disk that is incomplete, altered or hostile
    └── TrainingError     a run that cannot start, go on or resume

Every message has three parts: what was wrong, what was found, what to do.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "ConfigError",
    "DataError",
    "ImageError",
    "LeakageError",
    "ManifestError",
    "TrainingError",
    "VmmrError",
]


class VmmrError(Exception):
    """The root: `what` was wrong, what we `got`, what to `do`.

    >>> str(VmmrError("image too large", got="50 Mpx", do="pass at most 40 Mpx"))
    'image too large; got 50 Mpx; pass at most 40 Mpx'
    """

    def __init__(self, what: str, *, got: object = None, do: str | None = None) -> None:
        self.what = what
        self.got = got
        self.do = do
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if do is not None:
            parts.append(do)
        super().__init__("; ".join(parts))


class ConfigError(VmmrError):
    """A setting, a recipe or a combination of them makes no sense."""


class DataError(VmmrError):
    """Something about the samples is wrong."""


class ImageError(DataError):
    """Bytes that are no acceptable image."""


class ManifestError(DataError):
    """A table or annotation file that cannot be read as one."""


class LeakageError(DataError):
    """Test images would reach training or model selection."""


class BundleError(VmmrError):
    """A model on disk that is incomplete, altered or hostile."""


class TrainingError(VmmrError):
    """A run that cannot start, go on or resume."""
