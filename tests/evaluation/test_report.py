"""The report: whole in one file, saying what the results say, safe from what they are called."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmmr.errors import ConfigError
from vmmr.evaluation.conditions import condition_title
from vmmr.evaluation.examples import Example, Reply, picture_uri
from vmmr.evaluation.report import under_noise, write_report
from vmmr.evaluation.robustness import noise_curve
from vmmr.noise import HELD_OUT_OPS

HOSTILE = '<script>alert("x")</script><img src=http://example.org/x onerror=alert(1)> & \'"'


def _results(**models: float) -> dict[str, Any]:
    """Results in which each model has its clean accuracy, and loses a little more in every further condition."""
    models = models or {"plain": 0.8125, "teacher": 0.77, "student": 0.75}
    return {
        "title": "A comparison",
        "lead": "Some models.",
        "models": {
            name: {
                "title": name.capitalize(),
                "about": f"about {name}",
                "parameters": 1_234_567 + k,
                "macs": 16_400_000,
                "train_seconds": 45.2,
                "history": [{"epoch": e, "val_top1": clean * (e + 1) / 3} for e in range(3)],
                "conditions": {
                    c: {"top1": clean * (1 - 0.01 * j * (3 - k)), "top5": 1.0} for j, c in enumerate(noise_curve())
                },
            }
            for k, (name, clean) in enumerate(models.items())
        },
        "parts": [{"name": "train plain", "seconds": 12.3, "cpu_seconds": 23.4, "peak_gib": 0.75}],
        "facts": {"Seed": 0},
        "notes": ["one seed"],
    }


def _example(truth: str) -> Example:
    ramp = np.broadcast_to(np.arange(24, dtype=np.uint8)[:, None, None] * 10, (24, 24, 3)).copy()
    reply = {"plain": Reply(truth, 0.625, True), "student": Reply("other", 0.25, False)}
    return Example("fog@3", truth, ramp, ramp + 1, ramp + 2, reply)


def test_every_number_is_on_the_page(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    results = _results()
    page = parse(write_report(tmp_path / "report.html", results).read_text(encoding="utf-8"))
    rows = {row[0]: row[1:] for row in page.rows}
    for name in noise_curve():
        expected = [f"{100 * model['conditions'][name]['top1']:.1f} %" for model in results["models"].values()]
        assert rows[condition_title(name)] == expected
    assert rows["Plain"] == ["1,234,567", "16.4 million", "45 s"]
    assert rows["train plain"] == ["12.3", "23.4", "0.75 GiB"]
    for model in results["models"].values():
        assert f"{100 * under_noise(model['conditions']):.1f} %" in page.words


def test_held_out_corruptions_stand_apart(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    page = parse(write_report(tmp_path / "report.html", _results()).read_text(encoding="utf-8"))
    first = [row[0] for row in page.rows]
    held = first[first.index("Never seen in training") + 1 :][: len(HELD_OUT_OPS)]
    assert held == [condition_title(f"{name}@3") for name in HELD_OUT_OPS]
    assert "never seen in training" in page.words  # in the figure as well


def test_the_page_is_whole_and_runs_nothing(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    path = write_report(tmp_path / "report.html", _results(), [_example("Morvane Mira 2013")])
    text = path.read_text(encoding="utf-8")
    page = parse(text)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith(("data:", "#"))
    assert not re.search(r"@import|url\((?!#)", text)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    targets = {v[1:] for _, a in page.tags for n, v in a.items() if n == "xlink:href" and v and v.startswith("#")}
    assert targets <= set(names)  # markers still find their shapes


def test_colours_follow_the_page(tmp_path: Path) -> None:
    text = write_report(tmp_path / "report.html", _results()).read_text(encoding="utf-8")
    figures = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert {f"var(--series-{i})" for i in range(3)} <= set(re.findall(r"var\(--series-\d\)", figures))
    assert not re.search(r"#0[1-4]0[1-4]0\d", figures)  # no stand-in is left
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_hostile_names_stay_text(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    results = _results()
    results["models"]["plain"]["title"] = HOSTILE
    results["facts"][HOSTILE] = HOSTILE
    page = parse(
        write_report(tmp_path / "report.html", results, [_example(HOSTILE)]).read_text(encoding="utf-8").strip()
    )
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in page.tags if tag == "img")
    assert page.words.count(HOSTILE) >= 4  # card, table, figure, example


def test_a_picture_survives_its_uri() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    kind, _, data = picture_uri(image).partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as found:
        np.testing.assert_array_equal(np.asarray(found), image)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    first = write_report(tmp_path / "a.html", _results(), [_example("x")]).read_bytes()
    assert write_report(tmp_path / "b.html", _results(), [_example("x")]).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_one_model_is_enough_and_none_is_refused(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    page = parse(write_report(tmp_path / "report.html", _results(plain=0.5)).read_text(encoding="utf-8"))
    assert "50.0 %" in next(row for row in page.rows if row[0] == "clean")
    with pytest.raises(ConfigError, match="a few models"):
        write_report(tmp_path / "none.html", {"models": {}})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(tmp_path: Path, scheme: str) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no chromium here")
    report = write_report(tmp_path / "report.html", _results(), [_example(HOSTILE)])
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    colours = [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
    command = [browser, *options, *colours, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1000,1800"]
    done = subprocess.run(
        [*command, f"--screenshot={picture}", report.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("RGB"))
    assert shown.shape == (1800, 1000, 3)
    background = {"light": (255, 255, 255), "dark": (17, 20, 24)}[scheme]
    assert tuple(shown[5, 5]) == background
    assert 0.02 < (shown != background).any(axis=2).mean() < 0.6  # text and figures, on mostly paper
    lines = {"light": [(180, 83, 10), (22, 96, 196), (11, 125, 91)], "dark": [(255, 157, 87), (111, 176, 255)]}
    for colour in lines[scheme]:
        assert (shown == colour).all(axis=2).sum() > 500
