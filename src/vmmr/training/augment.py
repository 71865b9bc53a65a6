"""The standard train view: random crop with zero padding and horizontal flip, batched on the tensor's device.

Source: the transform of PMG and PMAL (resize ignoring aspect, crop with 8 px of padding, flip with probability 0.5).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["crop_and_flip"]


def crop_and_flip(pixels: Tensor, draws: Tensor, height: int, width: int, *, padding: int = 8) -> Tensor:
    """uint8 [B, 3, h, w] -> uint8 [B, 3, height, width], each image cut at its own place and flipped half the time.

    draws: uniform in [0, 1), float [B, 3] on the CPU: vertical place, horizontal place, flip (below 0.5). Taking them
    as numbers lets several devices share one draw. Padding is black, `padding` pixels on every side.
    """
    padded = functional.pad(pixels, (padding, padding, padding, padding))
    spare = torch.tensor([padded.shape[2] - height + 1, padded.shape[3] - width + 1])
    top, left = (draws[:, :2] * spare).long().unbind(1)
    columns = torch.arange(width).expand(len(draws), width)
    columns = torch.where((draws[:, 2] < 0.5)[:, None], columns.flip(1), columns) + left[:, None]
    rows = (torch.arange(height) + top[:, None]).to(pixels.device)[:, :, None]
    columns = columns.to(pixels.device)[:, None, :]
    image = torch.arange(len(draws), device=pixels.device)[:, None, None]
    # One gather for the batch; the channel axis is moved behind the indexed ones and back.
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
