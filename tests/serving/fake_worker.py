"""A worker without a model, quick to start: it answers with the checksum of each picture, or does what one tells it.

The first word of a picture: BAD is no image, NAN has no finite output, DIE kills the process, STOP stops it, HANG
hangs with beats going on, SLOW takes a second. The bundle is JSON: `ms` a pass and `start_s` to load, `refuse` to load,
`leak` what it is given, `restores` where it draws: a picture of the checksum's colour.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from vmmr.serving.frames import pack, read_frame

leaked: list[Any] = []


def result(item: dict[str, Any], blob: bytes) -> dict[str, Any]:
    word = blob[:4]
    if word == b"DIE ":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == b"STOP":
        os.kill(os.getpid(), signal.SIGSTOP)
    if word == b"HANG":
        time.sleep(3600)
    if word == b"SLOW":
        time.sleep(1)
    if word == b"BAD ":
        return {"error": "bad_image"}
    if word == b"NAN ":
        return {"error": "no_finite_output"}
    number = zlib.crc32(blob)
    if item["want"] == "restored":
        file = BytesIO()
        Image.new("RGB", (64, 48), (number & 255, number >> 8 & 255, number >> 16 & 255)).save(file, "PNG")
        return {"png": file.getvalue()}
    if item["want"] == "embedding":
        return {"embedding": [number % 2, 1 - number % 2]}
    if item["want"] == "tensors":
        shape = item.get("shape", [])
        return {"logits": [float(len(blob)), *map(float, shape)], "probabilities": [1.0], "labels": f"{number:08x}"}
    other = {"make": "Other", "model": "Car", "year": None, "confidence": 0.25}
    return {
        "make": f"{number:08x}",
        "model": json.dumps(item.get("box")),
        "year": 2012,
        "confidence": 0.75,
        "alternatives": [other] * (item["top"] - 1),
        "level": "class",
        "levels": [],
        "known": None,
        "reason": "ok",
    }


def main() -> None:
    """A worker's life."""
    answers, lock = os.fdopen(os.dup(1), "wb"), threading.Lock()
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def say(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        try:
            with lock:
                answers.write(pack(header, blobs))
                answers.flush()
        except OSError:
            os._exit(0)

    def beat() -> None:
        while True:
            say({"beat": True})
            time.sleep(0.2)

    settings, _ = read_frame(sys.stdin.buffer)
    options = json.loads(settings["bundle"])
    threading.Thread(target=beat, daemon=True).start()
    time.sleep(options.get("start_s", 0))
    if "refuse" in options:
        say({"refused": options["refuse"]})
        return
    able = {"restores": options.get("restores", False)}
    say({"ready": {"version": "fake", "runtime": "fake", "precision": "fp32", "classes": 1, "outputs": 1, **able}})
    while True:
        try:
            job, blobs = read_frame(sys.stdin.buffer)
        except EOFError:
            break
        time.sleep(options.get("ms", 0) / 1e3)
        if options.get("leak"):
            leaked.append(bytearray(200_000))
        said = [result(item, blob) for item, blob in zip(job["items"], blobs, strict=True)]
        drawn = [one["png"] for one in said if "png" in one]
        said = [{"png": drawn.index(one["png"])} if "png" in one else one for one in said]
        say({"job": job["job"], "results": said, "read_ms": 0.0, "pass_ms": float(options.get("ms", 0))}, drawn)


if __name__ == "__main__":
    main()
