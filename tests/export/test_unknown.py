"""Bundles and artifacts that say what they do not know."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import vmmr
from vmmr.errors import BundleError
from vmmr.export.artifact import read_artifact
from vmmr.export.bundle import Bundle, read_bundle, write_bundle
from vmmr.export.export import export_bundle
from vmmr.export.parity import golden_pictures
from vmmr.unknown import Gate
from vmmr.unknown.detector import Detector
from vmmr.unknown.knn import KNNFitted

from .conftest import make_bundle

SIX = ["card.md", "config.json", "manifest.json", "preprocess.json", "taxonomy.json", "weights.safetensors"]


def with_detector(bundle: Bundle) -> Bundle:
    """A bank of the golden pictures' own features, and a gate in the widest gaps of their scores."""
    pictures = list(golden_pictures())
    plain = vmmr.Recognizer(bundle)
    features = torch.from_numpy(plain.embed(pictures[::3]))
    fitted = KNNFitted(features, torch.arange(len(features)) % 3)
    wide = Gate(known=0.0, vehicle=9.0, dull=0.0, soft=-99.0, noisy=99.0)
    shown = vmmr.Recognizer(replace(bundle, detector=Detector("knn", wide, fitted)))
    prepared = [shown.prepare(picture).pixels for picture in pictures]
    signs = torch.cat([torch.from_numpy(shown.outputs(pixels[None])["signs"]) for pixels in prepared])
    scores = signs[:, 0].sort().values
    place = torch.argsort(scores.diff(), descending=True)[:2].sort().values
    known, vehicle = ((scores[place] + scores[place + 1]) / 2).tolist()
    gate = replace(wide, known=known, vehicle=vehicle, dull=0.01, shortest=20)
    return replace(bundle, detector=Detector("knn", gate, fitted))


@pytest.fixture(scope="module")
def knowing(plain: Bundle) -> Bundle:
    return with_detector(plain)


@pytest.fixture
def folder(knowing: Bundle, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "car", knowing)


def rewrite(folder: Path, name: str, data: bytes | None) -> None:
    """Replace or remove a file and its entry in the listing, as somebody with a plan would."""
    listing = json.loads((folder / "manifest.json").read_bytes())
    if data is None:
        (folder / name).unlink()
        del listing["files"][name]
    else:
        (folder / name).write_bytes(data)
        listing["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(listing))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    config["unknown"] = config["unknown"] | changes
    rewrite(folder, "config.json", json.dumps(config).encode())


def test_a_bundle_keeps_its_detector(knowing: Bundle, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*SIX, "unknown.safetensors"])
    read = read_bundle(folder)
    assert read.detector is not None
    assert knowing.detector is not None
    assert read.detector.settings == knowing.detector.settings
    assert read.detector.to_bytes() == knowing.detector.to_bytes()
    assert write_bundle(folder.with_name("again"), read).is_dir()
    assert read_bundle(folder.with_name("again")).digest == read.digest


def test_a_bundle_without_one_is_what_it_was(plain: Bundle, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "car", plain)
    assert sorted(path.name for path in folder.iterdir()) == SIX
    before = {"format": "vmmr-bundle", "version": 1, **asdict(plain.spec)}
    assert (folder / "config.json").read_bytes() == json.dumps(before, indent=1, sort_keys=True).encode()
    assert read_bundle(folder).detector is None
    rewrite(folder, "config.json", json.dumps(before | {"unknown": None}).encode())
    assert read_bundle(folder).detector is None


def test_an_altered_byte_of_the_constants_is_seen(folder: Path) -> None:
    data = bytearray((folder / "unknown.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "unknown.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match=r"unknown\.safetensors was altered"):
        read_bundle(folder)


def test_settings_and_constants_go_together(folder: Path, plain: Bundle, tmp_path: Path) -> None:
    rewrite(folder, "unknown.safetensors", None)
    with pytest.raises(BundleError, match="go together"):
        read_bundle(folder)
    bare = write_bundle(tmp_path / "bare", plain)
    rewrite(bare, "unknown.safetensors", save({}))
    with pytest.raises(BundleError, match="go together"):
        read_bundle(bare)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": "magic"}, "no unknown score"),
        ({"known": 5.0}, "out of order"),
        ({"dull": None}, "finite numbers"),
        ({"shortest": 161}, "does not fit its preprocessing"),  # twice the resized side, 64 / 0.8
    ],
)
def test_a_gate_that_lies_is_refused(changes: dict[str, Any], words: str, folder: Path) -> None:
    edit(folder, shortest=160)
    assert read_bundle(folder).detector is not None
    edit(folder, **changes)
    with pytest.raises(BundleError, match=words):
        read_bundle(folder)


def test_constants_of_another_network_are_refused(folder: Path) -> None:
    tensors = {"bank": torch.ones(4, 7), "label": torch.zeros(4, dtype=torch.int64)}
    rewrite(folder, "unknown.safetensors", save({"bank": torch.ones(4, 7)}))
    with pytest.raises(BundleError, match="other tensors"):
        read_bundle(folder)
    rewrite(folder, "unknown.safetensors", save(tensors | {"bank": torch.full((4, 7), torch.inf)}))
    with pytest.raises(BundleError, match="no finite number"):
        read_bundle(folder)
    rewrite(folder, "unknown.safetensors", save(tensors))
    bundle = read_bundle(folder)
    with pytest.raises(BundleError, match="another network; got 7 features"):
        bundle.network()
    with pytest.raises(BundleError, match="another network"):
        vmmr.load(folder)


@pytest.mark.parametrize("kind", ["plain", "levels", "progressive"])
def test_every_runtime_knows_the_same(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    bundle = with_detector(make_bundle(kind))
    pictures = list(golden_pictures())
    wanted = [(answer.known, answer.reason) for answer in vmmr.Recognizer(bundle)(pictures)]
    told = Counter(reason for _, reason in wanted)
    assert told["too_small"] == 1  # that of 3 x 2
    assert told["low_quality"] + told["ok"] + told["unknown_vehicle"] + told["not_a_vehicle"] == len(pictures) - 1
    assert len(told) >= 4
    export_bundle(bundle, tmp_path / "onnx", form="onnx")
    export_bundle(bundle, tmp_path / "ir", form="openvino")
    for folder, runtime in (("onnx", "onnxruntime"), ("onnx", "openvino"), ("ir", "openvino")):
        recognizer = vmmr.load(tmp_path / folder, runtime=runtime)  # type: ignore[arg-type]
        assert recognizer.runtime.name == runtime
        assert [(answer.known, answer.reason) for answer in recognizer(pictures)] == wanted


def test_an_artifact_refuses_constants_of_another_network(knowing: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    artifact = export_bundle(knowing, tmp_path / "onnx", form="onnx")
    assert artifact.detector is not None
    assert artifact.detector.settings == json.loads((tmp_path / "onnx/config.json").read_text())["spec"]["unknown"]
    other = shutil.copytree(tmp_path / "onnx", tmp_path / "other")
    tensors = {"bank": torch.ones(4, 7), "label": torch.zeros(4, dtype=torch.int64)}
    rewrite(other, "unknown.safetensors", save(tensors))
    with pytest.raises(BundleError, match="of another network; got D = 7"):
        read_artifact(other)
    rewrite(other, "unknown.safetensors", None)
    with pytest.raises(BundleError, match="go together"):
        read_artifact(other)
