"""Features -> named outputs."""

from __future__ import annotations

from vmmr.models.heads.denoise_recognise import Decoder, HeadForm, RecognitionHead
from vmmr.models.heads.hierarchy import Feed, HierarchyForm, HierarchyHead

__all__ = ["Decoder", "Feed", "HeadForm", "HierarchyForm", "HierarchyHead", "RecognitionHead"]
