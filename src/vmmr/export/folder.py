"""A flat folder with a manifest of names, sizes and SHA-256: written whole or not at all, read without trust.

Reading opens only listed names, regular files of their own and no links, caps sizes before parsing and checks hashes
before use. What a folder of a format holds is the caller's to say.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmmr.errors import BundleError

__all__ = [
    "Format",
    "digest_of",
    "folder_format",
    "layer_of",
    "numbered",
    "parse_json",
    "read_config",
    "read_folder",
    "require_replaceable",
    "to_json",
    "write_folder",
]

_MAX_BINARY, _MAX_TEXT = 2 * 2**30, 32 * 2**20
_BINARY = (".safetensors", ".onnx", ".bin")


@dataclass(frozen=True)
class Format:
    """What a folder is called in manifest.json and in messages, its version, and the sets of names that it may hold.

    layers: the sets of names that may come on top, numbered from 1 without gaps, see `numbered`; at most 99.
    """

    name: str
    noun: str
    version: int
    contents: tuple[tuple[str, ...], ...]
    layers: tuple[tuple[str, ...], ...] = ()

    @property
    def stamp(self) -> dict[str, Any]:
        """What manifest.json and config.json carry."""
        return {"format": self.name, "version": self.version}


def write_folder(folder: Path, kind: Format, files: Mapping[str, bytes]) -> Path:
    """Write all files beside the target and rename the folder into place; an earlier one of its kind is replaced.

    A run that dies leaves the earlier folder or none, never half of one. BundleError where the folder holds anything
    else.
    """
    payload = {**files, "manifest.json": _listing(kind, files)}
    require_replaceable(folder, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    for stray in (draft, old):
        shutil.rmtree(stray, ignore_errors=True)
    draft.mkdir()
    try:
        for name, data in payload.items():
            with (draft / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _listing(kind: Format, files: Mapping[str, bytes]) -> bytes:
    listing = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return to_json({**kind.stamp, "files": listing})


def digest_of(kind: Format, files: Mapping[str, bytes]) -> str:
    """The digest that a folder of these files has once it is written."""
    return hashlib.sha256(_listing(kind, files)).hexdigest()


def numbered(name: str, layer: int) -> str:
    """The name of a file in a layer; layer 0 is what all others lie on.

    >>> numbered("card.md", 2), numbered("card.md", 0)
    ('card-2.md', 'card.md')
    """
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{layer}{dot}{suffix}" if layer else name


def layer_of(name: str) -> int:
    """The inverse: the layer that a file belongs to."""
    found = re.search(r"-([1-9][0-9]?)\.", name)
    return int(found[1]) if found else 0


def require_replaceable(folder: Path, kind: Format) -> None:
    """BundleError where writing there would replace anything but an empty folder or one of this format."""
    if folder.exists() and not _replaceable(folder, kind):
        raise BundleError(f"this folder is no {kind.noun}", got=str(folder), do="name a new folder")


def _replaceable(folder: Path, kind: Format) -> bool:
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    try:
        return folder_format(folder) == kind.name
    except BundleError:
        return False


def folder_format(folder: str | os.PathLike[str]) -> str:
    """What manifest.json says that a folder is. BundleError where there is none that can be read."""
    root = Path(folder)
    if not root.is_dir():
        raise BundleError("no such bundle", got=str(root), do="name the folder that holds manifest.json")
    return str(parse_json(_read(root, "manifest.json", _MAX_TEXT, "bundle"), "manifest.json").get("format"))


def read_folder(folder: str | os.PathLike[str], kind: Format) -> tuple[dict[str, bytes], str]:
    """The verified files of a folder by name, and its digest: the SHA-256 of its manifest.json.

    BundleError says which file is missing, altered, linked or oversized.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BundleError(f"no such {kind.noun}", got=str(root), do="name the folder that holds manifest.json")
    listing = _read(root, "manifest.json", _MAX_TEXT, kind.noun)
    manifest = parse_json(listing, "manifest.json")
    if {key: manifest.get(key) for key in kind.stamp} != kind.stamp:
        raise BundleError("manifest.json is of another format or version", do=f"write the {kind.noun} anew")
    files = manifest.get("files")
    names = _names(files, kind)
    if not isinstance(files, dict) or names is None:
        raise BundleError(f"manifest.json does not list the files of a {kind.noun}", got=str(files)[:200])
    payload = {}
    for name in names:
        data = _read(root, name, _MAX_BINARY if name.endswith(_BINARY) else _MAX_TEXT, kind.noun)
        digest = hashlib.sha256(data).hexdigest()
        if files[name] != {"size": len(data), "sha256": digest}:
            raise BundleError(f"{name} was altered after the {kind.noun} was written", got=f"SHA-256 {digest[:16]}")
        payload[name] = data
    return payload, hashlib.sha256(listing).hexdigest()


def read_config(payload: Mapping[str, bytes], kind: Format) -> dict[str, Any]:
    """config.json without its stamp. BundleError where that is of another format or version."""
    config = parse_json(payload["config.json"], "config.json")
    if {key: config.pop(key, None) for key in kind.stamp} != kind.stamp:
        raise BundleError("config.json is of another format or version", do=f"write the {kind.noun} anew")
    return config


def _names(files: object, kind: Format) -> list[str] | None:
    """The listed names, if they are what such a folder may hold."""
    if not isinstance(files, dict):
        return None
    by_layer: dict[int, set[str]] = {0: set()}
    for name in files:
        by_layer.setdefault(layer_of(name), set()).add(name)
    for place, layer in enumerate(sorted(by_layer)):
        allowed = kind.layers if layer else kind.contents
        if place != layer or by_layer[layer] not in [{numbered(name, layer) for name in names} for names in allowed]:
            return None
    return sorted(files)


def to_json(document: Mapping[str, Any]) -> bytes:
    """As files of such folders hold it."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """One object in which no key stands twice; BundleError, which calls it `name`, for anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise BundleError(f"{name} has a key twice")
        return document

    try:
        document = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} is no JSON", got=error) from error
    if not isinstance(document, dict):
        raise BundleError(f"{name} is no JSON object", got=type(document).__name__)
    return document


def _read(root: Path, name: str, most: int, noun: str) -> bytes:
    if not re.fullmatch(r"[a-z]+(-[1-9][0-9]?)?\.[a-z]+", name):
        raise BundleError(f"a {noun} holds no such name", got=repr(name))
    try:
        descriptor = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise BundleError(f"cannot open {name} of the {noun} {root.name}", got=error.strerror) from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(descriptor)
        raise BundleError(f"{name} is no plain file of its own", do=f"copy the {noun} instead of linking it")
    with os.fdopen(descriptor, "rb") as file:
        if facts.st_size > most:
            raise BundleError(f"{name} is too large", got=f"{facts.st_size} bytes", do=f"at most {most}")
        return file.read(most + 1)
