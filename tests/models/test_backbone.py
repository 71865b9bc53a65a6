from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError
from vmmr.models import Backbone, ProgressiveNetwork, load_weights

import timm  # isort: skip

NAMES = ("test_resnet", "test_convnext", "test_efficientnet", "mobilenetv2_035", "mobilenetv3_small_050", "pvt_v2_b0")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(0.2, 3), offset=st.floats(-1, 1), seed=st.integers(0, 99))
def test_a_standardised_image_has_no_brightness_and_no_contrast(gain: float, offset: float, seed: int) -> None:
    backbone = Backbone("test_resnet", 5, standardise=True).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    seen = backbone.own_space(x)
    torch.testing.assert_close(seen.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((1, 2, 3), correction=0), torch.ones(2), atol=2e-3, rtol=0)
    torch.testing.assert_close(backbone.own_space(gain * x + offset), seen, atol=0.06, rtol=0)  # the floor of 1e-4
    alone = Backbone("test_resnet", 5).eval()
    alone.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)["logits_0"], alone(seen)["logits_0"])
        torch.testing.assert_close(backbone.features(x, 2), alone.features(seen, 2))


def test_an_image_of_one_colour_is_standardised_to_nothing() -> None:
    seen = Backbone("test_resnet", 5, standardise=True).own_space(torch.full((1, 3, 8, 8), 0.7))
    torch.testing.assert_close(seen, torch.zeros_like(seen), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (96, 40), (67, 51)])
def test_taps_are_the_last_three_levels_at_any_size(name: str, size: tuple[int, int]) -> None:
    backbone = Backbone(name, 5).eval()
    assert backbone.reductions == (8, 16, 32)
    with torch.no_grad():
        outputs = backbone(torch.randn(1, 3, *size))
    assert outputs["logits_0"].shape == (1, 5)
    for depth, (channels, stride) in enumerate(zip(backbone.channels, backbone.reductions, strict=True), 1):
        fmap = outputs[f"features_{depth}"]
        assert fmap.shape[:2] == (1, channels)
        for side, full in zip(fmap.shape[2:], size, strict=True):
            assert full // stride <= side <= -(-full // stride)


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_is_the_plain_networks(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, 5).eval()
    plain = timm.create_model(name, num_classes=5).eval()
    plain.load_state_dict(backbone.model.state_dict())  # strictly: nothing was added or taken away
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x)["logits_0"], plain(x), rtol=1e-6, atol=1e-6)
        for depth in (1, 2, 3):
            torch.testing.assert_close(backbone.features(x, depth), backbone(x)[f"features_{depth}"])


def test_the_input_is_brought_to_the_networks_own_statistics() -> None:
    backbone = Backbone("test_convnext", 5, **IMAGENET).eval()  # type: ignore[arg-type]
    assert backbone.rescales
    raw = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(IMAGENET[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    torch.testing.assert_close(backbone.own_space(2 * raw - 1), (raw - mean) / std, rtol=1e-5, atol=1e-5)
    pixels = np.asarray(Image.effect_noise((32, 32), 80).convert("RGB"))
    half, own = Preprocess(height=32, width=32), Preprocess(height=32, width=32, **IMAGENET)  # type: ignore[arg-type]
    with torch.no_grad():
        # A student's bundle carries the statistics, its plain network none: the two roads meet.
        torch.testing.assert_close(
            backbone(half(pixels)[None])["logits_0"], backbone.model(own(pixels)[None]), rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            backbone.features(half(pixels)[None], 2), backbone(half(pixels)[None])["features_2"], rtol=0, atol=0
        )
    assert set(backbone.state_dict()) == {f"model.{k}" for k in backbone.model.state_dict()}


def test_at_half_statistics_the_image_is_passed_through() -> None:
    backbone = Backbone("test_convnext", 5)
    x = torch.randn(1, 3, 32, 32)
    assert not backbone.rescales
    assert backbone.own_space(x) is x


def test_the_classifier_is_what_depends_on_the_classes() -> None:
    for name in NAMES:
        backbone = Backbone(name, 5)
        wide = dict(Backbone(name, 6).model.named_parameters())
        own = {id(p) for p in backbone.classifier_parameters()}
        differ = {n for n, p in backbone.model.named_parameters() if p.shape != wide[n].shape}
        assert {n for n, p in backbone.model.named_parameters() if id(p) in own} == differ


def test_a_transformer_of_one_stride_is_tapped_after_its_last_blocks() -> None:
    torch.manual_seed(0)
    backbone = Backbone("test_vit", 5, options={"img_size": 64}).eval()
    assert backbone.reductions == (16, 16, 16)
    plain = timm.create_model("test_vit", num_classes=5, img_size=64).eval()
    plain.load_state_dict(backbone.model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = backbone(x, pooled=True)
        torch.testing.assert_close(outputs["logits_0"], plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            outputs["pooled"], plain.forward_head(plain.forward_features(x), pre_logits=True), rtol=1e-5, atol=1e-5
        )
        assert [tuple(outputs[f"features_{d}"].shape) for d in (1, 2, 3)] == [(2, 64, 4, 4)] * 3
        torch.testing.assert_close(backbone.features(x, 2), outputs["features_2"])
    with pytest.raises(ConfigError, match=r"pyramid.*\(16, 16, 16\)"):
        ProgressiveNetwork(backbone, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_network", "cannot build"),
        ("mobilenetv2_100.no_such_tag", "cannot build"),
    ],
)
def test_networks_that_cannot_serve_are_refused(name: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message) as caught:
        Backbone(name, 5)
    assert name in str(caught.value)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot build"):
        Backbone("test_resnet", 5, options={"no_such_option": 3})


def test_options_reach_timm() -> None:
    backbone = Backbone("mobilenetv2_035", 5, options={"pad_type": "same"})
    assert any(type(m).__name__ == "Conv2dSame" for m in backbone.model.modules())


# --- weights


def _saved(path: Path, classes: int = 5, **changes: torch.Tensor | None) -> Path:
    torch.manual_seed(7)
    state = timm.create_model("test_resnet", num_classes=classes).state_dict()
    state |= {k.replace("__", "."): v for k, v in changes.items() if v is not None}
    for name in [k for k, v in changes.items() if v is None]:
        del state[name.replace("__", ".")]
    save_file(state, path)
    return path


def test_weights_of_the_same_width_are_taken_whole(tmp_path: Path) -> None:
    file = _saved(tmp_path / "w.safetensors")
    backbone = Backbone("test_resnet", 5, weights=file)
    stored = load_file(file)
    assert all(torch.equal(v, stored[k]) for k, v in backbone.model.state_dict().items())
    assert load_weights(backbone.model, str(file)) == []


def test_a_classifier_of_another_width_stays_fresh(tmp_path: Path) -> None:
    file = _saved(tmp_path / "w.safetensors", classes=1000)
    model = timm.create_model("test_resnet", num_classes=5)
    before = model.fc.weight.clone()
    assert load_weights(model, file) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.fc.weight, before)
    stored = load_file(file)
    assert all(torch.equal(v, stored[k]) for k, v in model.state_dict().items() if not k.startswith("fc."))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer2__0__conv1__weight": torch.zeros(3, 3)}, "layer2.0.conv1.weight"),
        ({"bn1__weight": None}, "bn1.weight"),
        ({"stray__weight": torch.zeros(1)}, "stray.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], named: str
) -> None:
    file = _saved(tmp_path / "w.safetensors", **changes)
    model = timm.create_model("test_resnet", num_classes=5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match="do not fit") as caught:
        load_weights(model, file)
    assert named in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing was half loaded


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        Backbone("test_convnext", 5, weights=_saved(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("content", [b"", b"not tensors at all", b"\xff" * 64, b"\x80\x02}q\x00."])
def test_files_that_hold_no_tensors_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot read"):
        Backbone("test_resnet", 5, weights=file)


def test_only_existing_safetensors_are_opened(tmp_path: Path) -> None:
    pickled = tmp_path / "w.pth"
    pickled.write_bytes(b"\x80\x02}q\x00.")
    for file in (pickled, tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="safetensors"):
            Backbone("test_resnet", 5, weights=file)


def test_real_weights_load_strictly(shared: Path) -> None:
    file = shared / "weights" / "mobilenetv2_100_in1k.safetensors"
    if not file.is_file():
        pytest.skip("the weights of MobileNetV2 are not here")
    whole = Backbone("mobilenetv2_100", 1000)
    assert load_weights(whole.model, file) == []
    other = Backbone("mobilenetv2_100", 9, weights=file)
    stored = load_file(file)
    different = [k for k, v in other.model.state_dict().items() if not torch.equal(v, stored[k])]
    assert different == ["classifier.weight", "classifier.bias"]
