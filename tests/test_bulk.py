from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import vmmr
from vmmr.answer import Answer, Box
from vmmr.bulk import ANSWERS, Summary, listed, run_bulk
from vmmr.errors import BundleError, ConfigError, DataError, ManifestError


def rows(out: Path) -> list[dict[str, object]]:
    """All that is answered in a folder."""
    return [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]


def paths(cars: Path) -> set[str]:
    return {str(path) for path in cars.rglob("*.png")}


def test_every_picture_is_answered_once_as_the_recogniser_answers_it(
    tiny_cars: Path, tiny_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers"
    summary = run_bulk(tiny_run / "bundle", [tiny_cars], out, part=7, top=2, progress=False)
    assert summary == Summary(48, 48, 0)
    assert len(list(out.glob("part-*.parquet"))) == 7
    found = rows(out)
    assert len(found) == 48
    assert {str(row["path"]) for row in found} == paths(tiny_cars)
    recognizer = vmmr.load(tiny_run / "bundle")
    for row in found[::9]:
        answer = recognizer(str(row["path"]), top=2)
        assert (row["make"], row["model"], row["year"]) == (answer.make, answer.model, answer.year)
        assert row["confidence"] == pytest.approx(answer.confidence, abs=1e-5)
        assert [c["model"] for c in row["alternatives"]] == [answer.alternatives[0].model]  # type: ignore[attr-defined]
        assert row["error"] is None
    assert pq.read_schema(out / "part-00000000.parquet").equals(ANSWERS)


def test_a_bad_picture_is_reported_and_costs_no_other(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    good = next(tiny_cars.rglob("*.png"))
    (folder / "deeper" / "good.PNG").write_bytes(good.read_bytes())
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes(good.read_bytes()[:60])
    (folder / "readme.txt").write_text("no picture")
    out = tmp_path / "answers"
    assert run_bulk(tiny_run / "bundle", [folder], out, progress=False) == Summary(3, 1, 2)
    told = {Path(str(row["path"])).name: row for row in rows(out)}
    assert told["good.PNG"]["error"] is None
    assert "empty.jpg" in str(told["empty.jpg"]["error"])
    assert told["cut.png"]["make"] is None


def test_a_table_names_pictures_and_boxes(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    first, second = sorted(tiny_cars.rglob("*.png"))[:2]
    columns = {
        "path": [os.path.relpath(first, tmp_path), str(second), str(second)],
        "left": [4, None, 100],
        "top": [5, None, 100],
        "right": [30, None, 120],
        "bottom": [25, None, 120],
        "note": ["a", "b", "c"],
    }
    pa_csv.write_csv(pa.table(columns), tmp_path / "table.csv")
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    recognizer = vmmr.load(tiny_run / "bundle")
    expected = recognizer.answers([vmmr.Crop(first, Box(4, 5, 30, 25)), second])
    for kind in ("csv", "parquet"):
        out = tmp_path / kind
        assert run_bulk(tiny_run / "bundle", [tmp_path / f"table.{kind}"], out, progress=False) == Summary(3, 2, 1)
        found = rows(out)
        for row, answer in zip(found, expected, strict=False):
            assert isinstance(answer, Answer)
            assert row["confidence"] == pytest.approx(answer.confidence, abs=1e-6)
        assert "holds no pixel" in str(found[2]["error"])
    assert found[0]["confidence"] != recognizer(first).confidence  # the box is not ignored


def test_a_second_run_answers_only_what_is_missing(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    run_bulk(tiny_run / "bundle", [tiny_cars], out, part=10, progress=False)
    before = {part: (part.stat().st_ino, part.read_bytes()) for part in out.glob("part-*.parquet")}
    gone = sorted(before)[2]
    gone.unlink()
    assert run_bulk(tiny_run / "bundle", [tiny_cars], out, part=10, progress=False) == Summary(48, 48, 0)
    assert gone.read_bytes() == before[gone][1]
    assert all(part.stat().st_ino == inode for part, (inode, _) in before.items() if part != gone)


def test_another_job_does_not_mix_with_what_is_there(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    run_bulk(tiny_run / "bundle", [tiny_cars / "test"], out, part=10, progress=False)
    with pytest.raises(ConfigError, match="another top"):
        run_bulk(tiny_run / "bundle", [tiny_cars / "test"], out, part=10, top=1, progress=False)
    with pytest.raises(ConfigError, match="another sources"):
        run_bulk(tiny_run / "bundle", [tiny_cars], out, part=10, progress=False)
    (out / "_job.json").unlink()
    with pytest.raises(ConfigError, match="parts of no job"):
        run_bulk(tiny_run / "bundle", [tiny_cars / "test"], out, part=10, progress=False)


def test_mistakes_are_said_before_anything_is_written(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    with pytest.raises(BundleError, match="no such bundle"):
        run_bulk(tmp_path / "nothing", [tiny_cars], out, progress=False)
    with pytest.raises(ConfigError, match="1 or more"):
        run_bulk(tiny_run / "bundle", [tiny_cars], out, part=0, progress=False)
    assert not out.exists()
    with pytest.raises(DataError, match="check the path"):
        run_bulk(tiny_run / "bundle", [tmp_path / "nothing"], out, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        run_bulk(tiny_run / "bundle", [tmp_path / "empty"], out, progress=False)
    assert [file.name for file in out.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("text", "says"),
    [("name\na.jpg\n", "no column path"), ("path,left,top,right,bottom\na.jpg,1,2,,4\n", "half a box"), ("", "table")],
)
def test_a_table_that_is_none_says_so(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ManifestError, match=says):
        list(listed([tmp_path / "table.csv"]))


def test_a_killed_run_goes_on_where_it_stopped(tiny_cars: Path, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    code = (
        "import sys, time, vmmr.bulk as bulk\n"
        "whole = bulk.answer_part\n"
        "def slowly(*args, **named):\n"
        "    whole(*args, **named)\n"
        "    time.sleep(0.2)\n"
        "bulk.answer_part = slowly\n"
        "bulk.run_bulk(sys.argv[1], [sys.argv[2]], sys.argv[3], part=4, progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_run / "bundle"), str(tiny_cars), str(out)]
    with subprocess.Popen(command) as process:
        until = time.monotonic() + 60
        while len(list(out.glob("part-*.parquet"))) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(ConfigError, match="another run"):
            run_bulk(tiny_run / "bundle", [tiny_cars], out, part=4, progress=False)
        process.send_signal(signal.SIGKILL)
    done = len(list(out.glob("part-*.parquet")))
    assert 3 <= done < 12
    assert run_bulk(tiny_run / "bundle", [tiny_cars], out, part=4, progress=False) == Summary(48, 48, 0)
    assert sorted(str(row["path"]) for row in rows(out)) == sorted(paths(tiny_cars))


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_that_loses_a_worker_answers_every_picture_once(
    tiny_cars: Path, tiny_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    code = """
import json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from vmmr.bulk import run_bulk

bundle, cars, out = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
killed = []

def kill():
    until = time.monotonic() + 270  # a busy machine starts a cluster slowly
    while not killed and time.monotonic() < until:
        if found := len(list(Path(out).glob("part-*.parquet"))):
            killed.append(found)
            cluster.remove_node(nodes[0], allow_graceful=False)
        time.sleep(0.002)

thread = threading.Thread(target=kill)
thread.start()
summary = run_bulk(bundle, [cars], out, part=1, engine="ray", workers=2, address=cluster.address, progress=False)
thread.join()
until = time.monotonic() + 60
while sum(node["Alive"] for node in ray.nodes()) > 2 and time.monotonic() < until:
    time.sleep(0.1)  # the head takes note
print("RESULT", json.dumps([killed, summary.pictures, summary.answered, summary.failed, len(ray.nodes()),
                            sum(node["Alive"] for node in ray.nodes())]))
ray.shutdown()
cluster.shutdown()
"""
    out = tmp_path / "answers"
    command = [sys.executable, "-c", code, str(tiny_run / "bundle"), str(tiny_cars), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert said, done.stderr[-2000:]
    killed, pictures, answered, failed, nodes, alive = json.loads(said[0].removeprefix("RESULT"))
    assert killed
    assert killed[0] < 48  # there was work left
    assert (pictures, answered, failed) == (48, 48, 0)
    assert (nodes, alive) == (3, 2)
    assert sorted(str(row["path"]) for row in rows(out)) == sorted(paths(tiny_cars))
