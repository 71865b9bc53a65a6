"""Features -> named outputs."""

from __future__ import annotations

from vmmr.models.heads.denoise_recognise import Decoder, HeadForm, RecognitionHead

__all__ = ["Decoder", "HeadForm", "RecognitionHead"]
