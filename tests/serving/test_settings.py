"""What may be served where."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmr.errors import ConfigError
from vmmr.serving.frames import pack, read_frame
from vmmr.serving.schema import CODES
from vmmr.serving.settings import Settings, read_token

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert Settings("bundle", host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "localhost.example.org"])
def test_other_addresses_need_a_token_or_a_word(host: str) -> None:
    with pytest.raises(ConfigError, match="open to the network"):
        Settings("bundle", host=host)
    assert Settings("bundle", host=host, token_file="token").insecure is False
    assert Settings("bundle", host=host, insecure=True).token_file is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"queue": -1},
        {"deadline_s": 0.0},
        {"read_s": float("nan")},
        {"latency_ms": -1.0},
        {"port": 70_000},
        {"name": "a/b"},
        {"name": ""},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Settings("bundle", **wrong)


def test_a_token_is_one_word_that_not_everybody_may_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(" correct-horse-battery\n")
    for mode in (0o600, 0o400, 0o640):
        file.chmod(mode)
        assert read_token(str(file)) == b"correct-horse-battery"
    for mode in (0o644, 0o602, 0o601):
        file.chmod(mode)
        with pytest.raises(ConfigError, match="everybody"):
            read_token(str(file))
    file.chmod(0o600)
    for text in ("", "short", "two words that are long enough", "ä" * 20, "x" * 513):
        file.write_text(text)
        with pytest.raises(ConfigError, match="no token") as error:
            read_token(str(file))
        assert not text or text not in str(error.value)
    with pytest.raises(ConfigError, match="cannot read"):
        read_token(str(tmp_path / "gone"))


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.lists(st.binary()))
def test_frames_come_back_whole(header: dict[str, Any], blobs: list[bytes]) -> None:
    from io import BytesIO

    file = BytesIO(pack(header, blobs) + pack({}))
    read, back = read_frame(file)
    assert {**header, "sizes": [len(blob) for blob in blobs]} == read
    assert back == blobs
    assert read_frame(file) == ({"sizes": []}, [])
    with pytest.raises(EOFError):
        read_frame(file)
    with pytest.raises(EOFError):
        read_frame(BytesIO(pack(header, [*blobs, b"x"])[:-1]))


def test_the_server_process_needs_no_torch() -> None:
    program = "import sys, vmmr.serving.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_the_guide_lists_every_code_and_every_setting() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert {code: (int(status), told) for code, status, told in rows} == CODES
    told = dict(re.findall(r"^ {8}(\w+): (.+)$", Settings.__doc__ or "", flags=re.MULTILINE))
    shown = dict(re.findall(r"^\| `--([\w-]+)` \| .+ \| (.+) \|$", text, flags=re.MULTILINE))
    assert shown == {name.replace("_", "-"): line for name, line in told.items() if name != "bundle"}
