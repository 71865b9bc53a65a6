"""Costs: layers counted by hand, and times that a slower network raises."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from vmmr.evaluation.cost import answer_time, macs, parameters
from vmmr.models import Backbone, ProgressiveNetwork


def test_macs_of_layers_counted_by_hand() -> None:
    image = torch.zeros(1, 3, 10, 12)
    convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    assert macs(convolution, image) == 5 * 6 * 8 * 3 * 9
    grouped = nn.Conv2d(3, 6, 5, groups=3)
    assert macs(grouped, image) == 6 * 8 * 6 * 25
    network = nn.Sequential(convolution, nn.Flatten(), nn.Linear(240, 7))
    assert macs(network, image) == 5 * 6 * 8 * 3 * 9 + 240 * 7
    assert parameters(network) == 8 * 27 + 8 + 240 * 7 + 7


def test_an_answer_needs_no_decoder() -> None:
    network = ProgressiveNetwork(Backbone("test_resnet", 5), 5, "lean")
    heads = sum(p.numel() for p in network.heads.parameters())
    assert parameters(network) == parameters(network.backbone) + heads
    assert any(True for _ in network.decoders.parameters())


def test_times_are_those_of_the_call() -> None:
    asked: list[int] = []

    def answer(image: Tensor) -> Tensor:
        asked.append(len(image))
        time.sleep(0.002 * len(image))
        return image

    found = answer_time(answer, torch.zeros(1, 3, 4, 4), batch=4, seconds=0.05)
    assert set(asked) == {1, 4}
    assert 2 <= found["latency_ms"] < 1000
    assert 1 < found["images_per_s"] <= 500
    assert (found["batch"], found["threads"], found["device"]) == (4, torch.get_num_threads(), "cpu")
