"""The progressive network: a plain trunk with a denoising-recognition head at each of three depths.

Source: PMAL (Liu 2024, arXiv 2401.14336). Decoders serve training only: an answer never needs them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vmmr.errors import ConfigError
from vmmr.models.backbone import DEPTHS, Backbone
from vmmr.models.heads import Decoder, HeadForm, RecognitionHead

__all__ = ["ProgressiveNetwork"]


class ProgressiveNetwork(nn.Module):
    """Backbone, three recognition heads, three decoders.

    Named outputs: logits_0 (the trunk's own classifier), logits_1..3 (the heads), features_1..3. Raises ConfigError for
    a backbone whose taps have other strides than 8, 16 and 32.
    """

    def __init__(self, backbone: Backbone, classes: int, form: HeadForm = "published") -> None:
        super().__init__()
        if backbone.reductions != (8, 16, 32):
            raise ConfigError(
                "heads at three depths need a pyramid of maps",
                got=f"a backbone tapped at strides {backbone.reductions}",
                do="pick a network whose last three feature levels have strides 8, 16 and 32, or train it plainly",
            )
        self.form = form
        self.backbone = backbone
        self.heads = nn.ModuleList(RecognitionHead(c, classes, form) for c in backbone.channels)
        self.decoders = nn.ModuleList(
            Decoder(c, reduction // 8, form)
            for c, reduction in zip(backbone.channels, backbone.reductions, strict=True)
        )

    def forward(self, x: Tensor, *, pooled: bool = False) -> dict[str, Tensor]:
        """[B, 3, H, W] in [-1, 1] -> logits_0..3 [B, classes] and features_1..3. pooled: see `Backbone.forward`."""
        outputs: dict[str, Tensor] = self.backbone(x, pooled=pooled)
        for depth in DEPTHS:
            outputs[f"logits_{depth}"] = self.heads[depth - 1](outputs[f"features_{depth}"])
        return outputs

    def at_depth(self, x: Tensor, depth: int, *, stop: bool) -> dict[str, Tensor]:
        """The outputs features_k and logits_k for k = depth.

        stop=True computes the trunk up to the depth and that one head. stop=False runs the whole network, as the
        authors do: the same values and gradients, but deeper BatchNorm layers also see the image.
        """
        if depth not in DEPTHS:
            raise ConfigError("no such depth", got=depth, do="use 1, 2 or 3")
        if not stop:
            outputs: dict[str, Tensor] = self(x)
            return {key: outputs[key] for key in (f"features_{depth}", f"logits_{depth}")}
        features = self.backbone.features(x, depth)
        return {f"features_{depth}": features, f"logits_{depth}": self.heads[depth - 1](features)}

    def restore(self, noisy: Tensor, features: Tensor, depth: int) -> Tensor:
        """Noisy image and its map at the depth -> restored image, both [B, 3, H, W]."""
        restored: Tensor = self.decoders[depth - 1](noisy, features)
        return restored

    def restored(self, noisy: Tensor) -> Tensor:
        """Noisy image -> what the deepest decoder makes of it, both [B, 3, H, W] in [-1, 1], the latter unclamped."""
        depth = DEPTHS[-1]
        return self.restore(noisy, self.backbone.features(noisy, depth), depth)

    def answer_of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The mean of the four logit vectors, [B, classes]: the argmax is that of the published sum."""
        return (outputs["logits_0"] + outputs["logits_1"] + outputs["logits_2"] + outputs["logits_3"]) / 4

    def answer(self, x: Tensor) -> Tensor:
        """The same of images."""
        return self.answer_of(self(x))
