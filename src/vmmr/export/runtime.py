"""What computes an answer: pixels in, logits and features out, whichever library runs the network.

A runtime takes pictures that are already resized and cropped; bringing them to the network's input statistics is part
of what it runs, so that nothing can come between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmmr.errors import ConfigError, DataError
from vmmr.export.bundle import Bundle, Network
from vmmr.models import ProgressiveNetwork

__all__ = ["Outputs", "PixelNetwork", "Runtime", "TorchRuntime", "check_pixels", "in_parts"]

Outputs = dict[str, NDArray[np.float32]]
"""`logits` [B, outputs] and `features` [B, D], the pooled ones that enter the classifier."""


class Runtime(Protocol):
    """A network ready to run. Several threads may call one at a time."""

    @property
    def name(self) -> str:
        """torch, onnxruntime or openvino."""

    @property
    def precision(self) -> str:
        """fp32, bf16 or int8."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its input, in pixels."""

    def __call__(self, pixels: NDArray[np.uint8]) -> Outputs:
        """uint8 RGB [B, H, W, 3], already resized and cropped, of any B from 1. DataError for anything else."""


class PixelNetwork(nn.Module):
    """A network with its normalisation in front: uint8 [B, H, W, 3] -> logits [B, outputs] and features [B, D].

    This is what is exported.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The two, in this order."""
        # As `Preprocess.normalise` with mean and std 0.5: the network's images are in [-1, 1].
        image = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        outputs = self.network(image, pooled=True)
        return self.network.answer_of(outputs), outputs["pooled"]


class TorchRuntime:
    """A bundle's network run by torch itself, in float32. device: where it computes. threads: of one call on the
    processor, which torch sets for the whole process; None leaves it as it is."""

    name, precision = "torch", "fp32"

    def __init__(self, bundle: Bundle, *, device: torch.device | str = "cpu", threads: int | None = None) -> None:
        self.size = bundle.preprocess.height, bundle.preprocess.width
        self.device, self.threads = torch.device(device), threads
        network = PixelNetwork(bundle.network())
        self.network = network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime`."""
        logits, features = self.network(self._taken(pixels))
        return {"logits": logits.float().cpu().numpy(), "features": features.float().cpu().numpy()}

    @property
    def restores(self) -> bool:
        """Whether the network has decoders: one that was trained by PMAL and kept its heads."""
        return isinstance(self.network.network, ProgressiveNetwork)

    @torch.inference_mode()
    def restore(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 RGB [B, H, W, 3] -> the same pictures as the deepest decoder restores them, float32 in [0, 255], or NaN
        where the network gives no finite number. ConfigError where it has no decoder, DataError as calling."""
        network = self.network.network
        if not isinstance(network, ProgressiveNetwork):
            raise ConfigError("this network has no decoder", do="train one with PMAL and keep its heads")
        image = self._taken(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        restored = ((network.restored(image).float() + 1) * 127.5).clamp(0, 255)
        found: NDArray[np.float32] = restored.permute(0, 2, 3, 1).cpu().numpy()
        return found

    def _taken(self, pixels: NDArray[np.uint8]) -> Tensor:
        check_pixels(pixels, self.size)
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        return torch.tensor(pixels, device=self.device)


def in_parts(run: Callable[[NDArray[np.uint8]], Outputs], pixels: NDArray[np.uint8], most: int | None) -> Outputs:
    """run(pixels), or, where they are more than `most` pictures, of one part after the other.

    >>> found = in_parts(lambda p: {"logits": p.astype(np.float32)}, np.arange(5, dtype=np.uint8), 2)
    >>> found["logits"].tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    if most is None or len(pixels) <= most:
        return run(pixels)
    parts = [run(pixels[start : start + most]) for start in range(0, len(pixels), most)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_pixels(pixels: NDArray[np.uint8], size: tuple[int, int]) -> None:
    """Refuse with DataError what is not uint8 [B, height, width, 3] with B of at least 1."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (*size, 3) or len(pixels) == 0:
        raise DataError("a runtime takes pixels of its size", got=f"{pixels.dtype} {list(pixels.shape)}", do=_do(size))


def _do(size: tuple[int, int]) -> str:
    return f"pass uint8 [B, {size[0]}, {size[1]}, 3], resized and cropped by `Preprocess.pixels`"
