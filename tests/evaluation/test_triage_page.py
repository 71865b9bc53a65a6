from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from vmmr.evaluation.triage_page import SHOWN, Candidate, write_triage

COUNTS = {"pictures": 50, "failed": 0, "reasons": {"ok": 40, "unknown_vehicle": 10}, "strange": 10, "grouped": 7}


def candidate(number: int, **changes: Any) -> Candidate:
    shown = {f"pictures/<{number}>.jpg": np.full((300, 300, 3), 20 * number % 256, np.uint8)}
    given = {"members": [4, 2], "make": "", "votes": 0.5, "nearest": [("Audi A4", 0.25), ("BMW M3", 0.5)]}
    return Candidate(**{"number": number, **given, "spread": 0.125, "within": 0.2, "pictures": shown, **changes})  # type: ignore[arg-type]


def write(folder: Path, candidates: list[Candidate]) -> str:
    return write_triage(folder / "triage.html", COUNTS, candidates, {"Bundle": "cars"}).read_text(encoding="utf-8")


def test_the_page_says_what_a_candidate_is(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    text = write(tmp_path, [candidate(1, make="Audi", votes=0.75, members=[5, 6, 7, 1]), candidate(2, within=0.25)])
    page = parse(text)
    assert ["candidate 001", "4", "Audi", "Audi A4", "0.25", "0.12"] in page.rows
    assert ["candidate 002", "2", "–", "Audi A4", "0.25", "0.12"] in page.rows
    assert ["unknown vehicle", "10", "20.0 %"] in page.rows
    words = " ".join(page.words)
    assert "75.0 % answered as Audi" in words
    assert words.count("Perhaps Audi A4 itself.") == 1  # of the second, which is as near as a group may be wide
    assert "<1>" in words
    assert "<1>" not in text
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["#candidate-1", "#candidate-2"]
    assert {f"#{attrs['id']}" for _, attrs in page.tags if attrs.get("id")} >= set(links)


def test_nothing_comes_from_elsewhere(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    page = parse(write(tmp_path, [candidate(3)]))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    loaded = [attrs[key] or "" for tag, attrs in page.tags for key in ("src", "href") if key in attrs and tag != "a"]
    assert loaded
    assert all(url.startswith("data:") for url in loaded)
    [uri] = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    image = Image.open(io.BytesIO(base64.b64decode((uri or "").split(",")[1])))
    assert (image.size, image.format) == ((200, 200), "JPEG")
    assert abs(int(np.asarray(image).mean()) - 60) < 3


def test_only_the_largest_are_shown(tmp_path: Path, parse: Callable[[str], Any]) -> None:
    page = parse(write(tmp_path, [candidate(number) for number in range(1, SHOWN + 4)]))
    assert sum(tag == "img" for tag, _ in page.tags) == sum(tag == "a" for tag, _ in page.tags) == SHOWN
    assert [row[0] for row in page.rows].count(f"candidate {SHOWN + 3:03}") == 1


def test_the_keyboard_reaches_every_candidate(tmp_path: Path) -> None:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium here")
    write(tmp_path, [candidate(1), candidate(2), candidate(3)])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 700})
        page.goto((tmp_path / "triage.html").as_uri())
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            focus = (
                "[document.activeElement.tagName, document.activeElement.getAttribute('href'), "
                "getComputedStyle(document.activeElement).outlineStyle]"
            )
            reached.append(page.evaluate(focus))
            if reached[-1][1] == "#candidate-3":
                page.keyboard.press("Enter")
                break
        assert [href for tag, href, _ in reached if tag == "A"] == [f"#candidate-{k}" for k in (1, 2, 3)]
        assert all(outline == "solid" for tag, _, outline in reached if tag == "A")
        assert page.evaluate("location.hash") == "#candidate-3"
        assert page.locator("#candidate-3").bounding_box()["y"] < 700  # type: ignore[index]
        browser.close()
