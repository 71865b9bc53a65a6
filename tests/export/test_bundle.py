from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import vmmr
from vmmr.data.preprocess import Preprocess
from vmmr.errors import BundleError, ConfigError
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle, write_bundle
from vmmr.models import Backbone, ProgressiveNetwork
from vmmr.taxonomy import Taxonomy, VehicleClass

NAMES = ("weights.safetensors", "config.json", "taxonomy.json", "preprocess.json", "card.md")
CLASSES = 3


def _bundle(kind: str = "plain", seed: int = 0, **changes: Any) -> Bundle:
    torch.manual_seed(seed)
    spec = ModelSpec(kind, "test_resnet", CLASSES, **changes)  # type: ignore[arg-type]
    network = build_network(spec)
    with torch.no_grad():
        for buffer in network.buffers():
            buffer.copy_(torch.randn(buffer.shape).abs() + 1)
    target = network.model if isinstance(network, Backbone) else network
    taxonomy = Taxonomy(tuple(VehicleClass("Make", f"Model {n}", 2000 + n) for n in range(CLASSES)))
    preprocess = Preprocess(height=32, width=40, crop=0.8, mean=(0.4, 0.5, 0.6))
    return Bundle(spec, taxonomy, preprocess, target.state_dict(), "# A card\n\nÜber alles.\n")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return _bundle()


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "car", bundle)


def _rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and its entry in the listing, as somebody with a plan would."""
    (folder / name).write_bytes(data)
    listing = json.loads((folder / "manifest.json").read_bytes())
    listing["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(listing))


def _edit(folder: Path, name: str, **changes: Any) -> None:
    document = json.loads((folder / name).read_bytes())
    _rewrite(folder, name, json.dumps(document | changes).encode())


# --- round trip


@pytest.mark.parametrize("kind", ["plain", "progressive"])
def test_what_is_written_is_read_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    bundle = _bundle(kind)
    read = read_bundle(write_bundle(tmp_path / "deep" / "car", bundle))
    assert read.tensors.keys() == bundle.tensors.keys()
    for name, tensor in bundle.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)
    assert (read.spec, read.taxonomy, read.preprocess, read.card) == (
        bundle.spec,
        bundle.taxonomy,
        bundle.preprocess,
        bundle.card,
    )
    assert read.name == "car"
    network = read.network()
    assert isinstance(network, Backbone if kind == "plain" else ProgressiveNetwork)
    assert not any(module.training for module in network.modules())
    x = torch.randn(2, 3, 32, 32)
    other = build_network(bundle.spec).eval()
    (other.model if isinstance(other, Backbone) else other).load_state_dict(bundle.tensors)
    with torch.no_grad():
        assert torch.equal(network(x)["logits_0"], other(x)["logits_0"])


def test_layouts_and_views_do_not_matter(tmp_path: Path) -> None:
    bundle = _bundle()
    tensors = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in bundle.tensors.items()}
    read = read_bundle(write_bundle(tmp_path / "car", replace(bundle, tensors=tensors)))
    assert all(torch.equal(read.tensors[k], v) for k, v in bundle.tensors.items())


def test_the_same_bundle_has_the_same_digest(tmp_path: Path) -> None:
    digests = [
        read_bundle(write_bundle(tmp_path / str(n), _bundle(seed=seed))).digest for n, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_plain_bundle_holds_exactly_the_plain_network(bundle: Bundle) -> None:
    import timm

    plain = timm.create_model("test_resnet", num_classes=CLASSES).state_dict()
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in bundle.tensors.items()}


def test_a_bundle_lists_size_and_hash_of_its_files(folder: Path) -> None:
    listing = json.loads((folder / "manifest.json").read_bytes())
    assert sorted(listing["files"]) == sorted(NAMES)
    for name, entry in listing["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert sorted(p.name for p in folder.iterdir()) == sorted([*NAMES, "manifest.json"])


def test_a_later_bundle_takes_the_place_of_an_earlier(folder: Path) -> None:
    second = _bundle("progressive", seed=5)
    write_bundle(folder, second)
    assert read_bundle(folder).spec.kind == "progressive"
    assert [p.name for p in folder.parent.iterdir()] == ["car"]  # nothing left beside it


def test_a_folder_of_other_things_is_not_replaced(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(BundleError, match="no bundle"):
        write_bundle(tmp_path / "photos", bundle)
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"dear"
    (tmp_path / "empty").mkdir()
    assert read_bundle(write_bundle(tmp_path / "empty", bundle)).spec == bundle.spec


# --- a write that dies


@pytest.mark.parametrize(
    ("earlier", "call", "count"),
    [(e, *where) for e in (True, False) for where in (("fsync", 1), ("fsync", 4), ("rename", 1))]
    + [(True, "rename", 2)],
)
def test_a_write_that_fails_leaves_the_earlier_bundle_or_none(
    earlier: bool, call: str, count: int, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "car"
    if earlier:
        write_bundle(place, bundle)
    calls = 0
    owner: Any = os if call == "fsync" else Path
    real = getattr(owner, call)

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, fail)
        with pytest.raises(OSError, match="No space"):
            write_bundle(place, _bundle(seed=9))
    if earlier:
        read = read_bundle(place)
        assert all(torch.equal(read.tensors[k], v) for k, v in bundle.tensors.items())
    assert [p.name for p in tmp_path.iterdir()] == (["car"] if earlier else [])


# --- hostile folders


@pytest.mark.parametrize("name", [*NAMES, "manifest.json"])
def test_every_file_is_needed_and_plain(name: str, folder: Path, tmp_path: Path) -> None:
    file, aside = folder / name, tmp_path / "aside"
    file.rename(aside)
    with pytest.raises(BundleError, match=name):
        read_bundle(folder)
    for make in (
        lambda: file.symlink_to(aside),
        lambda: os.link(aside, file),
        lambda: os.mkfifo(file),  # must not wait for a writer
        lambda: file.mkdir(),
        lambda: file.symlink_to("/dev/zero"),
    ):
        make()
        with pytest.raises(BundleError, match=name):
            read_bundle(folder)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    aside.rename(file)
    read_bundle(folder)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_an_altered_byte_is_seen(name: str, where: float, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(where * len(data)) if where >= 0 else -1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        read_bundle(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["manifest.json", "config.json", "taxonomy.json", "preprocess.json"])
def test_what_is_no_json_object_is_refused(name: str, data: bytes, folder: Path) -> None:
    if name == "manifest.json":
        (folder / name).write_bytes(data)
    else:
        _rewrite(folder, name, data)
    with pytest.raises(BundleError):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["manifest.json", "config.json", "taxonomy.json", "preprocess.json"])
def test_a_key_twice_is_refused(name: str, folder: Path) -> None:
    text = (folder / name).read_text()
    key = next(iter(json.loads(text)))
    doubled = text.replace("{", '{"' + key + '": 0, ', 1).encode()
    if name == "manifest.json":
        (folder / name).write_bytes(doubled)
    else:
        _rewrite(folder, name, doubled)
    with pytest.raises(BundleError, match="twice"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("card.md"),
        lambda files: files.update({"model.pkl": files["card.md"]}),
        lambda files: files.update({"../car/card.md": files["card.md"]}),
        lambda files: files.update({"/etc/passwd": files["card.md"]}),
        lambda files: files.update({"card.md": None}),
        lambda files: files.update({"card.md": {}}),
        lambda files: files.update({"card.md": {"sha256": ["x"]}}),
        lambda files: files.update({"CARD.MD": files.pop("card.md")}),
    ],
)
def test_another_listing_is_refused(change: Callable[[dict[str, Any]], Any], folder: Path) -> None:
    listing = json.loads((folder / "manifest.json").read_bytes())
    change(listing["files"])
    (folder / "manifest.json").write_text(json.dumps(listing))
    with pytest.raises(BundleError):
        read_bundle(folder)


def test_files_that_are_not_listed_are_not_read(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x02cos\nsystem\n")
    assert read_bundle(folder).name == "car"


@pytest.mark.parametrize("name", ["card.md", "config.json", "manifest.json"])
def test_oversized_texts_are_refused_before_they_are_read(name: str, folder: Path) -> None:
    os.truncate(folder / name, 33 * 2**20)  # sparse
    with pytest.raises(BundleError, match="too large"):
        read_bundle(folder)


def test_oversized_weights_are_refused_before_they_are_read(folder: Path) -> None:
    os.truncate(folder / "weights.safetensors", 3 * 2**30)  # sparse
    with pytest.raises(BundleError, match="too large"):
        read_bundle(folder)


@pytest.mark.parametrize("field", ["format", "version"])
@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
@pytest.mark.parametrize("value", [2, None, "other"])
def test_other_versions_are_refused(field: str, name: str, value: object, folder: Path) -> None:
    if name == "manifest.json":
        listing = json.loads((folder / name).read_bytes())
        (folder / name).write_text(json.dumps(listing | {field: value}))
    else:
        _edit(folder, name, **{field: value})
    with pytest.raises(BundleError, match="format or version"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"backbone": 3},
        {"backbone": "no_such_network"},
        {"backbone": "hf-hub:timm/resnet18.a1_in1k"},
        {"backbone": "local-dir:/tmp"},
        {"classes": CLASSES + 1},
        {"classes": 0},
        {"classes": 10**12},
        {"classes": "3"},
        {"classes": True},
        {"heads": "other"},
        {"mean": [0.5, 0.5]},
        {"mean": ["a", "b", "c"]},
        {"mean": None},
        {"std": [0.5, 0.5, 0.0]},
        {"std": [0.5, 0.5, float("nan")]},
        {"standardise": 1},
        {"standardise": "yes"},
        {"temperature": 0},
        {"temperature": float("inf")},
        {"temperature": "1"},
        {"temperature": True},
        {"backbone_options": {"checkpoint_path": "evil.pth"}},
        {"backbone_options": {"pretrained_cfg": {"file": "evil.pth"}}},
        {"backbone_options": {"drop_rate": "x"}},
        {"backbone_options": []},
        {"no_such_field": 1},
    ],
)
def test_a_config_that_lies_is_refused(changes: dict[str, Any], folder: Path) -> None:
    _edit(folder, "config.json", **changes)
    with pytest.raises(BundleError):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["kind", "backbone", "classes", "mean"])
def test_a_config_without_its_fields_is_refused(name: str, folder: Path) -> None:
    document = json.loads((folder / "config.json").read_bytes())
    del document[name]
    _rewrite(folder, "config.json", json.dumps(document).encode())
    with pytest.raises(BundleError):
        read_bundle(folder)


@pytest.mark.parametrize("options", [{"output_stride": 7}, {"act_layer": "nonsense"}, {"window_size": 0}])
def test_options_that_build_no_network_are_the_bundles_fault(options: dict[str, Any], folder: Path) -> None:
    _edit(folder, "config.json", backbone_options=options)
    with pytest.raises(BundleError, match=r"config\.json of car"):
        read_bundle(folder).network()


@pytest.mark.parametrize("data", [b"", b"junk", b"\xff" * 100, (10**9).to_bytes(8, "little") + b"{}"])
def test_weights_that_are_no_tensors_are_refused(data: bytes, folder: Path) -> None:
    _rewrite(folder, "weights.safetensors", data)
    with pytest.raises(BundleError, match="malformed"):
        read_bundle(folder)


def test_weights_of_another_network_are_refused(folder: Path, bundle: Bundle) -> None:
    for change in ({"fc.weight": torch.zeros(1)}, {"extra": torch.zeros(1)}):
        _rewrite(folder, "weights.safetensors", save({**bundle.tensors, **change}))
        with pytest.raises(BundleError, match="do not fit"):
            read_bundle(folder).network()


def test_a_card_that_is_no_text_is_refused(folder: Path) -> None:
    _rewrite(folder, "card.md", b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="malformed"):
        read_bundle(folder)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path, Path(__file__)):
        with pytest.raises(BundleError):
            read_bundle(place)


def test_a_spec_is_checked_where_it_is_made_too() -> None:
    with pytest.raises(ConfigError, match="kind"):
        ModelSpec("other", "test_resnet", 3)  # type: ignore[arg-type]


# --- no code from data


def _sources() -> list[Path]:
    return sorted(Path(vmmr.__file__).parent.rglob("*.py"))


def test_nothing_in_the_package_runs_code_from_data() -> None:
    banned_modules = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "_pickle"}
    banned_calls = {"eval", "exec", "compile", "__import__"}
    banned_attributes = {("torch", "load"), ("torch", "hub"), ("numpy", "load"), ("np", "load"), ("os", "system")}
    assert len(_sources()) > 40
    found = []
    for source in _sources():
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                names = []
            if any(name.split(".")[0] in banned_modules or name == "torch.load" for name in names):
                found.append((source.name, node.lineno, names))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in banned_calls:
                found.append((source.name, node.lineno, node.func.id))
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and (node.value.id, node.attr) in banned_attributes
            ):
                found.append((source.name, node.lineno, f"{node.value.id}.{node.attr}"))
            if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
                keep = isinstance(node.value, ast.Constant) and node.value.value is False
                if not keep:
                    found.append((source.name, node.lineno, node.arg))
    assert found == []
