"""The canonical table: what it reads, what it refuses and where, and that nothing gets lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmmr.data.columns import COLUMNS
from vmmr.data.manifest import Manifest
from vmmr.errors import ManifestError
from vmmr.taxonomy import Taxonomy, VehicleClass

word = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=3)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "path": st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=5),
            "make": word,
            "model": word.map(lambda w: w or "m"),
            "year": st.none() | st.integers(1900, 2030),
            "body": word,
            "colour": word,
            "viewpoint": word,
            "split": st.sampled_from(["", "train", "val", "test"]),
            "group": word,
            "vehicle_id": word,
            "camera_id": word,
            "box": st.none() | st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(10, 2000)] * 2).map(list),
        }
    ),
    max_size=6,
)


def build(data: list[dict[str, Any]], root: Path | str = ".") -> Manifest:
    columns = {name: [row[name] for row in data] for name in COLUMNS if name not in ("left", "top", "right", "bottom")}
    for i, name in enumerate(("left", "top", "right", "bottom")):
        columns[name] = [None if row["box"] is None else row["box"][i] for row in data]
    return Manifest.from_columns(columns, root)


def csv(folder: Path, text: str) -> Path:
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    return path


@settings(deadline=None)
@given(rows)
def test_labels_recomputed_row_by_row(data: list[dict[str, Any]]) -> None:
    manifest = build(data)
    keys = [(row["make"], row["model"], row["year"]) for row in data]
    order = sorted(set(keys), key=lambda k: (k[0], k[1], k[2] or -1))
    assert manifest.labels.tolist() == [order.index(key) for key in keys]
    assert [c.key for c in manifest.taxonomy.classes] == order
    assert manifest.boxes.tolist() == [row["box"] or [-1] * 4 for row in data]
    assert manifest.boxes.dtype == manifest.labels.dtype == np.int64
    for name in ("split", "group", "vehicle_id", "colour", "viewpoint"):
        assert manifest.column(name).tolist() == [row[name] for row in data]
    assert manifest.splits.tolist() == [row["split"] for row in data]
    assert [manifest.path(i) for i in range(len(data))] == [Path(row["path"]) for row in data]


@settings(max_examples=60, deadline=None)
@given(data=rows, suffix=st.sampled_from([".csv", ".parquet"]))
def test_a_file_gives_everything_back(data: list[dict[str, Any]], suffix: str, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("m", numbered=True)
    manifest = build(data, folder)
    manifest.write(folder / f"m{suffix}")
    back = Manifest.read(folder / f"m{suffix}")
    assert back.table.to_pylist() == manifest.table.to_pylist()
    assert back.taxonomy == manifest.taxonomy
    assert back.root == folder
    assert [entry.name for entry in folder.iterdir()] == [f"m{suffix}"]


def test_paths_survive_a_move(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    manifest = Manifest.from_columns({"path": ["a/1.jpg", "/abs/2.jpg"], "model": ["x", "y"]}, tmp_path / "images")
    where = [str(tmp_path / "images/a/1.jpg"), "/abs/2.jpg"]
    assert manifest.path_list() == where
    manifest.write(tmp_path / "above.csv")
    above = Manifest.read(tmp_path / "above.csv")
    assert above.path_list() == where
    assert above.table["path"][0].as_py() == "images/a/1.jpg"
    (tmp_path / "beside").mkdir()
    manifest.write(tmp_path / "beside/m.parquet")
    assert Manifest.read(tmp_path / "beside/m.parquet").path_list() == where


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Manifest.from_columns({"path": ["a"], "model": ["x"]}, tmp_path)
    manifest.write(tmp_path / "m.csv")
    before = (tmp_path / "m.csv").read_bytes()

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        manifest.write(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_what_people_write_is_understood(tmp_path: Path) -> None:
    text = (
        "\ufeffImage, Make ,model,year,left,top,right,bottom,split,colour\n"
        "a.jpg, VW ,Golf,2012.0,1.0,2.0,3.0,4.0,valid,red\n"
        '"b, c.jpg",VW,Golf,unknown,,,,,Training,\n'
        "\n"
        "d.jpg,,Bus,,,,,,test,\n"
    )
    manifest = Manifest.read(csv(tmp_path, text))
    assert [c.name for c in manifest.taxonomy.classes] == ["Bus", "VW Golf", "VW Golf 2012"]
    assert manifest.labels.tolist() == [2, 1, 0]
    assert manifest.splits.tolist() == ["val", "train", "test"]
    assert manifest.boxes.tolist() == [[1, 2, 3, 4], [-1] * 4, [-1] * 4]
    assert manifest.path(1) == tmp_path / "b, c.jpg"


def test_a_class_name_decides_the_class(tmp_path: Path) -> None:
    text = (
        "path,class_name,make,model,year\n"
        "a,Chevrolet Silverado 1500 Extended Cab 2012,Chevrolet,Silverado 1500,2012\n"
        "b,Chevrolet Silverado 1500 Regular Cab 2012,Chevrolet,Silverado 1500,2012\n"
        "c,Land Rover LR2 SUV 2012,,,\n"
        "d,bulldozer,,,\n"
        "e,,Audi,A4,2000\n"
    )
    manifest = Manifest.read(csv(tmp_path, text))
    assert [manifest.class_names[i] for i in manifest.labels] == [
        "Chevrolet Silverado 1500 Extended Cab 2012",
        "Chevrolet Silverado 1500 Regular Cab 2012",
        "Land Rover LR2 SUV 2012",
        "bulldozer",
        "Audi A4 2000",
    ]
    assert manifest.taxonomy.classes[manifest.labels[2]] == VehicleClass("Land Rover", "LR2 SUV", 2012, "SUV")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv"),
        ("make,model\na,b\n", "no column 'path'"),
        ("path,year\na,2000\n", "no column names the class"),
        ("path,model,model\na,b,c\n", "twice in line 1"),
        ("path,image,model\na,b,c\n", "twice in line 1"),
        ("path,model\na,b\nc\n", "line 3 cannot be read"),
        ("path,model\na,b\n,c\n", "empty path; got line 3"),
        ("path,make,model\na,b,c\n\nd,,\n", "neither make nor model; got line 4; 1 such"),
        ("path,model,year\na,b,2000\nc,d,20oo\n", "column 'year' holds no year: '20oo'; got line 3"),
        ("path,model,year\na,b,99\n", "column 'year'"),
        (
            'path,model,left,top,right,bottom\n"a\nb",m,1,1,2,2\n\nc,m,1,1,x,2\n',
            "line 5, column 'right' cannot be read",
        ),
        ("path,model,left,top,right,bottom\na,m,1,1,2,2\nb,m,1.5,1,2,2\n", "column 'left' needs whole.*line 3"),
        ("path,model,left,top,right,bottom\na,m,-1,1,2,2\n", "column 'left' needs whole.*line 2"),
        ("path,model,left,top,right,bottom\na,m,1,1,1,2\n", "a box must have .*line 2"),
        ("path,model,left,top,right,bottom\na,m,1,1,2,\n", "a box must have .*line 2"),
        ("path,model,left\na,m,1\n", "a box must have .*line 2"),
        ("path,model,left,top,right,bottom\na,m,1,1,inf,2\n", "column 'right' needs whole"),
        ("path,model,left,top,right,bottom\na,m,1,1,3e9,2\n", "column 'right' needs whole"),
    ],
)
def test_a_wrong_file_is_told_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.read(csv(tmp_path, text))
    assert "m.csv" in str(caught.value)


def test_what_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"path,model\n\xff\xfe,\x80\n")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "m.txt").write_text("path,model\n")
    for name in ("m.csv", "m.parquet", "m.txt", "none.csv", "none.parquet"):
        with pytest.raises(ManifestError):
            Manifest.load(tmp_path / name)
    with pytest.raises(ManifestError, match="written as"):
        Manifest.from_columns({"path": ["a"], "model": ["x"]}).write(tmp_path / "m.txt")


def test_a_parquet_file_of_the_right_types_is_still_checked(tmp_path: Path) -> None:
    table = Manifest.from_columns({"path": ["a", "b"], "model": ["x", "y"]}).table
    broken = table.set_column(0, "path", pa.array(["a", ""]))
    pq.write_table(broken, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="empty path; got row 1"):
        Manifest.read(tmp_path / "m.parquet")


def test_parquet_of_plain_types_and_nulls(tmp_path: Path) -> None:
    table = pa.table(
        {
            "path": pa.array(["a", "b"], pa.large_string()),
            "make": pa.array([None, "VW"]),
            "model": pa.array(["Bus", "Golf"], pa.large_string()).dictionary_encode(),
            "year": pa.array([2000, None], pa.int64()),
            "vehicle_id": pa.array([7, 8]),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = Manifest.read(tmp_path / "m.parquet")
    assert [c.key for c in manifest.taxonomy.classes] == [("", "Bus", 2000), ("VW", "Golf", None)]
    assert manifest.column("vehicle_id").tolist() == ["7", "8"]


def test_parts_keep_the_taxonomy_of_the_whole() -> None:
    manifest = Manifest.from_columns(
        {"path": list("abcd"), "model": ["z", "x", "y", "x"], "split": ["test", "train", "train", ""]}
    )
    part = manifest.split("train")
    assert part.labels.tolist() == [0, 1]
    assert manifest.select([0]).labels.tolist() == [2]
    assert manifest.select([3, 0]).column("model").tolist() == ["x", "z"]
    assert manifest.select(np.array([], dtype=np.int64)).class_names == manifest.class_names
    changed = manifest.with_splits(["a", "b", "c", "a long name for a split"])
    assert changed.splits.tolist()[3] == "a long name for a split"
    assert manifest.splits.tolist()[3] == ""
    with pytest.raises(ManifestError, match="train"):
        manifest.split("val")
    with pytest.raises(ManifestError, match="mask"):
        manifest.select([True, False])


def test_another_taxonomy() -> None:
    manifest = Manifest.from_columns({"path": list("abc"), "make": ["A", "B", "C"], "model": ["x", "y", "z"]})
    other = Taxonomy((VehicleClass("B", "y"), VehicleClass("Q", "q"), VehicleClass("A", "x")))
    with pytest.raises(ManifestError, match=r"1 classes .*C z"):
        manifest.with_taxonomy(other)
    assert manifest.with_taxonomy(other, strict=False).labels.tolist() == [2, 0, -1]
    assert manifest.select([0, 1]).with_taxonomy(other).labels.tolist() == [2, 0]


def test_a_hundred_thousand_rows_take_no_loop(tmp_path: Path) -> None:
    n = 100_000
    body = "".join(
        f"f/{i}.jpg,make{i % 50},model{i % 700},{2000 + i % 7},1,2,{10 + i % 9},20,train\n" for i in range(n)
    )
    path = csv(tmp_path, "path,make,model,year,left,top,right,bottom,split\n" + body)
    start = time.process_time()
    manifest = Manifest.read(path)
    labels = manifest.split("train").labels
    spent = time.process_time() - start
    assert spent < 3
    assert len(manifest.taxonomy) == len({(i % 50, i % 700, i % 7) for i in range(n)})
    assert manifest.class_names[labels[12345]] == "make45 model445 2004"


_READ = """
import re, sys, time
from pathlib import Path
from vmmr.data.manifest import Manifest
start = time.process_time()
manifest = Manifest.read(sys.argv[1])
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
print(len(manifest.labels), time.process_time() - start, peak.group(1))
"""


@pytest.mark.slow
def test_a_million_rows_in_five_seconds_and_a_gibibyte(tmp_path: Path) -> None:
    n = 1_000_000
    with (tmp_path / "m.csv").open("w") as file:
        file.write("path,make,model,year,left,top,right,bottom,split,vehicle_id\n")
        file.writelines(
            f"train/make{i % 80}/model{i % 2000}/{i:08d}.jpg,make{i % 80},model{i % 2000},{1990 + i % 30},"
            f"{i % 50},{i % 40},{i % 50 + 100},{i % 40 + 90},train,v{i % 100_000}\n"
            for i in range(n)
        )
    # In a process of its own, whose peak is that of nothing else; ru_maxrss would begin with the parent's.
    told = subprocess.run([sys.executable, "-c", _READ, tmp_path / "m.csv"], check=True, capture_output=True, text=True)
    rows, seconds, kibibytes = told.stdout.split()
    assert int(rows) == n
    assert float(seconds) < 5
    assert int(kibibytes) < 1024 * 1024
