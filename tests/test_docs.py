"""The site builds strictly: no broken link or anchor, no page left out; and it fetches nothing from elsewhere."""

from __future__ import annotations

import doctest
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "vmmr"
FACE = ("cli", "extend", "recipes")
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py") if path.parent.name not in FACE)
ENVIRONMENT = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}


def _build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", site]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once."""
    folder = tmp_path_factory.mktemp("site")
    done = _build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


class _Page(HTMLParser):
    """What a page is made of: ids, links, what the browser would load by itself, and its words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        if tag == "a":
            self.links.append(given.get("href", ""))
        elif tag == "link":
            self.loaded.append(given.get("href", ""))
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_docstrings_become_markdown() -> None:
    names = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    (example,) = doctest.DocTestFinder().find(names["as_markdown"], "as_markdown", globs=names)
    assert doctest.DocTestRunner().run(example) == (0, 1)


def test_docstrings_become_pages(site: Path) -> None:
    noise = _Page(site / "docs/methods/noise.html")
    assert {"vmmr.noise.blur.defocus", "vmmr.noise.codec.h264"} <= noise.ids
    assert "A lens out of focus: a disc of radius 3, 4, 6, 8, 10 px at 224 px (ImageNet-C)" in noise.words
    objectives = _Page(site / "docs/methods/objectives.html")
    assert "https://arxiv.org/abs/2401.14336" in objectives.links
    assert ">>> round(charbonnier(" in objectives.words  # a block of code, not a quotation
    assert "<blockquote>\n<blockquote>" not in (site / "docs/methods/objectives.html").read_text(encoding="utf-8")
    face = _Page(site / "docs/api.html")
    assert {f"vmmr.{name}" for name in ("load", "recognize", "Recognizer", "Answer", "Box", "VmmrError")} <= face.ids


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_of_a_room_is_on_its_page(site: Path, room: str) -> None:
    """Also the ones that are written next year: nobody has to list them."""
    modules = [path for path in (SOURCE / room).rglob("*.py") if path.read_text(encoding="utf-8").strip()]
    names = [".".join(path.relative_to(SOURCE.parent).with_suffix("").parts) for path in modules]
    assert len(names) > 4
    assert {name.removesuffix(".__init__") for name in names} - _Page(site / f"docs/methods/{room}.html").ids == set()


def test_links_lead_to_files_and_places(site: Path) -> None:
    """Read from the pages as they are, so that generated links count as well."""
    pages = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 20
    broken, inner = [], 0
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or not link:
                continue
            inner += 1
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].ids if target in pages else set()
            if not target.is_file() or (url.fragment and unquote(url.fragment) not in known | {"__tabbed", "__skip"}):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []
    assert inner > 1000
    example = "../examples/plain_loop_pmal.py"
    assert example in pages[site / "docs/architecture.html"].links
    shown = (site / "docs" / example).resolve()
    assert shown.read_bytes() == (ROOT / "examples/plain_loop_pmal.py").read_bytes()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    outside = re.compile(r"^(https?:)?//")
    for path in site.rglob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert [url for url in _Page(path).loaded if outside.match(url)] == [], path
        assert re.findall(r"<style[^>]*>[^<]*(?:https?:)?//[^<]*</style>", page) == [], path
    for path in site.rglob("*.css"):
        sheet = path.read_text(encoding="utf-8")
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\"']*", sheet) == [], path


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Of a plain server of files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_in_a_browser(address: str, scheme: Literal["light", "dark"], width: int) -> None:
    """Nothing asks anybody else, no page is wider than the screen, the scheme is the reader's, and search finds."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        for name in ("docs/methods/noise.html", "docs/results.html", "docs/api.html", "index.html"):
            page.goto(f"{address}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            red, green, blue = (int(part) for part in re.findall(r"\d+", paper)[:3])
            assert (red + green + blue > 600) == (scheme == "light")
        for _ in range(100):  # until the page's script listens
            if page.locator("#__search").is_checked():
                break
            page.keyboard.press("/")
            page.wait_for_timeout(100)
        page.get_by_placeholder("Search").fill("glass_blur")
        page.locator(".md-search-result__link[href*='docs/methods/noise.html']").first.wait_for()
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        assert complaints == []
        browser.close()


@pytest.mark.parametrize(
    ("page", "addition", "said"),
    [
        ("docs/data.md", "[gone](gone.md)", "gone.md"),
        ("docs/data.md", "[gone](noise.md#no-such-place)", "no-such-place"),
        ("docs/forgotten.md", "# Forgotten", "forgotten.md"),
    ],
)
def test_what_is_broken_fails_the_build(page: str, addition: str, said: str, tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "docs/hooks.py", "docs/data.md", "docs/noise.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".md"):
            text = f"# {name}\n\n[there](noise.md)\n"
        elif name == "mkdocs.yml":
            text = re.sub(
                r"^nav:\n.*?(?=^validation:)", "nav: [docs/data.md, docs/noise.md]\n", text, flags=re.M | re.S
            )
        (tmp_path / name).write_text(text, encoding="utf-8")
    whole = _build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert whole.returncode == 0, whole.stderr
    with (tmp_path / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{addition}\n")
    broken = _build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert broken.returncode != 0
    assert said in broken.stderr
