"""Bundles on bundles: the files of the one before stay as they are, so that an extension can be dropped again."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmmr.errors import BundleError
from vmmr.export.bundle import BUNDLE, Bundle, parsed_bundle, read_bundle
from vmmr.export.folder import digest_of, layer_of, read_folder, write_folder

__all__ = ["extended", "read_extendable", "roll_back"]

_MOST = 99  # layers


def read_extendable(source: str | os.PathLike[str]) -> tuple[Bundle, dict[str, bytes]]:
    """A bundle and its files, byte for byte. BundleError as `read_bundle`, and where the files could not be written
    again so that they have the same digest, or there are too many extensions."""
    files, digest = read_folder(source, BUNDLE)
    if digest_of(BUNDLE, files) != digest:
        raise BundleError("the manifest.json of the bundle was not written by vmmr", do="write the bundle anew")
    if max(map(layer_of, files)) >= _MOST:
        raise BundleError("a bundle can be extended no further", got=f"{_MOST} times", do="train anew")
    return parsed_bundle(files, digest, Path(source).name), files


def extended(parent: Bundle, files: dict[str, bytes], **changes: Any) -> Bundle:
    """A bundle on top of a parent with these files, see `read_extendable`. changes: the fields of `Bundle` that are
    new."""
    return replace(parent, parent=parent, files=files, digest="", **changes)


def roll_back(source: str | os.PathLike[str], folder: Path) -> Bundle:
    """Write the bundle that an extended one was made from, file by file what it was, and return it.

    Raises BundleError where the bundle was not extended, and as `read_bundle`.
    """
    bundle = read_bundle(source)
    if bundle.parent is None:
        raise BundleError("this bundle was not extended", got=bundle.name, do="there is nothing to roll back")
    write_folder(folder, BUNDLE, bundle.files)
    found = read_bundle(folder)
    if found.digest != bundle.parent.digest:
        raise BundleError("the bundle that was written is not the one before", got=found.digest[:16])
    return found
