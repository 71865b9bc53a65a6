"""The pages in a real browser: nothing runs off the page, nothing is empty, light is not dark, print hides nothing.

The pages hold no scripts; a page of this test opens each in frames of several widths and measures what it finds.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmmr.evaluation.compare import write_comparison
from vmmr.evaluation.examples import Example, Reply
from vmmr.evaluation.study import analysed
from vmmr.evaluation.study_page import write_study
from vmmr.evaluation.triage_page import Candidate, write_triage

WIDTHS = {"phone": 360, "desktop": 1280, "print": 688}  # A4 less margins of 14 mm
MEASURE = """
<!doctype html><meta charset="utf-8"><body>%s<pre id="found"></pre><script>
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow, width = frame.clientWidth;
    const wide = [], empty = [], hidden = [], body = view.getComputedStyle(page.body);
    for (const element of page.body.querySelectorAll("*")) {
      const style = view.getComputedStyle(element), box = element.getBoundingClientRect();
      const drawn = element.closest("svg"), scrolled = element.closest(".scroll, .wide") ?? drawn;
      const told = element.outerHTML.slice(0, 80);
      const seen = style.display !== "none" && style.visibility === "visible" && style.opacity > 0.3;
      if ((!scrolled || scrolled === element) && (box.right > width + 1 || box.left < -1)) wide.push(told);
      if (element.matches("figure, img, svg") && (box.width < 40 || box.height < 40)) empty.push(told);
      if (element.textContent.trim() && !drawn && !(seen && box.width * box.height > 0)) hidden.push(told);
    }
    found[frame.name] = {
      wide, empty, hidden, paper: body.backgroundColor, ink: body.color,
      scrolls: page.documentElement.scrollWidth > width,
      figures: page.querySelectorAll("figure svg").length,
      pictures: [...page.images].filter(image => image.naturalWidth > 0).length,
      cut: [...page.querySelectorAll(".scroll")].filter(part => part.scrollWidth > part.clientWidth + 1).length,
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it, of an rgb(...) colour."""
    parts = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def measure(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], dict[str, Any]]:
    """What the browser finds on a page in light or dark, by frame."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium here")
    home = tmp_path_factory.mktemp("browser")

    def run(page: Path, scheme: str) -> dict[str, Any]:
        printed = home / "print.html"
        text = page.read_text(encoding="utf-8")
        printed.write_text(text.replace("@media print", "@media all").replace("@media screen", "@media (width: 0)"))
        frames = [
            f'<iframe name="{name}" width="{width}" height="900" style="border: 0" '
            f'src="{html.escape((printed if name == "print" else page).as_uri())}"></iframe>'
            for name, width in WIDTHS.items()
        ]
        (home / "measure.html").write_text(MEASURE.replace("%s", "".join(frames)), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
        colours = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
        command = [browser, *options, "--enable-logging=stderr", colours, f"--user-data-dir={home / 'profile'}"]
        done = subprocess.run(
            [*command, "--dump-dom", (home / "measure.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        answer = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
        assert answer is not None
        found: dict[str, Any] = json.loads(html.unescape(answer[1]))
        return found

    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, document: Callable[..., dict[str, Any]]) -> Path:
    """Three models, one of a long name, with everything that a page may have."""
    long = "a_model_whose_name_goes_on_" * 3
    names = ("plain", long, "student")
    documents = {name: document(seed=k, progressive=k == 1, unknown=k == 0) for k, name in enumerate(names)}
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    replies = {name: Reply("Chevrolet Silverado 1500 Extended Cab 2012", 0.5, name == long) for name in documents}
    strips = [Example("gaussian_0.4", "Audi A4 2012", *noise, replies)] * 2
    pictures = {f"test/{k}.png": noise[0] for k in range(5)}
    return write_comparison(
        tmp_path_factory.mktemp("page") / "a page #1.html", documents, examples=strips, pictures=pictures
    )


def test_it_stands_at_every_width_and_in_print(page: Path, measure: Callable[[Path, str], dict[str, Any]]) -> None:
    light, dark = (measure(page, scheme) for scheme in ("light", "dark"))
    for frames in (light, dark):
        assert set(frames) == set(WIDTHS)
        for found in frames.values():
            assert found["wide"] == []
            assert not found["scrolls"]
            assert found["empty"] == []
            assert found["figures"] == 4 + 7 + 3
            assert found["pictures"] == 2 * 3 + 3 * 5
            assert contrast(found["paper"], found["ink"]) > 12
        assert frames["desktop"]["hidden"] == frames["print"]["hidden"] == []
    for name in ("phone", "desktop"):
        assert luminance(light[name]["paper"]) > 0.9
        assert luminance(dark[name]["paper"]) < 0.02
    assert dark["print"]["paper"] == light["print"]["paper"] == "rgb(255, 255, 255)"  # paper is white at night as well
    assert light["print"]["cut"] == light["desktop"]["cut"] == 0  # no column is out of sight


def test_a_study_stands_as_well(
    tmp_path: Path, study_document: dict[str, Any], measure: Callable[[Path, str], dict[str, Any]]
) -> None:
    write_study(tmp_path, analysed(study_document))
    for found in (frames := measure(tmp_path / "study.html", "dark")).values():
        assert found["wide"] == []
        assert not found["scrolls"]
        assert found["empty"] == []
        assert found["figures"] == 1 + 2 * 6 + 1  # every setting; lengths and cosines of six; imbalance
        assert contrast(found["paper"], found["ink"]) > 12
    assert frames["desktop"]["hidden"] == frames["print"]["hidden"] == []
    assert frames["desktop"]["cut"] == frames["print"]["cut"] == 0


def test_candidates_stand_as_well(tmp_path: Path, measure: Callable[[Path, str], dict[str, Any]]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    candidates = [
        Candidate(
            number=number,
            members=list(range(7 - number)),
            make="Mercedes-Benz" if number == 1 else "",
            votes=0.7,
            nearest=[("Chevrolet Silverado 1500 Extended Cab 2012", 0.2 * number), ("Audi A4 2012", 0.5)],
            spread=0.1,
            within=0.3,
            pictures={f"/to/a_picture_whose_name_goes_on_and_on_{k}.jpg": noise[k] for k in range(6 - number)},
        )
        for number in (1, 2)
    ]
    counts = {
        "pictures": 1200,
        "failed": 3,
        "reasons": {"ok": 1100, "unknown_vehicle": 97},
        "strange": 97,
        "candidates": 2,
        "grouped": 11,
        "distance": 0.3,
    }
    page = write_triage(tmp_path / "triage.html", counts, candidates, {"Bundle": "one of them"})
    for scheme in ("light", "dark"):
        frames = measure(page, scheme)
        for name, found in frames.items():
            assert found["wide"] == []
            assert not found["scrolls"]
            assert found["empty"] == []
            assert found["pictures"] == 5 + 4
            assert contrast(found["paper"], found["ink"]) > 12
            assert (luminance(found["paper"]) > 0.9) == (name == "print" or scheme == "light")
        assert frames["desktop"]["hidden"] == frames["print"]["hidden"] == []
        assert frames["desktop"]["cut"] == frames["print"]["cut"] == 0


@pytest.mark.parametrize("scheme", [":root {", "prefers-color-scheme: dark"])
def test_every_colour_can_be_read(page: Path, scheme: str) -> None:
    """WCAG AA: 4.5 for text, on the page and on its panels."""
    style = page.read_text(encoding="utf-8").split(scheme, 1)[1].split("}", 1)[0]
    colours = {
        name: f"rgb({int(v[:2], 16)}, {int(v[2:4], 16)}, {int(v[4:], 16)})"
        for name, v in re.findall(r"--([\w-]+): #(\w{6})", style)
    }
    assert {"paper", "panel", "ink", "muted", "line", "right", "wrong", "series-0", "series-5"} <= set(colours)
    for name, colour in colours.items():
        if name not in ("paper", "panel", "line"):
            assert contrast(colour, colours["paper"]) >= 4.5, name
            assert contrast(colour, colours["panel"]) >= 4.5, name
