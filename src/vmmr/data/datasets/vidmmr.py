"""VIDMMR (Vehicle Images Dataset for Make and Model Recognition): 3,847 images, 48 classes, CC BY 4.0.

Mendeley Data, doi 10.17632/hj3vvx5946.1. One folder a class, in `root` or one folder below; no official split. How
the folders split make from model is not documented, so a folder is read as any class folder is
(see `vmmr.data.datasets.class_folders`).
"""

from __future__ import annotations

from pathlib import Path

from vmmr.data.datasets import class_folders
from vmmr.data.manifest import Manifest

__all__ = ["read"]


def read(root: Path | str, *, strict: bool = False) -> Manifest:
    """Every image by class folder; a lone folder around all classes is stepped into."""
    root = Path(root)
    while root.is_dir():
        inside = [place for place in root.iterdir() if not place.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or not any(place.is_dir() for place in inside[0].iterdir()):
            break
        root = inside[0]
    return class_folders.read(root, strict=strict)
