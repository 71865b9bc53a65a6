"""Examples run and show what they say; the Python of the README answers as it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vmmr.data.preprocess import Preprocess
from vmmr.export.bundle import Bundle, ModelSpec, build_network, write_bundle
from vmmr.models import Backbone
from vmmr.noise import OPS
from vmmr.taxonomy import Taxonomy

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))


def _names(stem: str) -> dict[str, Any]:
    """What an example defines, without running its main."""
    (path,) = (path for path in EXAMPLES if path.stem == stem)
    return runpy.run_path(str(path))


def test_no_example_is_left_out_of_this_file() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.stem for path in EXAMPLES if f'_names("{path.stem}")' not in text] == []
    assert [path.stem for path in EXAMPLES if len(path.read_text(encoding="utf-8").splitlines()) >= 100] == []


def test_plain_loop_takes_the_four_published_steps(capsys: pytest.CaptureFixture[str]) -> None:
    history = _names("plain_loop_pmal")["main"](batches=2)
    restoring = [f"{kind}_{depth}" for depth in (1, 2, 3) for kind in ("noisy", "restore", "restored")]
    assert [list(seen) for seen in history] == 2 * [[*restoring, "head_1", "head_2", "head_3", "trunk"]]
    # The lean decoder starts as the identity: the first restoration error is the mean size of noise of sigma U(0, .05).
    assert 0.01 < history[0]["restore_1"] < 0.03
    assert history[1]["restore_1"] != history[0]["restore_1"]
    assert "batch 1: noisy_1" in capsys.readouterr().out


def test_balanced_losses_end_alike(capsys: pytest.CaptureFixture[str]) -> None:
    history = _names("balanced_losses")["main"]("avgnorm")
    assert [list(weights) for weights in history] == [
        ["make", "model", "year"],
        ["make", "model"],
        ["make", "model", "year"],
    ]
    lengths = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    for batch in (lengths[:3], lengths[3:5], lengths[5:]):
        assert batch == pytest.approx([batch[0]] * len(batch), abs=2e-4)


def test_make_and_model_end_as_one_answer(capsys: pytest.CaptureFixture[str]) -> None:
    shares = _names("make_and_model")["main"]("conditional", batches=2, images=48)
    assert shares["consistency"] == 1
    printed = capsys.readouterr().out
    assert f"joint {shares['joint']:.2f}, consistency 1.00" in printed
    said = [int(count) for count in re.findall(r"said at \w+: (\d+) of 8", printed)]
    assert len(said) == 2
    assert sum(said) <= 8


def test_noise_strip_draws_what_it_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "strip.png"
    names = ("rain", "downscale", "gaussian")
    strip = _names("noise_strip")["main"](picture, names=names, size=32)
    assert strip.shape == (3, 6, 3, 32, 32)
    assert torch.equal(strip[0, 0], strip[2, 0])  # severity 0 is the clean image, bit for bit
    errors = (strip - strip[:, :1]).square().mean(dim=(2, 3, 4))
    assert (errors.diff(dim=1) > 0).all()  # and every level is worse than the one before
    with Image.open(picture) as drawn:
        assert drawn.size == (6 * 32, 3 * 32)
        assert drawn.getpixel((5, 7)) == tuple((strip[0, 0, :, 7, 5] * 255).round().int().tolist())
    assert set(names) < set(OPS)
    assert capsys.readouterr().out.count("dB") == 3


def test_own_backbone_stops_early(capsys: pytest.CaptureFixture[str]) -> None:
    names = _names("own_backbone")
    found = names["taps"]("mobilenetv3_small_050", size=64)
    assert [tap.stride for tap in found] == [8, 16, 32]
    assert [tap.shape[2:] for tap in found] == [(8, 8), (4, 4), (2, 2)]
    assert 0 < found[0].share < found[1].share < found[2].share <= 1
    names["main"](["mobilenetv3_small_050"])
    assert "depth 3: stride 32, map (1, 288, 2, 2)" in capsys.readouterr().out


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that the README speaks of: an untrained student, and three files."""
    monkeypatch.chdir(tmp_path)
    taxonomy = Taxonomy.from_rows(["Rostad"] * 4, ["Togo", "Bomont", "Togo", "Kira"], [2012, 2011, 2016, 2013])
    spec = ModelSpec("plain", "mobilenetv3_small_050", len(taxonomy))
    network = build_network(spec)
    assert isinstance(network, Backbone)
    tensors = network.model.state_dict()
    write_bundle(Path("runs/student/bundle"), Bundle(spec, taxonomy, Preprocess(32, 32), tensors, "# untrained"))
    for name in ("car.jpg", "van.jpg"):
        Image.new("RGB", (40, 30), (200, 30, 30)).save(name)
    Path("broken.jpg").write_bytes(b"\xff\xd8\xff and no more")


@pytest.mark.usefixtures("student")
def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["answer"].make == "Rostad"
    assert len(names["answer"].alternatives) == 3
    assert [len(answer.alternatives) for answer in names["both"]] == [2, 2]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] == str(names["answer"])
    assert lines[3].startswith("broken.jpg is corrupt or truncated")
