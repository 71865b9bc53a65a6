"""Let torchvision import beside a torch build that its compiled operators were not linked for.

timm and lightning import torchvision, which declares meta kernels for `torchvision::nms` when it is
imported and fails where its shared library could not be loaded (a CPU build of torch beside the common
wheel). None of those operators is used here: their schemas are enough. Where the library loads, nothing
is declared. Import this module before timm, lightning or torchmetrics.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

__all__ = ["declare_missing_operators"]


def declare_missing_operators() -> bool:
    """Declare the schemas that torchvision expects; True where that was needed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        loaded = hasattr(torch.ops.torchvision, "nms")
    except OSError:
        loaded = False
    if not loaded:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return not loaded


_DECLARED = declare_missing_operators()
