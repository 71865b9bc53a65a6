from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vmmr.config import TrainConfig
from vmmr.errors import BundleError, ConfigError, TrainingError, VmmrError
from vmmr.export.bundle import read_bundle
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.objectives import smoothed_kl
from vmmr.training.augment import crop_and_flip
from vmmr.training.distil import Distil
from vmmr.training.loop import Fitted, build_optimizer, fit
from vmmr.training.method import Batch, Method, Step
from vmmr.training.plain import Plain
from vmmr.training.progressive import Progressive
from vmmr.training.run import train
from vmmr.training.samples import Samples
from vmmr.training.schedule import one_cycle

Settings = Callable[..., TrainConfig]


def _backbone(name: str = "test_resnet") -> Backbone:
    torch.manual_seed(1)
    return Backbone(name, 4)


def _progressive() -> ProgressiveNetwork:
    torch.manual_seed(1)
    return ProgressiveNetwork(Backbone("test_resnet", 4), 4, "lean")


def _fit(method: Method, samples: Samples, config: TrainConfig, folder: Path, **options: Any) -> Fitted:
    from lightning.fabric import Fabric  # slow to import

    return fit(method, samples, config, Fabric(accelerator="cpu", devices=1), folder, progress=False, **options)


class Spy(Plain):
    """Plain training that notes what the loop hands to it."""

    def __init__(self, network: Backbone, config: TrainConfig) -> None:
        super().__init__(network, config)
        self.batches: list[Batch] = []
        self.weights: list[dict[str, Tensor]] = []
        self.training: list[bool] = []

    def begin(self, batch: Batch, epoch: int) -> Batch:
        self.batches.append(batch)
        self.weights.append({k: v.clone() for k, v in self.network.state_dict().items()})
        self.training.append(self.network.training)
        return batch


# --- what a run does


def test_a_run_learns_the_colours(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(epochs=4)
    fitted = _fit(Plain(_backbone(), config), samples, config, tmp_path)
    assert [row["epoch"] for row in fitted.history] == [0, 1, 2, 3]
    assert [row["step"] for row in fitted.history] == [3, 6, 9, 12]
    scores = [row["val_top1"] for row in fitted.history]
    assert max(scores) >= 0.75
    assert fitted.best == scores.index(max(scores))  # the first epoch that reached it
    assert fitted.history[-1]["classify"] < fitted.history[0]["classify"]
    assert 0 < fitted.seconds < 120


def test_every_epoch_shows_every_image_once_each_view_cut_from_it(
    samples: Samples, tiny: Settings, tmp_path: Path
) -> None:
    config = tiny(padding=2)
    spy = Spy(_backbone(), config)
    _fit(spy, samples, config, tmp_path)
    assert spy.training == [True] * 6
    pixels = samples.train.pixels[np.arange(24)]
    for epoch in (0, 1):
        seen = spy.batches[3 * epoch : 3 * epoch + 3]
        labels = torch.cat([b["label"] for b in seen])
        assert torch.equal(labels.bincount(), torch.from_numpy(np.bincount(samples.train.labels)))
        # A view of 32 lies inside the picture of 36 with a black border of 2, perhaps mirrored.
        padded = nn.functional.pad(pixels, (2, 2, 2, 2))
        both = torch.cat([padded, padded.flip(3)])
        found = []
        for image in torch.cat([b["image"] for b in seen]):
            view = ((image + 1) * 127.5).round().to(torch.uint8)
            windows = both[:, :, 8:9, 8:32].flatten(1)  # one line of the middle is enough to tell pictures apart
            lines = view.unfold(2, 24, 1)[:, :, :, :].permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
            hits = (windows[:, None] == lines[None]).all(2).any(1)
            found += [int(i) % 24 for i in hits.nonzero().flatten()]
        assert len(set(found)) >= 20  # that line may be cut off a few
    first, second = ([b["image"] for b in spy.batches[3 * e : 3 * e + 3]] for e in (0, 1))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_a_published_batch_is_four_updates_each_of_two_passes_on_one_draw(
    samples: Samples, tiny: Settings, tmp_path: Path
) -> None:
    seen: list[tuple[str, dict[str, Tensor], dict[str, Tensor]]] = []

    class Recorded(Progressive):
        def steps(self, epoch: int, step: int) -> tuple[Step, ...]:
            def recorded(step: Step) -> Step:
                def losses(batch: Batch) -> dict[str, Tensor]:
                    weights = {k: v.detach().clone() for k, v in self.network.named_parameters()}
                    seen.append((step.name, {k: v.clone() for k, v in batch.items()}, weights))
                    return step.losses(batch)

                return Step(step.name, step.prepare, losses)

            return tuple(recorded(s) for s in super().steps(epoch, step))

    config = tiny(method="pmal", mode="published", noise="published", sam_rho=0.05, optimizer="sgd", epochs=1)
    _fit(Recorded(_progressive(), config), samples, config, tmp_path)
    names = ["restore_1", "restore_2", "restore_3", "clean"]
    assert [name for name, _, _ in seen] == [n for n in names for _ in (0, 1)] * 3
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert first[1].keys() == second[1].keys()
        assert all(torch.equal(first[1][k], second[1][k]) for k in first[1])  # the same n and g
        assert any(not torch.equal(first[2][k], second[2][k]) for k in first[2])  # at moved weights
    draws = [batch for name, batch, _ in seen[:8:2] if name != "clean"]
    noise = [b["noisy"] - b["target"] for b in draws]
    assert not torch.allclose(noise[0], noise[1])
    assert not torch.allclose(noise[1], noise[2])  # a fresh draw for every step
    clean = seen[6][1]["image"]
    assert not any(torch.equal(clean, b["noisy"]) for b in draws)


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_updates_are_those_of_naive_descent(rho: float, samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(
        backbone="test_convnext", optimizer="sgd", epochs=1, sam_rho=rho, lr=0.05, trunk_lr=0.01, weight_decay=1e-3
    )
    spy = Spy(_backbone("test_convnext"), config)
    _fit(spy, samples, config, tmp_path)
    network = _backbone("test_convnext")
    heads = {id(p) for p in network.classifier_parameters()}
    momenta = {id(p): torch.zeros_like(p) for p in network.parameters()}
    parameters = list(network.parameters())

    def gradients(batch: Batch) -> list[Tensor]:
        loss = smoothed_kl(network(batch["image"])["logits_0"], batch["label"], 0.1)
        return list(torch.autograd.grad(loss, parameters))

    for number, batch in enumerate(spy.batches):
        found = gradients(batch)
        if rho:
            norm = math.sqrt(sum(g.square().sum().item() for g in found))
            before = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, g in zip(parameters, found, strict=True):
                    p.add_(rho * g / norm)
            found = gradients(batch)
            with torch.no_grad():
                for p, b in zip(parameters, before, strict=True):
                    p.copy_(b)
        with torch.no_grad():
            for p, g in zip(parameters, found, strict=True):
                rate = (0.05 if id(p) in heads else 0.01) * one_cycle(number, 3, config.warmup)
                momenta[id(p)] = 0.9 * momenta[id(p)] + g + 1e-3 * p
                p.sub_(rate * momenta[id(p)])
    for name, value in network.state_dict().items():
        torch.testing.assert_close(spy.network.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_sam_every_other_step(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(sam_rho=0.05, sam_every=2)
    calls = []
    method = Plain(_backbone(), config)
    method.network.register_forward_hook(lambda m, *_: calls.append(1) if m.training else None)
    _fit(method, samples, config, tmp_path)
    assert len(calls) == 2 + 1 + 2 + 1 + 2 + 1


def test_the_weight_average_is_the_naive_one(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(ema=0.8, epochs=1)
    spy = Spy(_backbone(), config)
    fitted = _fit(spy, samples, config, tmp_path)
    states = [*spy.weights[1:], spy.network.state_dict()]  # after each update
    for name, kept in fitted.state.items():
        if not kept.is_floating_point():
            continue
        naive = states[0][name]
        for state in states[1:]:
            naive = 0.8 * naive + 0.2 * state[name]
        torch.testing.assert_close(kept, naive, rtol=1e-5, atol=1e-6)
    name = "model.conv1.0.weight"
    assert not torch.equal(fitted.state[name], spy.network.state_dict()[name])


def test_gradients_are_clipped_to_their_joint_norm(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(optimizer="sgd", clip_norm=1e-3, epochs=1, batch_size=24, weight_decay=0.0, lr=1.0, trunk_lr=1.0)
    spy = Spy(_backbone(), config)
    _fit(spy, samples, config, tmp_path)
    before, after = spy.weights[0], dict(spy.network.named_parameters())
    moved = math.sqrt(sum((after[k] - before[k]).double().square().sum().item() for k in after))
    assert moved == pytest.approx(1e-3 * one_cycle(0, 1, config.warmup), rel=1e-3)


def test_adamw_decays_matrices_alone(tiny: Settings) -> None:
    config = tiny(optimizer="adamw", weight_decay=0.1, lr=0.02, trunk_lr=0.01)
    for method in (Plain(_backbone(), config), Progressive(_progressive(), config)):
        optimizer = build_optimizer(method, config)  # type: ignore[arg-type]
        places = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        heads = {id(p) for p in method.head_parameters()}  # type: ignore[attr-defined]
        parameters = list(method.network.parameters())  # type: ignore[attr-defined]
        assert len(places) == len(parameters)  # each once
        for p in parameters:
            assert places[id(p)]["weight_decay"] == (0.1 if p.ndim > 1 else 0.0)
            assert places[id(p)]["peak"] == (0.02 if id(p) in heads else 0.01)


def test_the_log_tells_losses_rates_and_scores(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(schedule="epoch_cosine", epochs=4, lr=0.01)
    _fit(Plain(_backbone(), config), samples, config, tmp_path)
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    rates = {int(r["step"]): float(r["value"]) for r in rows if r["name"] == "lr"}
    # Steps 10 and 12 are in the last epoch of four.
    assert rates == {
        10: pytest.approx(0.01 * (1 + math.cos(math.pi * 0.75)) / 2, rel=1e-4),
        12: pytest.approx(rates[10]),
    }
    scores = [r for r in rows if r["name"] == "val_top1"]
    assert [int(r["epoch"]) for r in scores] == [0, 1, 2, 3]
    assert any((tmp_path / "tensorboard").iterdir())


def test_views_are_windows_of_the_padded_picture() -> None:
    pixels = torch.arange(2 * 3 * 6 * 5, dtype=torch.uint8).view(2, 3, 6, 5)
    draws = torch.tensor([[0.0, 0.999, 0.7], [0.999, 0.0, 0.2]])
    views = crop_and_flip(pixels, draws, 4, 4, padding=1)
    padded = nn.functional.pad(pixels, (1, 1, 1, 1))
    assert torch.equal(views[0], padded[0, :, 0:4, 3:7])
    assert torch.equal(views[1], padded[1, :, 4:8, 0:4].flip(2))


def test_draws_reach_every_window_alike() -> None:
    pixels = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3).expand(9000, 3, 3, 3)
    draws = torch.rand(9000, 3, generator=torch.Generator().manual_seed(0))
    corner = crop_and_flip(pixels, draws, 1, 1, padding=0)[:, 0, 0, 0]
    counts = corner.bincount(minlength=9)
    assert len(counts) == 9
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_consistency_is_augmix_loss_on_the_clean_and_two_noisy_views(tiny: Settings) -> None:
    config = tiny(noise="strong", consistency=12.0)
    method = Plain(_backbone(), config)
    image = 2 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    batch = {"image": image, "label": torch.tensor([0, 1, 2, 3, 0, 1])}
    step = method.steps(0, 0)[0]
    prepared = step.prepare(batch, torch.Generator().manual_seed(1))
    clean, one, other = prepared["image"].chunk(3)
    assert torch.equal(clean, image)
    assert not torch.equal(one, other)
    losses = step.losses(prepared)
    logits = method.network(prepared["image"])["logits_0"].chunk(3)
    # As google-research/augmix writes it.
    p = [view.softmax(1) for view in logits]
    mixture = (sum(p) / 3).clamp(1e-7, 1).log()
    js = sum(nn.functional.kl_div(mixture, view, reduction="batchmean") for view in p) / 3
    torch.testing.assert_close(losses["consistency"], 12 * js, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["classify"], smoothed_kl(logits[0], batch["label"], 0.1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("images", ["clean", "noisy"])
def test_precise_statistics_are_the_mean_over_training_batches(
    images: str, samples: Samples, tiny: Settings, tmp_path: Path
) -> None:
    seen: list[Tensor] = []

    class Watched(Plain):
        def _prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
            return {**batch, "image": batch["image"] + 1}  # noise that is easy to tell

    config = tiny(epochs=1, noise="gaussian", precise_norm=images)
    method = Watched(_backbone(), config)
    first = next(m for m in method.network.modules() if isinstance(m, nn.BatchNorm2d))
    first.register_forward_hook(lambda m, given, _: seen.append(given[0].detach()) if m.training else None)
    fitted = _fit(method, samples, config, tmp_path)
    assert len(seen) == 3 + 3  # an epoch of training, and the images of another
    assert len(fitted.history) == 2
    assert fitted.best == 1
    assert fitted.history[1]["val_top1"] >= 0
    key = next(k for k in fitted.state if k.endswith("running_mean"))
    naive = torch.stack([given.mean((0, 2, 3)) for given in seen[3:]]).mean(0)
    torch.testing.assert_close(fitted.state[key], naive, rtol=1e-4, atol=1e-5)
    trained = method.network.state_dict()[key.replace("running_mean", "weight")]
    assert torch.equal(fitted.state[key.replace("running_mean", "weight")], trained)


def test_without_the_restored_pass_shallow_layers_are_used_once(tiny: Settings) -> None:
    batch = {"image": torch.zeros(4, 3, 32, 32), "label": torch.tensor([0, 1, 2, 3])}
    names = {}
    calls: list[int] = []
    for weight in (0.0, 0.5, 1.0):
        config = tiny(method="pmal", noise="gaussian", restored_weight=weight)
        method = Progressive(_progressive(), config)
        method.network.backbone.model.conv1.register_forward_hook(lambda *_: calls.append(1))
        step = method.steps(0, 0)[0]
        names[weight] = step.losses(step.prepare(batch, torch.Generator().manual_seed(0)))
        calls.append(0)
    assert calls == [1, 0, 1, 1, 0, 1, 1, 0]
    assert names[1.0].keys() - names[0.0].keys() == {"restored_1"}
    torch.testing.assert_close(2 * names[0.5]["restored_1"], names[1.0]["restored_1"])


def test_it_restores_at_every_so_many_steps_and_goes_round_the_depths(tiny: Settings) -> None:
    config = tiny(method="pmal", noise="gaussian", restore_every=2, heads="slim")
    method = Progressive(ProgressiveNetwork(_backbone(), 4, "slim"), config)
    names = [method.steps(0, number)[0].name for number in range(8)]
    assert names == ["fused_1", "noisy", "fused_2", "noisy", "fused_3", "noisy", "fused_1", "noisy"]
    batch = {"image": torch.zeros(4, 3, 32, 32), "label": torch.tensor([0, 1, 2, 3])}
    step = method.steps(0, 1)[0]
    prepared = step.prepare(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(prepared["noisy"], batch["image"])
    losses = step.losses(prepared)
    assert losses.keys() == {"head_1", "head_2", "head_3", "trunk"}
    logits = method.network(prepared["noisy"])["logits_0"]
    torch.testing.assert_close(losses["trunk"], 2 * smoothed_kl(logits, batch["label"], 0.1), rtol=1e-4, atol=1e-5)


def test_a_student_sees_images_as_its_teacher_does(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "progress": False}
    config = tiny(method="pmal", noise="varied", statistics="image", epochs=1)
    train(config, pictures, tmp_path / "teacher", **quiet)
    bundle = tmp_path / "teacher" / "bundle"
    assert read_bundle(bundle).spec.standardise
    train(tiny(method="pmd", noise="strong", epochs=1), pictures, tmp_path / "s", teacher=bundle, **quiet)
    student = read_bundle(tmp_path / "s" / "bundle")
    assert student.spec.standardise
    network = student.network()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        bright = network(0.5 * x + 0.3)["logits_0"]
        torch.testing.assert_close(network(x)["logits_0"], bright, rtol=0.02, atol=0.02)


# --- what it refuses


def test_a_loss_that_is_not_finite_ends_the_run_without_a_bundle(
    pictures: Path, tiny: Settings, tmp_path: Path
) -> None:
    config = tiny(optimizer="sgd", lr=1e30, trunk_lr=1e30)
    with pytest.raises(TrainingError, match="finite"):
        train(config, pictures, tmp_path / "run", accelerator="cpu", progress=False)
    assert not (tmp_path / "run" / "bundle").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_a_batch_larger_than_the_set_is_refused(samples: Samples, tiny: Settings, tmp_path: Path) -> None:
    config = tiny(batch_size=32)
    with pytest.raises(VmmrError, match="batch"):
        _fit(Plain(_backbone(), config), samples, config, tmp_path)


def test_teachers_belong_to_pmd_and_share_its_backbone(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "progress": False}
    with pytest.raises(ConfigError, match="teacher"):
        train(tiny(), pictures, tmp_path / "a", teacher=tmp_path, **quiet)
    with pytest.raises(ConfigError, match="teacher"):
        train(tiny(method="pmd"), pictures, tmp_path / "a", **quiet)
    assert not (tmp_path / "a").exists()


def test_from_teacher_to_student(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    quiet: dict[str, Any] = {"accelerator": "cpu", "progress": False}
    teacher = train(tiny(method="pmal", noise="gaussian", epochs=1), pictures, tmp_path / "teacher", **quiet)
    assert teacher["train_images"] == 24
    assert teacher["val_images"] == 8
    assert teacher["test_images"] == 4
    bundle = tmp_path / "teacher" / "bundle"
    loaded = read_bundle(bundle).network()
    assert isinstance(loaded, ProgressiveNetwork)
    student = train(tiny(method="pmd", noise="strong", epochs=1), pictures, tmp_path / "s", teacher=bundle, **quiet)
    assert student["history"][0].keys() >= {"features_1", "features_2", "features_3", "logits", "labels", "val_top1"}
    assert json.loads((tmp_path / "s" / "metrics.json").read_text()) == student
    plain = read_bundle(tmp_path / "s" / "bundle")
    assert plain.spec.kind == "plain"
    assert set(plain.tensors) == set(_backbone().model.state_dict())
    assert not (tmp_path / "s" / "checkpoints").exists()
    other = tiny(method="pmd", noise="strong", backbone="test_convnext")
    with pytest.raises(ConfigError, match="share the backbone"):
        train(other, pictures, tmp_path / "o", teacher=bundle, **quiet)
    with pytest.raises(BundleError, match="plain"):
        train(tiny(method="pmd", noise="strong"), pictures, tmp_path / "o", teacher=tmp_path / "s" / "bundle", **quiet)
    with pytest.raises(TrainingError, match="holds a run"):
        train(tiny(), pictures, tmp_path / "s", **quiet)
    network = Distil(_backbone(), loaded, tiny(method="pmd", noise="strong")).network
    network.load_state_dict({f"model.{k}": v for k, v in plain.tensors.items()})


def test_the_trunk_that_pmal_leaves_is_a_plain_network(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    from vmmr.data.manifest import Manifest
    from vmmr.evaluation.evaluate import evaluate

    # The same run, kept in two ways: what is trained does not depend on what is kept of it.
    config = tiny(method="pmal", noise="gaussian", epochs=1)
    train(config, pictures, tmp_path / "heads", accelerator="cpu", progress=False)
    metrics = train(config.with_(keep="trunk"), pictures, tmp_path / "trunk", accelerator="cpu", progress=False)
    whole, trunk = (read_bundle(tmp_path / name / "bundle") for name in ("heads", "trunk"))
    assert (whole.spec.kind, trunk.spec.kind) == ("progressive", "plain")
    assert set(trunk.tensors) == set(_backbone().model.state_dict())
    image = 2 * torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        torch.testing.assert_close(trunk.network()(image)["logits_0"], whole.network()(image)["logits_0"])
    judged = evaluate(trunk, Manifest.load(pictures).split("val"), progress=False)
    assert judged["conditions"]["clean"]["top1"] == pytest.approx(metrics["val_top1"])


def test_the_bundle_scores_what_the_metrics_say(pictures: Path, tiny: Settings, tmp_path: Path) -> None:
    from vmmr.data.manifest import Manifest
    from vmmr.evaluation.evaluate import evaluate

    metrics = train(tiny(), pictures, tmp_path / "run", accelerator="cpu", progress=False)
    bundle = read_bundle(tmp_path / "run" / "bundle")
    judged = evaluate(bundle, Manifest.load(pictures).split("val"), progress=False)
    assert judged["conditions"]["clean"]["top1"] == pytest.approx(metrics["val_top1"])
    assert metrics["val_top1"] == max(row["val_top1"] for row in metrics["history"])


def test_the_bundle_keeps_the_temperature_of_its_validation_images(
    samples: Samples, pictures: Path, tiny: Settings, tmp_path: Path
) -> None:
    from vmmr.evaluation.calibration import fit_temperature

    metrics = train(tiny(epochs=1), pictures, tmp_path / "run", accelerator="cpu", progress=False)
    bundle = read_bundle(tmp_path / "run" / "bundle")
    kept = bundle.spec.temperature
    assert kept == metrics["temperature"] != 1
    held = samples.validation
    image = samples.preprocess.normalise(samples.preprocess.centre_crop(held.pixels[np.arange(len(held))]))
    with torch.no_grad():
        logits = bundle.network()(image)["logits_0"]
    assert (logits.argmax(1).numpy() != held.labels).any()
    assert kept == pytest.approx(fit_temperature(logits, held.labels), rel=1e-3)
