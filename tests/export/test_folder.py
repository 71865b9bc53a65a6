from __future__ import annotations

from pathlib import Path

import pytest

from vmmr.errors import BundleError
from vmmr.export.folder import Format, folder_format, read_folder, write_folder

ONE = Format("one", "thing", 1, (("a.json",), ("a.json", "b.bin")))
OTHER = Format("other", "thing", 1, (("a.json",),))


@pytest.mark.parametrize("files", [{"a.json": b"{}"}, {"a.json": b"{}", "b.bin": b"\0" * 9}])
def test_either_set_of_names_is_read(files: dict[str, bytes], tmp_path: Path) -> None:
    assert read_folder(write_folder(tmp_path / "x", ONE, files), ONE)[0] == files
    assert folder_format(tmp_path / "x") == "one"


def test_another_set_of_names_is_not(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not list"):
        read_folder(write_folder(tmp_path / "x", ONE, {"b.bin": b""}), ONE)


def test_a_folder_of_another_format_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", ONE, {"a.json": b"{}"})
    with pytest.raises(BundleError, match="another format"):
        read_folder(tmp_path / "x", OTHER)
    with pytest.raises(BundleError, match="no thing"):
        write_folder(tmp_path / "x", OTHER, {"a.json": b"{}"})
    assert read_folder(tmp_path / "x", ONE)[0] == {"a.json": b"{}"}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(BundleError, match="no thing"):
        write_folder(file, ONE, {"a.json": b"{}"})
    assert file.read_text() == "mine"
