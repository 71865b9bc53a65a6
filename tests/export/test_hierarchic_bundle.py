"""Bundles that answer levels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vmmr.data.preprocess import Preprocess
from vmmr.errors import BundleError, ConfigError
from vmmr.export.bundle import Bundle, ModelSpec, build_network, read_bundle, write_bundle
from vmmr.levels import HierarchySpec
from vmmr.taxonomy import Taxonomy

CARS = Taxonomy.from_rows(["Audi", "Audi", "VW"], ["A4", "A6", "Golf"])
LEVELS = HierarchySpec(
    ("make", "class", "body"),
    {"body": ("SUV", "Sedan")},
    form="conditional",
    taps="shallow_first",
    beta=0.5,
    thresholds={"make": 0.6, "class": 0.8},
)


def _bundle(kind: Any = "plain", levels: HierarchySpec = LEVELS) -> Bundle:
    torch.manual_seed(0)
    spec = ModelSpec(kind, "test_resnet", len(CARS), hierarchy=levels)
    tensors = build_network(spec, CARS).state_dict()
    return Bundle(spec, CARS, Preprocess(height=32, width=32), tensors, "# A card\n")


@pytest.mark.parametrize("kind", ["plain", "progressive"])
@pytest.mark.parametrize("form", ["parallel", "coarse_to_fine", "fine_to_coarse", "conditional"])
def test_what_is_written_is_read(kind: str, form: Any, tmp_path: Path) -> None:
    bundle = _bundle(kind, replace(LEVELS, form=form, feed="embedding"))
    found = read_bundle(write_bundle(tmp_path / "car", bundle))
    assert found.spec == bundle.spec
    assert not any("parents" in name for name in found.tensors)  # those are the taxonomy's
    image = 2 * torch.rand(2, 3, 32, 32) - 1
    with torch.no_grad():
        ours = build_network(bundle.spec, CARS).eval()
        ours.load_state_dict(bundle.tensors)
        assert torch.equal(found.network()(image)["logits_0"], ours(image)["logits_0"])


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["make", "wheels"]},
        {"names": ["make", "make", "class"]},
        {"names": ["body"]},
        {"names": "make"},
        {"names": [1]},
        {"names": None},
        {"attributes": {"body": "SUV"}},
        {"attributes": {"body": [1, 2]}},
        {"attributes": [["body", ["SUV"]]]},
        {"form": "other"},
        {"form": ["parallel"]},
        {"feed": None},
        {"taps": 1},
        {"beta": -1.0},
        {"beta": "1"},
        {"beta": True},
        {"beta": 1e999},
        {"thresholds": {"make": 0.5}},
        {"thresholds": {"make": 0.5, "class": "x"}},
        {"thresholds": ["abc"]},
        {"more": 1},
    ],
)
def test_levels_that_make_no_sense_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "car", _bundle())
    document = json.loads((folder / "config.json").read_bytes())
    document["hierarchy"] |= change
    _rewrite(folder, "config.json", json.dumps(document).encode())
    with pytest.raises(BundleError):
        read_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["make", "class"], "thresholds": {}},  # no values for a body that is not asked
        {"attributes": {}},
        {"attributes": {"body": ["SUV", "Sedan", "Van"]}},  # the weights have two
        {"names": ["make", "body"], "thresholds": {}},  # the taxonomy is finer
        {"form": "coarse_to_fine"},
    ],
)
def test_levels_that_fit_no_network_are_refused_when_it_is_built(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "car", _bundle())
    document = json.loads((folder / "config.json").read_bytes())
    document["hierarchy"] |= change
    _rewrite(folder, "config.json", json.dumps(document).encode())
    with pytest.raises(BundleError):
        read_bundle(folder).network()


def test_a_bundle_from_before_there_were_levels_still_reads(tmp_path: Path) -> None:
    spec = ModelSpec("plain", "test_resnet", len(CARS))
    tensors = build_network(spec).model.state_dict()  # type: ignore[union-attr]
    folder = write_bundle(tmp_path / "car", Bundle(spec, CARS, Preprocess(height=32, width=32), tensors, ""))
    document = json.loads((folder / "config.json").read_bytes())
    assert document.pop("hierarchy") is None
    _rewrite(folder, "config.json", json.dumps(document).encode())
    assert read_bundle(folder).spec == spec


def test_levels_need_their_taxonomy() -> None:
    with pytest.raises(ConfigError, match="taxonomy"):
        build_network(_bundle().spec)


def _rewrite(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    listing = json.loads((folder / "manifest.json").read_bytes())
    listing["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(listing))
