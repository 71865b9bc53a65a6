"""What a faithful PMAL must fulfil (Liu 2024, arXiv 2401.14336): one test a property, in the order of the method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from vmmr.config import TrainConfig
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.models.heads import Decoder, RecognitionHead
from vmmr.noise import TRAINING_NOISE, PublishedNoise
from vmmr.objectives import charbonnier, smoothed_kl
from vmmr.recipes import recipe
from vmmr.training.loop import build_optimizer
from vmmr.training.method import Batch, total
from vmmr.training.progressive import Progressive, restore_losses
from vmmr.training.sam import clear_gradients, sharpness_aware
from vmmr.training.schedule import share_of_peak

import timm  # isort: skip

CLASSES = 8


def _network(seed: int = 0, form: str = "published", *, fresh: bool = False) -> ProgressiveNetwork:
    """A tiny network; unless fresh, away from timm's and the lean decoders' zeros, which would hide gradients."""
    torch.manual_seed(seed)
    network = ProgressiveNetwork(Backbone("test_resnet", CLASSES), CLASSES, form)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in () if fresh else network.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def _config(**changes: object) -> TrainConfig:
    return recipe("pmal_published").with_(backbone="test_resnet", size=32, **changes)


def _batch(size: int = 32, count: int = 4, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = 2 * torch.rand(count, 3, size, size, generator=generator, dtype=dtype) - 1
    noise = 0.05 * torch.randn(image.shape, generator=generator, dtype=dtype)
    label = torch.arange(count) % CLASSES
    return {"image": image, "target": image, "noisy": image + noise, "label": label}


def _with_gradient(network: nn.Module) -> set[str]:
    return {name for name, p in network.named_parameters() if p.grad is not None}


def _upto(network: ProgressiveNetwork, depth: int) -> set[str]:
    """Names of the trunk up to a depth, of that head and of that decoder, told by their names alone."""
    stages = ("conv1", "bn1", *(f"layer{i}" for i in range(1, depth + 2)))
    starts = (*(f"backbone.model.{stage}." for stage in stages), f"heads.{depth - 1}.", f"decoders.{depth - 1}.")
    return {name for name, _ in network.named_parameters() if name.startswith(starts)}


def _running(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running" in name or "num_b" in name}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- shapes and sizes


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("resnet50", 448, ((512, 56), (1024, 28), (2048, 14))),
        ("tresnet_v2_l", 368, ((512, 46), (1024, 23), (2048, 12))),  # the last one rounds up
    ],
)
def test_shapes_of_the_published_networks(name: str, size: int, maps: tuple[tuple[int, int], ...]) -> None:
    with torch.device("meta"):
        network = ProgressiveNetwork(Backbone(name, 196), 196, "published")
        image = torch.empty(2, 3, size, size)
        outputs = network(image)
        for depth, (channels, side) in enumerate(maps, 1):
            assert outputs[f"features_{depth}"].shape == (2, channels, side, side)
            assert network.restore(image, outputs[f"features_{depth}"], depth).shape == image.shape
    assert all(outputs[f"logits_{j}"].shape == (2, 196) for j in range(4))
    assert len(outputs) == 7


@pytest.mark.parametrize("form", ["published", "lean"])
def test_where_sizes_do_not_meet_the_restoration_is_resized_and_learns(form: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(96, 4, form)  # type: ignore[arg-type]
    last = next(m for m in reversed(decoder.restoration) if isinstance(m, nn.Conv2d))
    nn.init.normal_(last.weight, std=0.1)
    for layer in decoder.skip.modules():  # the lean filter ends in zeros, through which no gradient passes
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
    noisy = torch.randn(2, 3, 72, 72)
    features = torch.randn(2, 96, 3, 3, requires_grad=True)
    restoration = decoder.restoration(features)
    assert restoration.shape == (2, 3, 96, 96)
    restored = decoder(noisy, features)
    resized = functional.interpolate(restoration, (72, 72), mode="bilinear", align_corners=False)
    torch.testing.assert_close(restored, decoder.skip(noisy) + resized)
    restored.square().mean().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_parameter_counts() -> None:
    with torch.device("meta"):
        heads = [RecognitionHead(c, 196) for c in (512, 1024, 2048)]
        decoders = [Decoder(c, s) for c, s in ((512, 1), (1024, 2), (2048, 4))]
        student = Backbone("resnet50", 196)
        plain = timm.create_model("resnet50", num_classes=196)
    assert [sum(p.numel() for p in h.parameters()) for h in heads] == [5612228, 5874372, 6398660]
    assert [sum(p.numel() for p in d.parameters()) for d in decoders] == [1275696, 685872, 390960]
    shapes = {name: tuple(p.shape) for name, p in student.model.named_parameters()}
    assert shapes == {name: tuple(p.shape) for name, p in plain.named_parameters()}
    assert sum(p.numel() for p in student.parameters()) == 23_909_636  # 23.9 M


def test_published_layers_are_the_described_ones() -> None:
    head = RecognitionHead(512, 196)
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert [(n.num_features, n.momentum, n.eps) for n in norms] == [
        (512, 0.01, 1e-5),
        (1024, 0.01, 1e-5),
        (1024, 0.1, 1e-5),
        (512, 0.1, 1e-5),
    ]
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.kernel_size, c.padding, c.bias) for c in convolutions] == [
        ((1, 1), (0, 0), None),
        ((3, 3), (1, 1), None),
    ]
    decoder = Decoder(2048, 4)
    layers = [m for m in decoder.restoration if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in layers] == [(128, 256), (64, 128), (32, 64), (16, 3)]
    assert all(m.negative_slope == 0.1 for m in decoder.modules() if isinstance(m, nn.LeakyReLU))
    assert sum(isinstance(m, nn.LeakyReLU) for m in decoder.modules()) == 6


def test_the_adaptive_maximum_equals_the_fixed_kernel() -> None:
    head = RecognitionHead(16, CLASSES).eval()
    features = torch.randn(2, 16, 14, 14)
    fixed = functional.max_pool2d(head.convolutions(features), 14).flatten(1)
    torch.testing.assert_close(head(features), head.classifier(fixed), rtol=0, atol=0)


def test_a_student_runs_the_operations_of_the_plain_network() -> None:
    student = Backbone("test_resnet", CLASSES).eval()
    plain = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    plain.load_state_dict(student.model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(student(x)["logits_0"], plain(x), rtol=0, atol=0)
    graphs = [make_fx(f)(x).graph for f in (lambda x: student(x)["logits_0"], lambda x: plain(x))]
    for graph in graphs:
        graph.eliminate_dead_code()
    first, second = ([(n.op, str(n.target)) for n in g.nodes if n.op == "call_function"] for g in graphs)
    assert first == second


# --- losses


def test_smoothed_kl_is_the_divergence_from_q_and_matches_cross_entropy() -> None:
    classes, smoothing = 196, 0.1
    logits = torch.randn(5, classes, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 3, 195, 77])
    q = torch.full((5, classes), smoothing / (classes - 1), dtype=torch.float64)
    q[torch.arange(5), labels] = 1 - smoothing
    naive = (q * (q.log() - logits.softmax(1).log())).sum(1).mean()
    ours = smoothed_kl(logits, labels)
    torch.testing.assert_close(ours, naive)
    entropy = -(q[0] * q[0].log()).sum()
    assert entropy.item() == pytest.approx(0.852383, abs=1e-6)
    theirs = functional.cross_entropy(logits, labels, label_smoothing=smoothing * classes / (classes - 1))
    torch.testing.assert_close(ours, theirs - entropy)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)))
    assert smoothed_kl(q.log(), labels).abs().item() < 1e-12


def test_charbonnier_at_rest_far_away_and_its_gradient() -> None:
    a = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert charbonnier(a, a.detach()).item() == pytest.approx(1e-6, rel=1e-9)
    loss = charbonnier(a, b)
    torch.testing.assert_close(loss, functional.l1_loss(a, b), rtol=1e-6, atol=1e-9)
    gradient = torch.autograd.grad(loss, a)[0]
    torch.testing.assert_close(gradient, (a - b).sign() / a.numel(), rtol=1e-6, atol=1e-9)


def test_published_noise_is_weak_and_often_grey() -> None:
    x = torch.zeros(400, 3, 24, 24)
    out = PublishedNoise(affine_p=0, blur_p=0)(x, generator=torch.Generator().manual_seed(0))
    assert out["target"] is x or torch.equal(out["target"], x)  # both gates off: identity
    epsilon = out["noisy"] - out["target"]
    spread = epsilon.flatten(1).std(1)
    assert spread.max() < 0.05 * 1.1
    grey = (epsilon == epsilon[:, :1]).flatten(1).all(1)
    assert 0.4 < grey.float().mean() < 0.6
    assert abs(epsilon.mean().item()) < 1e-3
    torch.testing.assert_close(spread, out["sigma"], rtol=0.15, atol=1e-4)
    still = PublishedNoise(affine_p=0, blur_p=0, max_sigma=0)(x + 0.3, generator=torch.Generator())
    assert torch.equal(still["noisy"], x + 0.3)
    edge = PublishedNoise()(x + 1, generator=torch.Generator().manual_seed(1))
    assert edge["noisy"].max() > 1  # nothing is clipped


# --- who learns in which step


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_step_reaches_its_stages_its_head_and_its_decoder_alone(depth: int) -> None:
    network = _network()
    method = Progressive(network, _config())
    step = method.steps(0, 0)[depth - 1]
    assert repr(step) == f"Step(restore_{depth})"
    prepared = step.prepare(_batch(), torch.Generator().manual_seed(0))
    total(step.losses(prepared)).backward()
    assert _with_gradient(network) == _upto(network, depth)
    assert all(p.grad.abs().sum() > 0 for n, p in network.named_parameters() if p.grad is not None and p.ndim > 1)

    clear_gradients(network.parameters(), dense=True)
    total(step.losses(prepared)).backward()
    reached = _upto(network, depth)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert name in reached or not parameter.grad.any()


def test_the_clean_step_reaches_all_but_the_decoders() -> None:
    network = _network()
    step = Progressive(network, _config()).steps(0, 0)[3]
    batch = _batch()
    assert step.prepare(batch, torch.Generator()) is batch  # the untouched image, no draw
    losses = step.losses(batch)
    total(losses).backward()
    assert _with_gradient(network) == {n for n, _ in network.named_parameters() if not n.startswith("decoders.")}
    with torch.no_grad():
        outputs = network(batch["image"])
    for key, weight, logits in (("head_1", 1, 1), ("head_2", 1, 2), ("head_3", 1, 3), ("trunk", 2, 0)):
        torch.testing.assert_close(losses[key], weight * smoothed_kl(outputs[f"logits_{logits}"], batch["label"]))


def test_without_alpha_the_decoder_still_learns_from_the_restored_image() -> None:
    network, batch = _network(form="lean").double(), _batch(dtype=torch.float64)

    def gradients(*names: str, alpha: float) -> dict[str, Tensor]:
        clear_gradients(network.parameters())
        losses = restore_losses(network, batch, 2, stop=True, alpha=alpha)
        total({name: losses[name] for name in names}).backward()
        return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}

    names = ("noisy_2", "restored_2")
    off, wanted = gradients(*names, "restore_2", alpha=0), gradients(*names, alpha=1)
    on = gradients(*names, "restore_2", alpha=1)
    char = gradients("restore_2", alpha=1)
    assert off.keys() == wanted.keys() == on.keys()
    for name, gradient in off.items():
        torch.testing.assert_close(gradient, wanted[name])
        expected = gradient + char[name] if name in char else gradient
        torch.testing.assert_close(on[name], expected, rtol=1e-9, atol=1e-11)
    decoder = {n: g for n, g in off.items() if n.startswith("decoders.1.")}
    assert decoder
    assert all(g.abs().max() > 0 for g in decoder.values())
    assert any(not torch.allclose(g, on[n]) for n, g in decoder.items())


def test_nothing_is_detached_the_restored_image_reaches_the_trunk_twice() -> None:
    batch = _batch(dtype=torch.float64)
    gradients = []
    for detach in (False, True):
        network = _network(form="lean").double()
        if detach:
            decoder = network.decoders[0]
            decoder.register_forward_hook(lambda module, inputs, output: output.detach())
        losses = restore_losses(network, batch, 1, stop=True, alpha=0.0)
        total(losses).backward()
        gradients.append(network.backbone.model.conv1[0].weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3 * gradients[0].abs().max()


# --- sharpness-aware minimisation


def _closure(network: ProgressiveNetwork, batch: Batch, depth: int) -> Tensor:
    loss = total(restore_losses(network, batch, depth, stop=False))
    loss.backward()
    return loss.detach()


def test_sam_perturbs_by_rho_restores_bits_and_counts_statistics_once() -> None:
    network, batch, rho = _network(form="lean").double(), _batch(dtype=torch.float64), 0.05
    before = [p.detach().clone() for p in network.parameters()]
    statistics, moved, losses = [_running(network)], [], []

    def closure() -> Tensor:
        moved.append([p.detach() - b for p, b in zip(network.parameters(), before, strict=True)])
        loss = _closure(network, batch, 2)
        statistics.append(_running(network))
        losses.append(loss)
        return loss

    value = sharpness_aware(closure, network.parameters(), rho=rho, networks=(network,))
    assert value is losses[0]
    assert len(losses) == 2
    assert losses[1] > losses[0]  # uphill
    assert not any(e.any() for e in moved[0])
    assert math.sqrt(sum(e.square().sum().item() for e in moved[1])) == pytest.approx(rho, rel=1e-9)
    reached = _upto(network, 2)
    for (name, _), e in zip(network.named_parameters(), moved[1], strict=True):
        assert name in reached or not e.any()
    assert all(torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))
    assert not _same(statistics[0], statistics[1])
    assert _same(statistics[1], statistics[2])
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_sam_without_a_radius_is_plain_descent() -> None:
    ends = []
    for sam in (True, False):
        network, batch = _network(), _batch()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        if sam:
            sharpness_aware(lambda: _closure(network, batch, 1), network.parameters(), rho=0.0, networks=(network,))  # noqa: B023
        else:
            _closure(network, batch, 1)
        optimizer.step()
        ends.append(network.state_dict())
    assert _same(*ends)


@pytest.mark.parametrize("depth", [1, 3])
def test_sam_equals_two_naive_passes(depth: int) -> None:
    network, batch, rho = _network(form="lean").double(), _batch(dtype=torch.float64), 0.05
    weights = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    buffers = {n: b.clone() for n, b in network.named_buffers()}

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self) -> Tensor:
            return total(restore_losses(self.network, batch, depth, stop=False))

    def gradient(at: dict[str, Tensor]) -> dict[str, Tensor | None]:
        names = [f"network.{n}" for n in at]
        loss = functional_call(
            Losses(),
            {**dict(zip(names, at.values(), strict=True)), **{f"network.{n}": b.clone() for n, b in buffers.items()}},
            (),
        )
        return dict(zip(at, torch.autograd.grad(loss, list(at.values()), allow_unused=True), strict=True))

    first = gradient(weights)
    norm = math.sqrt(sum(g.square().sum().item() for g in first.values() if g is not None))
    up = {
        n: (w if (g := first[n]) is None else w + rho * g / norm).detach().requires_grad_() for n, w in weights.items()
    }
    naive = gradient(up)
    sharpness_aware(lambda: _closure(network, batch, depth), network.parameters(), rho=rho, networks=(network,))
    for name, parameter in network.named_parameters():
        if naive[name] is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, naive[name], rtol=1e-7, atol=1e-10)


# --- inference


def test_the_answer_is_the_sum_of_four_and_needs_no_decoder() -> None:
    network, x = _network().eval(), _batch()["image"]
    with torch.no_grad():
        outputs = network(x)
        answer = network.answer(x)
        summed = sum(outputs[f"logits_{j}"] for j in range(4))
        torch.testing.assert_close(4 * answer, summed)
        assert torch.equal(answer.argmax(1), summed.argmax(1))
        for order in itertools.permutations(range(4)):
            torch.testing.assert_close(sum(outputs[f"logits_{j}"] for j in order) / 4, answer)  # type: ignore[operator]
        del network.decoders
        assert torch.equal(network.answer(x), answer)


# --- schedule


@pytest.mark.parametrize("epochs", [200, 10])
def test_rates_start_at_the_peak_halve_half_way_and_keep_their_ratio(epochs: int) -> None:
    config = recipe("pmal_published").with_(epochs=epochs, backbone="test_resnet")
    optimizer = build_optimizer(Progressive(_network(), config), config)
    head, trunk = (group["peak"] for group in optimizer.param_groups)
    assert (head, trunk) == (2e-3, 2e-4)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [5e-4, 5e-4]
    assert all(g["momentum"] == 0.9 for g in optimizer.param_groups)

    def share(epoch: int, step: int = 0) -> float:
        return share_of_peak("epoch_cosine", epoch=epoch, epochs=epochs, step=step, steps=epochs * 7, warmup=0.3)

    assert share(0) == 1.0
    assert share(epochs // 2) == pytest.approx(0.5)
    for epoch in range(epochs):
        assert trunk * share(epoch) / (head * share(epoch)) == pytest.approx(0.1)
        assert share(epoch) == pytest.approx((1 + math.cos(math.pi * epoch / epochs)) / 2)
        assert share(epoch, 1) == share(epoch, 6)  # constant within an epoch
    network = _network()
    heads = {id(p) for p in Progressive(network, config).head_parameters()}
    slow = {n for n, p in network.named_parameters() if id(p) not in heads}
    assert slow == {n for n, _ in network.named_parameters() if n.startswith("backbone.") and ".fc." not in n}


# --- does it learn


def _psnr(a: Tensor, b: Tensor) -> float:
    return 10 * math.log10(4 / (a - b).square().mean().item())  # the range [-1, 1] is 2 wide


def _rate(number: int, steps: int) -> float:
    return share_of_peak("one_cycle", epoch=0, epochs=1, step=number, steps=steps, warmup=0.25)


def test_eight_images_are_learnt_by_heart() -> None:
    network, batch, steps = _network(form="lean"), _batch(count=8), 40
    method = Progressive(network, _config(optimizer="adamw", lr=1e-2, trunk_lr=3e-3))
    clean = method.steps(0, 0)[3]
    optimizer = build_optimizer(method, method._config)
    first = total(clean.losses(batch)).item()
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _rate(number, steps)
        clear_gradients(network.parameters())
        total(clean.losses(batch)).backward()
        optimizer.step()
    assert first > 4  # at chance it is about 5 * 1.4
    assert total(clean.losses(batch)) < 0.25  # 0 is the floor that the entropy of q was taken from


@pytest.mark.parametrize(("form", "gain"), [("published", 4.0), ("lean", 0.8)])
@pytest.mark.parametrize("depth", [1, 3])
def test_restored_images_beat_the_identity(
    form: str, gain: float, depth: int, record_property: Callable[[str, object], None]
) -> None:
    # A decoder is only of use where the restored image is nearer to its target than the noisy one.
    steps = 40 if form == "published" else 100  # the lean one starts with only its last layer learning
    network, image = _network(form=form, fresh=True), _batch(count=8)["image"]
    smooth = functional.interpolate(functional.avg_pool2d(image, 4), size=(32, 32), mode="bilinear")
    drawn = TRAINING_NOISE["gaussian"](smooth, generator=torch.Generator().manual_seed(0))
    noisy, target = drawn["noisy"], drawn["target"]
    with torch.no_grad():
        features = network.at_depth(noisy, depth, stop=True)[f"features_{depth}"]
    rate = 5e-3 if form == "published" else 2e-2
    optimizer = torch.optim.Adam(network.decoders[depth - 1].parameters())
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = rate * _rate(number, steps)
        optimizer.zero_grad()
        charbonnier(network.restore(noisy, features, depth), target).backward()
        optimizer.step()
    with torch.no_grad():
        restored = network.restore(noisy, features, depth)
    identity, reached = _psnr(noisy, target), _psnr(restored, target)
    record_property("PSNR of the identity and of the decoder, dB", (identity, reached))
    assert reached > identity + gain, f"{identity:.1f} dB noisy, {reached:.1f} dB restored"
    if form == "published":
        assert charbonnier(restored, target) < 0.7 * charbonnier(noisy, target)


def test_a_lean_decoder_starts_as_the_identity() -> None:
    network, batch = _network(form="lean", fresh=True), _batch()
    outputs = network(batch["noisy"])
    for depth in (1, 2, 3):
        assert torch.equal(network.restore(batch["noisy"], outputs[f"features_{depth}"], depth), batch["noisy"])
