"""What an answer costs: parameters, multiply-accumulates, time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from vmmr.models import ProgressiveNetwork

__all__ = ["answer_time", "macs", "parameters"]


def parameters(network: nn.Module) -> int:
    """How many parameters an answer needs: all but the decoders of a progressive network, which serve training only."""
    unused = network.decoders.parameters() if isinstance(network, ProgressiveNetwork) else ()
    return sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in unused)


@torch.no_grad()
def macs(answer: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Multiply-accumulates of an image [1, 3, H, W]: half of the floating point operations that torch counts, which are
    those of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        answer(image)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def answer_time(
    answer: Callable[[Tensor], Tensor], image: Tensor, *, batch: int = 32, seconds: float = 1.0
) -> dict[str, Any]:
    """Milliseconds for one image and images a second for a batch, each the median over about `seconds` of rounds.

    image: [1, 3, H, W] on the device that is timed. Returns {"latency_ms", "images_per_s", "batch", "threads",
    "device"}: the time of the network, without decoding and preprocessing.
    """
    threads = torch.get_num_threads()
    times = {}
    for size in (1, batch):
        images = image.repeat(size, 1, 1, 1).contiguous(memory_format=torch.channels_last)
        answer(images)  # the first call also allocates and chooses algorithms
        timer = Timer("answer(images)", globals={"answer": answer, "images": images}, num_threads=threads)
        times[size] = timer.blocked_autorange(min_run_time=seconds).median
    device = torch.cuda.get_device_name(image.device) if image.is_cuda else image.device.type
    return {
        "latency_ms": 1000 * times[1],
        "images_per_s": batch / times[batch],
        "batch": batch,
        "threads": threads,
        "device": device,
    }
