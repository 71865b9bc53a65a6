"""Denoising-recognition heads (DRH): one recognition head and one denoising decoder per tapped depth.

Source: PMAL (Liu 2024, arXiv 2401.14336, code Anti-noise_FGVR). The recognition head is the one of PMG (Du et al.,
ECCV 2020). Sizes for N = 196 on ResNet-50: heads 5 612 228 / 5 874 372 / 6 398 660, decoders 1 275 696 / 685 872 /
390 960 parameters.

Three forms. `published` follows the authors' code. `lean` is ours, for training at a fraction of the cost: a depthwise
3x3 instead of the dense one, and a decoder at a quarter of the width that predicts a residual, from the features and
from a small filter of the image; both end in layers that start at zero, so that the restored image starts as the noisy
one. `slim` has the decoder of `lean` and heads that look at every second place only.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from vmmr.errors import ConfigError

__all__ = ["Decoder", "HeadForm", "RecognitionHead"]

HeadForm = Literal["published", "lean", "slim"]


def _conv_norm_relu(into: int, out: int, kernel: int, groups: int = 1, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=1e-5, momentum=0.01),
        nn.ReLU(inplace=True),
    ]


def _last(classes: int) -> nn.Module:
    return nn.Linear(512, classes) if classes else nn.Identity()


class RecognitionHead(nn.Module):
    """Feature map [B, channels, h, w] of any h, w -> logits [B, classes].

    published: 1x1 to 512, 3x3 to 1024, global max, then BN, Linear 512, BN, ELU, Linear.
    lean: 1x1 to 256, depthwise 3x3, 1x1 to 512, global max, then BN, Linear.
    slim: as lean, with 128 channels and every second place of the depthwise convolution.
    The global maximum is adaptive: at the authors' input sizes it equals their fixed kernels. Without classes the last
    linear layer is left out: [B, `RecognitionHead.width`] comes out, for heads of several levels.
    """

    width = 512

    def __init__(self, channels: int, classes: int, form: HeadForm = "published") -> None:
        super().__init__()
        if form == "published":
            self.convolutions = nn.Sequential(*_conv_norm_relu(channels, 512, 1), *_conv_norm_relu(512, 1024, 3))
            self.classifier = nn.Sequential(
                nn.BatchNorm1d(1024),
                nn.Linear(1024, 512),
                nn.BatchNorm1d(512),
                nn.ELU(inplace=True),
                _last(classes),
            )
        elif form in ("lean", "slim"):
            width, stride = (256, 1) if form == "lean" else (128, 2)
            self.convolutions = nn.Sequential(
                *_conv_norm_relu(channels, width, 1),
                *_conv_norm_relu(width, width, 3, groups=width, stride=stride),
                *_conv_norm_relu(width, 512, 1),
            )
            self.classifier = nn.Sequential(nn.BatchNorm1d(512), _last(classes))
        else:
            raise ConfigError("no such form of head", got=repr(form), do="use 'published', 'lean' or 'slim'")

    def forward(self, features: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, classes]."""
        pooled = functional.adaptive_max_pool2d(self.convolutions(features), 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


class _Filter(nn.Module):
    """An image plus what two 3x3 convolutions make of it: the identity at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, 3, 3, padding=1, bias=False)
        nn.init.zeros_(last.weight)
        self.change = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.LeakyReLU(0.1), last)

    def forward(self, image: Tensor) -> Tensor:
        filtered: Tensor = image + self.change(image)
        return filtered


class Decoder(nn.Module):
    """(noisy image [B, 3, H, W], feature map [B, channels, h, w]) -> restored image [B, 3, H, W], unclamped.

    `scale` is the pixel-shuffle that brings the map to H/8: 1, 2, 4 for maps at H/8, H/16, H/32. Where channels is no
    multiple of scale^2, a 1x1 convolution rounds it up (no backbone of the paper needs it). The restoration is resized
    when H or W is no multiple of 32; the authors resize the noisy image instead, which cuts that branch's gradient.
    """

    def __init__(self, channels: int, scale: int, form: HeadForm = "published") -> None:
        super().__init__()
        widths = (256, 128, 64) if form == "published" else (64, 32, 16)
        square = scale * scale
        rounded = -(-channels // square) * square
        layers: list[nn.Module] = []
        if rounded != channels:
            layers.append(nn.Conv2d(channels, rounded, 1, bias=False))
        layers.append(nn.PixelShuffle(scale))
        into = rounded // square
        for width in widths:
            layers += [nn.Conv2d(into, width, 3, padding=1, bias=False), nn.LeakyReLU(0.1), nn.PixelShuffle(2)]
            into = width // 4
        last = nn.Conv2d(into, 3, 3, padding=1, bias=False)
        layers.append(last)
        self.skip: nn.Module
        if form == "published":
            layers.append(nn.LeakyReLU(0.1))
            self.skip = nn.Sequential(
                nn.Conv2d(3, 64, 3, padding=1, bias=False),
                nn.LeakyReLU(0.1),
                nn.Conv2d(64, 3, 3, padding=1, bias=False),
                nn.LeakyReLU(0.1),
            )
        else:
            self.skip = _Filter(16)
            nn.init.zeros_(last.weight)
        self.restoration = nn.Sequential(*layers)

    def forward(self, noisy: Tensor, features: Tensor) -> Tensor:
        """Noisy image and its feature map -> restored image of the noisy image's size."""
        restoration = self.restoration(features)
        if restoration.shape[-2:] != noisy.shape[-2:]:
            restoration = functional.interpolate(restoration, noisy.shape[-2:], mode="bilinear", align_corners=False)
        restored: Tensor = self.skip(noisy) + restoration
        return restored
