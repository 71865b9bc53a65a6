"""The process that holds the model: it decodes, computes and answers, one batch after the other.

`python -m vmmr.serving.worker` reads frames on standard input: its settings, then jobs. It says frames on standard
output: that it is ready, or why it refuses; an answer to every job; and a beat twice a second, so that a stopped
process is told from one that computes. Whatever goes wrong here, in a decoder or in a runtime, ends this process and
nothing else. It ends as well when the server does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmmr.answer import Box
from vmmr.data.decode import DecodeLimits
from vmmr.data.pixels import cores, thread_map
from vmmr.errors import ImageError, VmmrError
from vmmr.export.runtime import Outputs
from vmmr.recognizer import Crop, Prepared, Recognizer, directions, load
from vmmr.serving.frames import Frame, pack, read_frame

__all__ = ["BEAT_S", "LIMITS", "Model", "main"]

BEAT_S = 0.5
LIMITS = DecodeLimits(max_bytes=10 * 1024 * 1024)
"""A picture over HTTP: 10 MiB, 40 million pixels, 12,000 a side."""

_DIGITS = 6  # of every float that is said: what lies behind depends on the pictures that share a pass


class Model:
    """A recogniser that answers jobs.

    A job has "items": each wants "answer", "embedding", "tensors" or "restored" of the blob in its place, which is the
    bytes of an image, or pixels where the item tells their shape. `top` candidates, a `box` to cut out of an image.
    """

    def __init__(self, recognizer: Recognizer, version: str) -> None:
        self.recognizer, self.version = recognizer, version

    def warm(self, batch: int) -> dict[str, Any]:
        """One pass at the sizes that are to come; what the server wants to know of the model."""
        height, width = self.recognizer.runtime.size
        for count in (1, batch):
            outputs = self.recognizer.outputs(np.full((count, height, width, 3), 128, np.uint8))
        if self.recognizer.restores:
            self.recognizer.restore(np.full((height, width, 3), 128, np.uint8))
        return {
            "version": self.version,
            "runtime": self.recognizer.runtime.name,
            "precision": self.recognizer.runtime.precision,
            "classes": len(self.recognizer.taxonomy),
            "outputs": outputs["logits"].shape[1],
            "restores": self.recognizer.restores,
        }

    def do(self, items: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> Frame:
        """A result for every item: what it wants, or {"error": code}; and how long reading and the pass took, in ms. A
        restored picture is {"png": its place in the blobs}."""
        started = time.perf_counter()
        read = thread_map(lambda place: self._read(items[place], blobs[place]), len(items), workers=cores())
        good = [place for place, found in enumerate(read) if isinstance(found, Prepared)]
        results: list[dict[str, Any]] = [{"error": "bad_image"}] * len(items)
        drawn: list[bytes] = []
        read_at = time.perf_counter()
        for place, found in enumerate(read):
            if isinstance(found, bytes | Crop):
                results[place] = self._restored(found, drawn)
        if good:
            shown = [found for found in read if isinstance(found, Prepared)]
            outputs = self.recognizer.outputs(np.stack([found.pixels for found in shown]))
            said = self._said([items[place] for place in good], outputs, [found.side for found in shown])
            for place, result in zip(good, said, strict=True):
                results[place] = result
        ended = time.perf_counter()
        took = {"read_ms": round(1e3 * (read_at - started), 3), "pass_ms": round(1e3 * (ended - read_at), 3)}
        return {"results": results, **took}, drawn

    def _read(self, item: dict[str, Any], blob: bytes) -> Prepared | bytes | Crop | None:
        try:
            if "shape" in item:
                return self.recognizer.prepare(np.frombuffer(blob, np.uint8).reshape(item["shape"]))
            picture = blob if item.get("box") is None else Crop(blob, Box(*item["box"]))
            return picture if item["want"] == "restored" else self.recognizer.prepare(picture)
        except VmmrError:
            return None

    def _restored(self, picture: bytes | Crop, drawn: list[bytes]) -> dict[str, Any]:
        """{"png": place}, and the picture at that place, or the error."""
        try:
            image = self.recognizer.restore(picture)
        except ImageError:
            return {"error": "bad_image"}
        except VmmrError:
            return {"error": "no_finite_output"}
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG", compress_level=1)
        drawn.append(file.getvalue())
        return {"png": len(drawn) - 1}

    def _said(self, items: Sequence[dict[str, Any]], outputs: Outputs, sides: Sequence[int]) -> list[dict[str, Any]]:
        """What each row of the outputs says to its item."""
        results: list[dict[str, Any]] = [{"error": "no_finite_output"}] * len(items)
        finite = np.logical_and.reduce([np.isfinite(value).all(axis=1) for value in outputs.values()])
        wanted: dict[tuple[str, int], list[int]] = {}
        for row in np.flatnonzero(finite).tolist():
            wanted.setdefault((items[row]["want"], items[row].get("top", 0)), []).append(row)
        for (want, top), rows in wanted.items():
            part = {name: value[rows] for name, value in outputs.items()}
            if want == "answer":
                said = self._answer(part, top, [sides[row] for row in rows])
            else:
                said = {"embedding": self._embedding, "tensors": self._tensors}[want](part)
            for row, result in zip(rows, said, strict=True):
                results[row] = result
        return results

    def _answer(self, outputs: Outputs, top: int, sides: Sequence[int]) -> list[dict[str, Any]]:
        return [_rounded(answer.to_dict()) for answer in self.recognizer.answers_from(outputs, top=top, sides=sides)]

    def _embedding(self, outputs: Outputs) -> list[dict[str, Any]]:
        return [{"embedding": row} for row in _numbers(directions(outputs["features"]))]

    def _tensors(self, outputs: Outputs) -> list[dict[str, Any]]:
        probabilities = self.recognizer.probabilities_from(outputs)
        names = self.recognizer.taxonomy.names
        labels = [names[label] for label in probabilities.argmax(axis=1).tolist()]
        rows = zip(_numbers(outputs["logits"]), _numbers(probabilities), labels, strict=True)
        return [{"logits": logits, "probabilities": sure, "labels": label} for logits, sure, label in rows]


def _numbers(values: NDArray[np.float32]) -> list[list[float]]:
    rounded: list[list[float]] = values.astype(np.float64).round(_DIGITS).tolist()
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


class _Voice:
    """Frames on a stream, from several threads; where nobody listens any more, the process ends."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def say(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        frame = pack(header, blobs)
        try:
            with self._lock:
                self._stream.write(frame)
                self._stream.flush()
        except OSError:
            os._exit(0)

    def beat(self) -> None:
        while True:
            self.say({"beat": True})
            time.sleep(BEAT_S)


def main() -> None:
    """A worker's life."""
    voice = _Voice(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever a library prints is no answer
    for number in (signal.SIGINT, signal.SIGTERM):  # may reach the whole group: the server says when it is over
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=voice.beat, daemon=True).start()
    with suppress(EOFError):
        settings, _ = read_frame(sys.stdin.buffer)
        try:
            recognizer = load(settings["bundle"], runtime=settings["runtime"], device=settings["device"])
            recognizer.limits = LIMITS
            model = Model(recognizer, recognizer.digest[:12])
            voice.say({"ready": model.warm(settings["batch"])})
        except VmmrError as error:
            voice.say({"refused": str(error)})
            return
        while True:
            job, blobs = read_frame(sys.stdin.buffer)
            done, drawn = model.do(job["items"], blobs)
            voice.say({"job": job["job"], **done}, drawn)


if __name__ == "__main__":
    main()
