"""What a model on disk carries to say what it does not know: the name of a score, its constants and its gate.

detector = Detector("knn", gate, fitted)
signs = detector.signs(features, logits, image)                    # [N, 3]
reason = detector.reason(signs[0].tolist(), sure=True, side=480)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vmmr.errors import BundleError, ConfigError
from vmmr.unknown import SCORES, Fitted, Gate, Reason, decide
from vmmr.unknown.quality import contrast_and_detail

__all__ = ["Detector", "strangeness"]


def strangeness(score: str, features: Tensor, logits: Tensor, fitted: Fitted) -> Tensor:
    """The score of this name of features [N, D] and logits [N, C]: float32 [N], higher = stranger."""
    return SCORES[score].score(features, logits, fitted).float()


@dataclass(frozen=True, eq=False)
class Detector:
    """Says whether a picture shows a vehicle that a network knows.

    score: a name in `SCORES`. gate: where decisions change. fitted: the constants of the score. Raises ConfigError for
    a name that there is not and for constants of another score.
    """

    score: str
    gate: Gate
    fitted: Fitted

    def __post_init__(self) -> None:
        if not isinstance(self.score, str) or self.score not in SCORES:
            raise ConfigError("no such unknown score", got=repr(self.score), do=f"choose of {', '.join(SCORES)}")
        if type(self.fitted) is not SCORES[self.score].kind:
            raise ConfigError(f"the constants are not those of {self.score}", got=type(self.fitted).__name__)

    @property
    def settings(self) -> dict[str, Any]:
        """The name and the numbers of the gate, as config.json holds them."""
        return {"score": self.score, **asdict(self.gate)}

    def to_bytes(self) -> bytes:
        """The constants, as unknown.safetensors holds them."""
        return save(self.fitted.tensors())

    @classmethod
    def read(cls, settings: object, data: bytes, *, classes: int, width: int | None = None) -> Self:
        """The inverse of `settings` and `to_bytes`, of a network with so many classes and features; None: any number.

        Both may come from a stranger: BundleError says what is malformed.
        """
        if not isinstance(settings, dict) or settings.get("score") not in [*SCORES]:
            raise BundleError("config.json names no unknown score", got=repr(settings)[:200])
        numbers = {key: value for key, value in settings.items() if key != "score"}
        score = settings["score"]
        try:
            gate = Gate(**numbers)
            tensors = load(data)
        except (ConfigError, TypeError, OverflowError) as error:
            raise BundleError("config.json holds no gate", got=error) from error
        except SafetensorError as error:
            raise BundleError("unknown.safetensors is malformed", got=error) from error
        return cls(score, gate, SCORES[score].kind.from_tensors(tensors, classes=classes, width=width))

    def signs(self, features: Tensor, logits: Tensor, image: Tensor) -> Tensor:
        """What decisions are made of, float32 [N, 3]: the score, the contrast and the detail.

        features [N, D], logits [N, C] of classes. image: as the network saw it, float [N, 3, H, W] in [-1, 1] or pixels
        uint8 [N, H, W, 3].
        """
        found = strangeness(self.score, features, logits, self.fitted)
        return torch.stack([found, *contrast_and_detail(image)], dim=1)

    def reason(self, signs: Sequence[float], *, sure: bool, side: float | None = None) -> Reason:
        """The reason for one picture, see `decide`. signs: a row of `signs`. side: pixels of the shorter side of the
        picture, or of its box, before it was resized; None where that is not known, and never too small."""
        score, light, edges = signs
        side = self.gate.shortest if side is None else side
        return decide(self.gate, score=score, sure=sure, side=side, contrast=light, detail=edges)
