"""Artifacts: the same network in every form, and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vmmr
from vmmr.errors import BundleError, ConfigError
from vmmr.export.artifact import Artifact, read_artifact, write_artifact
from vmmr.export.bundle import Bundle, read_bundle, write_bundle
from vmmr.export.export import export_bundle
from vmmr.export.parity import (
    MAX_DIFFERENCE,
    Golden,
    golden_pictures,
    golden_set,
    measure,
    require_parity,
    require_pixels,
)
from vmmr.export.runtime import TorchRuntime

from .conftest import make_bundle

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="session")
def onnx_folder(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain network in ONNX."""
    out = tmp_path_factory.mktemp("artifacts") / "onnx"
    export_bundle(plain, out, form="onnx")
    return out


@pytest.fixture(scope="session")
def ir_folder(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain network as OpenVINO's own."""
    out = tmp_path_factory.mktemp("artifacts") / "ir"
    export_bundle(plain, out, form="openvino")
    return out


def some_pixels(count: int = 5) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its entry in the listing, as somebody with a plan would."""
    (folder / name).write_bytes(data)
    listing = json.loads((folder / "manifest.json").read_bytes())
    listing["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(listing))


@pytest.fixture
def copy(onnx_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(onnx_folder, tmp_path / "artifact"))


# --- the same network


def test_every_kind_of_network_gives_what_torch_gives(bundle: Bundle, tmp_path: Path) -> None:
    pixels = some_pixels()
    artifact = export_bundle(bundle, tmp_path / "artifact", form="onnx")
    wanted = TorchRuntime(bundle)(pixels)
    for name in ("onnxruntime", "openvino"):
        runtime = artifact.runtime(name, threads=1)
        assert (runtime.name, runtime.precision, runtime.size) == (name, "fp32", (48, 64))
        together = runtime(pixels)
        order = [2, 4, 0, 1, 3]
        shuffled = runtime(pixels[order])
        for key, values in wanted.items():
            assert np.abs(together[key] - values).max() < 1e-4
            assert np.abs(shuffled[key] - values[order]).max() < 1e-4
            alone = np.concatenate([runtime(row[None])[key] for row in pixels])
            assert np.abs(alone - together[key]).max() < 1e-5


def test_an_artifact_answers_as_its_bundle(plain: Bundle, onnx_folder: Path, ir_folder: Path) -> None:
    pictures = list(golden_pictures())
    wanted = vmmr.Recognizer(plain)(pictures)
    for folder, name in ((onnx_folder, "onnxruntime"), (onnx_folder, "openvino"), (ir_folder, "openvino")):
        recognizer = vmmr.load(folder, runtime=name)  # type: ignore[arg-type]
        assert recognizer.runtime.name == name
        for found, answer in zip(recognizer(pictures), wanted, strict=True):
            assert (found.make, found.model) == (answer.make, answer.model)
            assert found.confidence == pytest.approx(answer.confidence, abs=1e-4)
    assert vmmr.load(onnx_folder).runtime.name == "onnxruntime"
    assert vmmr.load(ir_folder).runtime.name == "openvino"


def test_bf16_is_a_hint_that_is_kept(ir_folder: Path, tmp_path: Path) -> None:
    written = write_artifact(tmp_path / "artifact", replace(read_artifact(ir_folder), precision="bf16"))
    artifact = read_artifact(written)
    runtime = artifact.runtime()
    assert runtime.precision == "bf16"
    found = measure(artifact, artifact.golden, runtime)
    assert found.relative < 0.05
    assert vmmr.load(written).runtime.precision == "bf16"


def test_the_statistics_of_an_image_are_not_quantised(standardised: Bundle) -> None:
    # In fog they lie where calibration saw none; int8 steps there would be as coarse as the statistics themselves.
    from vmmr.export.onnx import to_onnx
    from vmmr.export.openvino import _openvino, quantise_ir, to_ir

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 48, 64, 3), dtype=np.uint8)
    network = _openvino().Core().read_model(*quantise_ir(*to_ir(to_onnx(standardised)), pixels))
    kinds = [(step.get_type_name(), step.output(0).get_partial_shape()) for step in network.get_ordered_ops()[:-1]]
    first = [kind for kind, _ in kinds].index("Convolution")
    assert "ReduceMean" in [kind for kind, _ in kinds[:first]]
    quantised = [shape for kind, shape in kinds[:first] if kind == "FakeQuantize"]
    assert all(shape.rank.get_length() == 4 and shape[2].get_length() == 48 for shape in quantised)  # the input alone
    assert any(kind == "FakeQuantize" for kind, _ in kinds[first:])


def test_int8_reaches_every_convolution_of_a_mobile_network() -> None:
    # Left in float32, those between two quantised ones cost more than int8 saves.
    from vmmr.export.onnx import quantise_onnx, to_onnx
    from vmmr.export.openvino import _openvino, quantise_ir, to_ir

    graph, pixels = to_onnx(make_bundle("plain", backbone="mobilenetv2_050")), some_pixels(4)
    weights = []
    for step in _openvino().Core().read_model(*quantise_ir(*to_ir(graph), pixels)).get_ordered_ops():
        if step.get_type_name() in ("Convolution", "GroupConvolution"):
            source = step.input_value(1).get_node()
            while source.get_type_name() in ("Multiply", "Convert", "Reshape"):
                source = source.input_value(0).get_node()
            weights.append((source.get_type_name(), source.get_element_type().get_type_name()))
    assert weights == [("Constant", "i8")] * 52
    kinds = [node.op_type for node in onnx.load_from_string(graph).graph.node]
    assert (kinds.count("Conv"), kinds.count("Clip")) == (52, 35)
    kinds = [node.op_type for node in onnx.load_from_string(quantise_onnx(graph, pixels)).graph.node]
    assert (kinds.count("Conv"), kinds.count("Clip")) == (52, 0)  # the range of int8 is what clips


def test_what_cannot_be_is_refused_before_anything_is_written(plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bf16"):
        export_bundle(plain, tmp_path / "x", form="onnx", precision="bf16")
    with pytest.raises(ConfigError, match="calibrated"):
        export_bundle(plain, tmp_path / "x", form="onnx", precision="int8")
    assert not (tmp_path / "x").exists()


def test_a_bundle_is_not_replaced_by_its_artifact(plain: Bundle, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", plain)
    with pytest.raises(BundleError, match="no artifact"):
        export_bundle(plain, folder, form="onnx")
    assert read_bundle(folder).spec == plain.spec


def test_runtimes_are_for_their_forms(ir_folder: Path, onnx_folder: Path) -> None:
    with pytest.raises(ConfigError, match="choose of openvino"):
        vmmr.load(ir_folder, runtime="onnxruntime")
    with pytest.raises(ConfigError, match="choose of onnxruntime, openvino"):
        vmmr.load(onnx_folder, runtime="torch")
    with pytest.raises(ConfigError, match="processor"):
        vmmr.load(onnx_folder, device="cuda")


def test_golden_pictures_survive_the_file_to_the_last_bit(bundle: Bundle) -> None:
    golden = golden_set(bundle)
    read = Golden.from_bytes(golden.to_bytes())
    assert read.pictures == golden.pictures == golden_pictures()
    for name in ("pixels", "logits", "features"):
        assert np.array_equal(getattr(read, name), getattr(golden, name))
    require_pixels(read, bundle.preprocess)


# --- altered, and hostile


def test_an_altered_network_is_seen_by_its_answers(copy: Path) -> None:
    """Hashes renewed, so that only the golden pictures can tell."""
    model = onnx.load_from_string((copy / "model.onnx").read_bytes())
    weights = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 4)
    values = onnx.numpy_helper.to_array(weights) * 1.05
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    rewrite(copy, "model.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="golden pictures"):
        vmmr.load(copy)


def test_a_wrong_normalisation_is_seen(plain: Bundle) -> None:
    golden = golden_set(plain)
    shifted = replace(plain, spec=replace(plain.spec, mean=(0.5, 0.456, 0.406)))
    assert require_parity(plain, golden, TorchRuntime(plain)).difference <= MAX_DIFFERENCE
    with pytest.raises(BundleError, match="golden pictures"):
        require_parity(plain, golden, TorchRuntime(shifted))


@pytest.mark.parametrize("change", [{"crop": 0.5}, {"resize": "letterbox"}, {"interpolation": "bicubic", "crop": 0.6}])
def test_another_preprocessing_is_seen(change: dict[str, Any], copy: Path) -> None:
    settings = json.loads((copy / "preprocess.json").read_bytes()) | change
    rewrite(copy, "preprocess.json", json.dumps(settings).encode())
    with pytest.raises(BundleError, match="prepared differently"):
        vmmr.load(copy)


def test_an_answer_that_is_no_number_is_no_parity(onnx_folder: Path) -> None:
    artifact = read_artifact(onnx_folder)

    class Broken:
        name, precision, size = "broken", "fp32", (48, 64)

        def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
            return {"logits": np.full_like(artifact.golden.logits, np.nan), "features": artifact.golden.features}

    assert measure(artifact, artifact.golden, Broken()).difference == np.inf


def _external(model: Any) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../secret.bin")
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


def _elsewhere() -> Any:
    entry = onnx.StringStringEntryProto(key="location", value="secret.bin")
    return onnx.TensorProto(name="t", data_type=1, dims=[1], external_data=[entry])


def _external_in_attribute(model: Any) -> None:
    tensor = _elsewhere()
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def _external_in_branch(model: Any) -> None:
    tensor = _elsewhere()
    branch = onnx.helper.make_graph([], "branch", [], [onnx.helper.make_tensor_value_info("t", 1, [1])], [tensor])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["u"], then_branch=branch, else_branch=branch))


def _sparse(model: Any) -> None:
    values = onnx.helper.make_tensor("s", 1, [1], [1.0])
    indices = onnx.helper.make_tensor("i", 7, [1], [0])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4]))


def _other_operators(model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("Anything", ["pixels"], ["u"], domain="com.microsoft"))


def _function(model: Any) -> None:
    model.functions.append(onnx.FunctionProto(name="f", domain="mine"))


def _other_input(model: Any) -> None:
    model.graph.input[0].name = "image"


def _other_size(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5000


def _other_output(model: Any) -> None:
    del model.graph.output[1]


@pytest.mark.parametrize(
    "change",
    [
        _external,
        _external_in_attribute,
        _external_in_branch,
        _sparse,
        _other_operators,
        _function,
        _other_input,
        _other_size,
        _other_output,
    ],
)
def test_a_graph_that_could_not_be_ours_never_reaches_a_runtime(
    change: Callable[[Any], None], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string((copy / "model.onnx").read_bytes())
    change(model)
    rewrite(copy, "model.onnx", model.SerializeToString())
    (copy / "secret.bin").write_bytes(b"\0" * 4096)

    def reached(*_: Any, **__: Any) -> None:
        raise AssertionError("the graph was given to a runtime")

    monkeypatch.setattr("onnxruntime.InferenceSession", reached)
    monkeypatch.setattr("openvino.Core", reached)
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(BundleError, match=r"model\.onnx"):
            vmmr.load(copy, runtime=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"junk" * 99, b"\x08\x0a", b"ORTM" * 4])
def test_what_is_no_graph_is_refused(data: bytes, copy: Path) -> None:
    rewrite(copy, "model.onnx", data)
    with pytest.raises(BundleError):
        vmmr.load(copy)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"<net>",
        b"<other/>",
        b'<?xml version="1.0"?><net name="x" version="11"><layers/><edges/></net>',
        b'<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a SYSTEM "file:///etc/hostname">]><net>&a;</net>',
    ],
)
def test_what_is_no_network_of_openvino_is_refused(data: bytes, ir_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ir_folder, tmp_path / "artifact"))
    rewrite(folder, "model.xml", data)
    with pytest.raises(BundleError):
        vmmr.load(folder)


def test_a_graph_in_place_of_a_network_is_refused(ir_folder: Path, onnx_folder: Path, tmp_path: Path) -> None:
    """OpenVINO would read it, and whatever files it names."""
    folder = Path(shutil.copytree(ir_folder, tmp_path / "artifact"))
    rewrite(folder, "model.xml", (onnx_folder / "model.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"model\.xml"):
        vmmr.load(folder)


@pytest.mark.parametrize("cut", [0, 100, -4])
def test_weights_cut_short_are_refused(cut: int, ir_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ir_folder, tmp_path / "artifact"))
    rewrite(folder, "model.bin", (folder / "model.bin").read_bytes()[:cut])
    with pytest.raises(BundleError):
        vmmr.load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors", "card.md"])
def test_every_file_is_plain_and_unaltered(name: str, copy: Path, tmp_path: Path) -> None:
    file, aside = copy / name, tmp_path / "aside"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} was altered"):
        vmmr.load(copy)
    file.unlink()
    aside.write_bytes(data)
    for make in (lambda: file.symlink_to(aside), lambda: os.link(aside, file)):
        make()
        with pytest.raises(BundleError, match=name):
            vmmr.load(copy)
        file.unlink()


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp8"},
        {"precision": None},
        {"spec": None},
        {"spec": {"kind": "plain"}},
        {"format": "vmmr-bundle"},
        {"version": 2},
    ],
)
def test_settings_that_lie_are_refused(change: dict[str, Any], copy: Path) -> None:
    rewrite(copy, "config.json", json.dumps(json.loads((copy / "config.json").read_bytes()) | change).encode())
    with pytest.raises(BundleError):
        read_artifact(copy)


def test_an_artifact_says_what_it_was_made_from_and_with(onnx_folder: Path) -> None:
    artifact: Artifact = read_artifact(onnx_folder)
    assert artifact.provenance["versions"]["vmmr"] == vmmr.__version__
    assert artifact.provenance["parity"]["difference"] <= MAX_DIFFERENCE
    assert artifact.provenance["parity"]["agreement"] == 1
    assert "Exported: onnx, fp32" in artifact.card
    assert artifact.card.startswith("# A card")


def test_nothing_calls_home() -> None:
    """The makers' telemetry is never loaded, so that it has nobody to send by."""
    program = (
        "import sys; from vmmr.export import openvino; openvino._openvino(); import nncf; "
        "sys.exit(any(name.startswith('openvino_telemetry') and module for name, module in sys.modules.items()))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=200).returncode == 0
