"""The page in a real browser, under its own content security policy."""

from __future__ import annotations

import base64
import re
import shutil
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from .conftest import Server, Start

STYLE = Path(__file__).parents[2] / "src" / "vmmr" / "serving" / "page" / "page.css"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium here")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, fake: Server) -> Iterator[Page]:
    """The page; whatever it complains of, or fetches from elsewhere, fails the test."""
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if "status of" not in said.text else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    here = f"http://127.0.0.1:{fake.port}/"
    page.on("request", lambda asked: None if asked.url.startswith((here, "data:")) else wrong.append(asked.url))
    page.goto(here)
    yield page
    page.close()
    assert wrong == []


def picture(tmp_path: Path, name: str = "car.png", size: tuple[int, int] = (64, 48)) -> Path:
    pixels = np.random.default_rng(0).integers(90, 160, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path / name


def answered(page: Page, place: int = 0) -> Any:
    """The answer of a card, once it is there."""
    answer = page.locator(".answer[aria-busy=false]").nth(place)
    answer.wait_for(timeout=30_000)
    return answer


def test_a_picture_gets_the_answer_of_the_interface(page: Page, fake: Server, tmp_path: Path) -> None:
    car = picture(tmp_path)
    [said] = fake.post("/v1/recognize", car.read_bytes()).json()["results"]
    page.set_input_files("#files", [car])
    answer = answered(page)
    expect(answer.locator("h2")).to_have_text(f"{said['make']} null 2012")  # the original file, byte for byte
    expect(answer.locator(".state")).to_have_text("Recognised")
    expect(answer.locator(".sure b")).to_have_text("75.0 %")
    assert answer.locator(".others li").all_inner_texts() == ["Other Car\n25.0 %"] * 4
    expect(page.locator("#said")).to_have_text(f"{said['make']} null 2012, 75.0 %. Recognised.")
    expect(page.locator("#model")).to_have_text("Model vmmr, version fake.")
    widths = [bar.bounding_box() for bar in answer.locator(".bar i").all()[:2]]
    assert widths[0]["width"] > 2 * widths[1]["width"] > 0  # type: ignore[index]


@pytest.mark.parametrize("kind", ["Noise", "Blur", "JPEG", "Fewer pixels"])
def test_the_slider_makes_it_worse_and_asks_again(page: Page, tmp_path: Path, kind: str) -> None:
    page.set_input_files("#files", [picture(tmp_path)])
    title = answered(page).locator("h2")
    clean, seen = title.inner_text(), page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    page.locator(".kinds label", has_text=kind).click()
    page.locator("input[type=range]").fill("60")
    expect(title).not_to_have_text(clean)
    expect(page.locator("output")).to_have_text("60 %")
    expect(page.locator(".why")).to_contain_text(f"as it is, the picture gives {clean}")
    worse = title.inner_text()
    assert page.locator("canvas").evaluate("canvas => canvas.toDataURL()") != seen
    page.locator("input[type=range]").fill("0")
    expect(title).to_have_text(clean)
    assert page.locator("canvas").evaluate("canvas => canvas.toDataURL()") == seen
    page.locator("input[type=range]").fill("60")
    expect(title).to_have_text(worse)  # the same noise, not a new one


def test_the_noise_is_gaussian_and_the_blur_smooths(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (128, 128), (128, 128, 128)).save(tmp_path / "grey.png")
    page.set_input_files("#files", [tmp_path / "grey.png"])
    answered(page)
    title = page.locator("h2")

    def pixels(kind: str, much: str) -> Any:
        before = title.inner_text()
        page.locator(".kinds label", has_text=kind).click()
        page.locator("input[type=range]").fill(much)
        expect(title).not_to_have_text(before)
        data = page.locator("canvas").evaluate("c => [...c.getContext('2d').getImageData(0, 0, 128, 128).data]")
        return np.reshape(data, (128, 128, 4))[..., :3] - 128.0

    noisy = pixels("Noise", "20")  # sigma = 0.2 * 0.6 * 255
    assert noisy.std() == pytest.approx(30.6, rel=0.02)
    assert abs(noisy.mean()) < 1
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.03
    halves = Image.new("RGB", (128, 128))
    halves.paste((255, 255, 255), (64, 0, 128, 128))
    halves.save(tmp_path / "halves.png")
    page.locator(".close").click()
    page.set_input_files("#files", [tmp_path / "halves.png"])
    answered(page)
    row = pixels("Blur", "50")[64, :, 0] + 128
    assert (np.diff(row) >= 0).all()
    assert 1 < np.diff(row).max() < 80  # of 255 before
    assert row[0] == 0
    assert row[-1] == 255


def colour_of(car: bytes) -> list[int]:
    """Of the picture that the fake denoiser draws."""
    number = zlib.crc32(car)
    return [number & 255, number >> 8 & 255, number >> 16 & 255]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_what_a_denoiser_makes_of_it_stands_beside_it(
    browser: Browser, start: Start, tmp_path: Path, width: int
) -> None:
    server = start(worker={"restores": True})
    page = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"http://127.0.0.1:{server.port}/")
    car = picture(tmp_path)
    page.set_input_files("#files", [car])
    drawn = """async picture => {
      await picture.decode();
      const canvas = document.createElement("canvas");
      canvas.getContext("2d").drawImage(picture, 0, 0);
      return [...canvas.getContext("2d").getImageData(9, 9, 1, 1).data].slice(0, 3);
    }"""
    restored = page.locator(".restored img")
    expect(restored).to_be_visible()
    assert restored.evaluate(drawn) == colour_of(car.read_bytes())
    left, right = (page.locator(f".pane {kind}").bounding_box() for kind in ("canvas", "img"))
    assert left is not None
    assert right is not None
    assert (left["y"], left["width"], left["height"]) == (right["y"], right["width"], right["height"])  # side by side
    assert left["x"] + left["width"] <= right["x"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    before = restored.get_attribute("src")
    page.locator("input[type=range]").fill("60")
    expect(restored).not_to_have_attribute("src", before or "")
    shown = page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    sent = base64.b64decode(shown.removeprefix("data:image/png;base64,"))
    assert restored.evaluate(drawn) == colour_of(sent)  # of the noisy picture beside it
    page.route("**/v1/restore", lambda route: route.fulfill(status=500, json={}))
    page.locator("input[type=range]").fill("70")
    expect(restored).not_to_be_visible()  # rather than that of another picture
    expect(page.locator(".state")).to_have_text("Recognised")
    page.close()
    assert [text for text in wrong if "status of 500" not in text] == []


def test_without_a_denoiser_there_is_no_place_for_it(page: Page, tmp_path: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_input_files("#files", [picture(tmp_path)])
    expect(answered(page).locator(".state")).to_have_text("Recognised")
    expect(page.locator(".restored")).not_to_be_visible()
    expect(page.locator(".caption").first).not_to_be_visible()
    page.locator("input[type=range]").fill("60")
    expect(page.locator(".why")).to_contain_text("has changed")
    assert not any("restore" in url for url in asked)


def test_what_is_no_picture_says_so(page: Page, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"BAD picture")
    with page.expect_response("**/v1/recognize*") as response:
        page.set_input_files("#files", [tmp_path / "a.txt"])
    assert response.value.status == 422
    answer = answered(page)
    expect(answer.locator(".state")).to_have_text("No answer")
    expect(answer.locator(".why")).to_contain_text("No acceptable picture")
    page.locator("figure").wait_for(state="hidden")


def test_drop_paste_and_camera(page: Page, tmp_path: Path) -> None:
    data = list(picture(tmp_path).read_bytes())
    script = """([kind, data]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(data)], "a.png", {type: "image/png"}));
      dispatchEvent(kind === "paste" ? new ClipboardEvent("paste", {clipboardData: transfer})
                                     : new DragEvent(kind, {dataTransfer: transfer, cancelable: true}));
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(script, [kind, data])
        expect(page.locator(".card")).to_have_count(count)
        answered(page, count - 1)
    page.click("#camera")
    page.click("#shoot", timeout=30_000)
    expect(page.locator(".card")).to_have_count(3, timeout=30_000)
    expect(page.locator("dialog")).not_to_be_visible()
    expect(answered(page, 2).locator("h2")).not_to_be_empty()
    assert page.locator("video").evaluate("video => video.srcObject") is None


def test_the_keyboard_is_enough(page: Page, tmp_path: Path) -> None:
    page.set_input_files("#files", [picture(tmp_path)])
    title = answered(page).locator("h2")
    clean = title.inner_text()
    page.locator("body").click(position={"x": 1, "y": 1})
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        found = page.evaluate(
            "[document.activeElement.id || document.activeElement.type, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(found[0])
        if found[0] == "range":
            break
    assert reached[-1] == "range", reached
    assert {"files", "camera", "radio"} <= set(reached)
    page.keyboard.press("PageUp")
    page.keyboard.press("PageUp")
    expect(title).not_to_have_text(clean)
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".kinds :checked")).to_have_value("Blur")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".card")).to_have_count(0)


def fulfil(document: Any, route: Route) -> None:
    route.fulfill(json=document)


DOUBTS = {
    "unknown_vehicle": ("Unknown vehicle", "no vehicle that it has learned"),
    "not_a_vehicle": ("Not a vehicle", "unlike any vehicle"),
    "too_small": ("Too small", "too few pixels"),
    "low_quality": ("Bad picture", "too bad to tell"),
}


def test_unsure_answers_give_their_reason(page: Page, tmp_path: Path) -> None:
    """What a network with levels says, as its server would."""
    car = {"make": "Audi", "model": "A4", "year": 2012, "confidence": 0.4}
    told = [
        {"level": "make", "value": "Audi", "confidence": 0.9},
        {"level": "class", "value": "Audi A4 2012", "confidence": 0.4},
    ]
    base = {"make": "Audi", "model": "", "year": None, "confidence": 0.9, "alternatives": [car], "levels": told}
    answers = [
        {**base, "level": "make"},
        {**base, "level": "", "make": "", "confidence": 0.4},
        {**base, **car, "level": "class", "confidence": 0.9},
        {**base, **car, "level": "class", "levels": []},
        *({**base, **car, "level": "class", "confidence": 0.9, "known": False, "reason": reason} for reason in DOUBTS),
    ]
    wanted = [
        ("Sure of the make alone", "Audi", "the likeliest is Audi A4 2012, at 40.0 %"),
        ("Unsure", "I cannot tell", "not even its make"),
        ("Sure of make, model and year", "Audi A4 2012", ""),
        ("A guess", "Audi A4 2012", "more likely than not"),
        *((told, "Audi A4 2012", why) for told, why in DOUBTS.values()),
    ]
    for answer, (state, title, why) in zip(answers, wanted, strict=True):
        document = {"model": {"name": "a", "version": "b"}, "results": [answer]}
        page.route("**/v1/recognize*", partial(fulfil, document))
        page.set_input_files("#files", [picture(tmp_path)])
        found = answered(page)
        expect(found.locator(".state")).to_have_text(state)
        expect(found.locator("h2")).to_have_text(title)
        expect(found.locator(".why")).to_contain_text(why)
        page.locator(".close").click()
        page.unroute("**/v1/recognize*")


def test_a_busy_server_is_asked_again(page: Page, tmp_path: Path) -> None:
    asked = []

    def busy(route: Any) -> None:
        asked.append(route)
        if len(asked) == 1:
            route.fulfill(
                status=503, headers={"retry-after": "1"}, json={"error": {"code": "overloaded", "message": ""}}
            )
        else:
            route.continue_()

    page.route("**/v1/recognize*", busy)
    page.set_input_files("#files", [picture(tmp_path)])
    expect(answered(page).locator(".state")).to_have_text("Recognised")
    assert len(asked) == 2


def test_a_token_is_asked_for(browser: Browser, start: Start, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    token.chmod(0o600)
    server = start(token_file=str(token))
    page = browser.new_page()
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.set_input_files("#files", [picture(tmp_path)])
    for given in ("wrong-horse-battery", "correct-horse-battery"):
        page.locator("#secret").wait_for()
        expect(page.locator("#secret")).to_have_value("")
        page.fill("#secret", given)
        page.keyboard.press("Enter")
    expect(answered(page).locator(".state")).to_have_text("Recognised")
    page.close()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_stands_at_every_width(page: Page, tmp_path: Path, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.set_input_files("#files", [picture(tmp_path), picture(tmp_path, "tall.png", (40, 400))])
    answered(page, 1)
    wide = """() => [...document.querySelectorAll("body *")].filter(e => !e.matches("option, .unseen, .skip, input")
      && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(wide) == []
    for button in page.locator(".button:visible, .kinds label:visible, .close:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= (38 if width < 700 else 32)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    parts = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_colour_can_be_read(scheme: int) -> None:
    """WCAG AA: 4.5 for text."""
    block = STYLE.read_text(encoding="utf-8").split(":root {")[1 + scheme].split("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    texts = ("ink", "muted", "accent", "right", "unsure", "wrong")
    pairs = [(text, ground) for text in texts for ground in ("paper", "panel")]
    for text, ground in [*pairs, ("on-accent", "accent")]:
        low, high = sorted([luminance(colours[text]), luminance(colours[ground])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_what_the_server_does_not_read_is_sent_as_png(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (9, 99, 199)).save(tmp_path / "a.bmp")
    page.set_input_files("#files", [tmp_path / "a.bmp"])
    title = answered(page).locator("h2").inner_text()
    shown = page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
    sent = base64.b64decode(shown.removeprefix("data:image/png;base64,"))
    assert title == f"{zlib.crc32(sent):08x} null 2012"
