"""Resized pixels of many images: in memory where they fit, decoded on demand where they do not."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from vmmr.data.decode import DecodeLimits, decode
from vmmr.data.preprocess import Preprocess
from vmmr.errors import ConfigError, ImageError

__all__ = ["Pixels", "cores", "cut_out", "ordered", "read_pixels", "thread_map"]

_DEFAULT_LIMITS = DecodeLimits()
_S = TypeVar("_S")
_T = TypeVar("_T")


def ordered(work: Callable[[_S], _T], items: Iterable[_S], *, workers: int, ahead: int) -> Iterator[_T]:
    """work(item) of each item, in order, on threads, with at most `ahead` items taken that were not yet given back: the
    items may be endless. The first exception in that order ends it.

    >>> import itertools
    >>> list(itertools.islice(ordered(lambda i: i * i, itertools.count(), workers=2, ahead=4), 5))
    [0, 1, 4, 9, 16]
    """
    if isinstance(items, Sequence) and len(items) == 1:  # no thread for it: most callers ask for one
        yield work(items[0])
        return
    pool, waiting = ThreadPoolExecutor(workers), deque[Future[_T]]()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def thread_map(work: Callable[[int], _T], count: int, *, workers: int = 2, progress: str | None = None) -> list[_T]:
    """[work(0), ..., work(count - 1)] on threads; the first exception in that order ends it. progress: title of a bar.

    >>> thread_map(lambda i: i * i, 5)
    [0, 1, 4, 9, 16]
    """
    if count <= 1 and progress is None:  # a server is mostly asked for one
        return [work(index) for index in range(count)]
    size = max(1, min(64, count // (8 * workers)))  # a task for every item would cost memory in the millions
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    pool = ThreadPoolExecutor(workers)
    try:
        done = pool.map(lambda block: [work(index) for index in block], blocks)
        shown = track(done, progress or "", total=len(blocks), disable=progress is None, transient=True)
        return [result for block in shown for result in block]
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut_out(image: NDArray[np.uint8], box: Sequence[int] | NDArray[np.int64], name: str) -> NDArray[np.uint8]:
    """The box of an image [H, W, 3]: left, top, right, bottom, half-open, cut at the image's border. `name` is for the
    ImageError of a box that holds no pixel."""
    left, top, right, bottom = (max(0, int(side)) for side in box)
    part = image[top:bottom, left:right]
    if part.size == 0:
        got = f"left, top, right, bottom = {', '.join(str(int(side)) for side in box)}"
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise ImageError(f"the box in {name} holds no pixel", got=f"{got} in {size}", do="correct the box")
    return part


def read_pixels(
    source: bytes | str | os.PathLike[str],
    preprocess: Preprocess,
    *,
    box: Sequence[int] | NDArray[np.int64] | None = None,
    limits: DecodeLimits = _DEFAULT_LIMITS,
    name: str | None = None,
) -> NDArray[np.uint8]:
    """Decode, cut out the box, resize: uint8 [h, w, 3] of `preprocess.resized_size`.

    box: left, top, right, bottom in pixels of the upright image, half-open; cut at the image's border; None or all
    -1 for the whole image. Large JPEGs without a box are decoded at reduced size (`Preprocess.shrink_to`).
    Training comes through here; answering resizes by `Preprocess.pixels`. Raises ImageError, also for a box that
    holds no pixel.
    """
    whole = box is None or all(side == -1 for side in box)
    image = decode(source, limits=limits, name=name, shrink_to=preprocess.shrink_to if whole else None)
    if box is not None and not whole:
        image = cut_out(image, box, name or ("the image" if isinstance(source, bytes) else os.fsdecode(source)))
    return preprocess.resized(image)


class Pixels:
    """The resized pixels of a list of images, by index: `pixels[indices]` is uint8 [B, 3, h, w].

    paths: image files. boxes: int64 [N, 4] as for `read_pixels`, or None. workers: decoding threads. Where
    N * 3 * h * w bytes fit into memory_gib, all images are decoded at once here; beyond, each when it is asked for.
    The values are the same either way. progress: show a bar while decoding here.

    on_bad: what an unacceptable image does. "fail": ImageError that names the file, here or, beyond memory_gib, when
    it is asked for. "skip": every image is tried here, and `bad` lists (index, reason) of those that failed; they
    keep their index, and asking for one raises ImageError.

    The tensor of a whole set can be had as `pixels[np.arange(len(pixels))]`.
    """

    bad: list[tuple[int, str]]

    def __init__(
        self,
        paths: Sequence[str | Path],
        preprocess: Preprocess,
        *,
        boxes: NDArray[np.int64] | None = None,
        memory_gib: float = 4.0,
        workers: int = 2,
        progress: bool = False,
        on_bad: Literal["fail", "skip"] = "fail",
    ) -> None:
        if boxes is not None and boxes.shape != (len(paths), 4):
            raise ConfigError("boxes need a row of four for each path", got=list(boxes.shape), do=f"[{len(paths)}, 4]")
        if workers < 1:
            raise ConfigError("decoding needs a thread", got=f"workers = {workers}", do="pass 1 or more")
        if on_bad not in ("fail", "skip"):
            raise ConfigError("no such on_bad", got=repr(on_bad), do="choose 'fail' or 'skip'")
        self.preprocess = preprocess
        self.bad = []
        self._paths = list(paths)
        self._boxes = boxes
        self._workers = workers
        self._held: Tensor | None = None
        shape = (len(paths), 3, *preprocess.resized_size)
        held = torch.zeros(shape, dtype=torch.uint8) if int(np.prod(shape)) <= memory_gib * 2**30 else None
        if held is None and on_bad == "fail":
            return

        def visit(index: int) -> str | None:
            try:
                pixels = self._read(index)
            except ImageError as error:
                if on_bad == "fail":
                    raise
                return str(error)
            if held is not None:
                held[index].copy_(pixels)
            return None

        reasons = thread_map(visit, len(paths), workers=workers, progress="decoding" if progress else None)
        self.bad = [(index, reason) for index, reason in enumerate(reasons) if reason is not None]
        self._held = held

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, indices: NDArray[np.integer]) -> Tensor:
        rows = np.arange(len(self))[indices]
        for index, reason in self.bad:
            if index in rows:
                raise ImageError(f"image {index} was skipped as bad", got=reason, do="leave out the indices in `bad`")
        if self._held is not None:
            return self._held[torch.from_numpy(rows)]
        batch = torch.empty(len(rows), 3, *self.preprocess.resized_size, dtype=torch.uint8)

        def fill(place: int) -> None:
            batch[place].copy_(self._read(int(rows[place])))

        thread_map(fill, len(rows), workers=self._workers)
        return batch

    def _read(self, index: int) -> Tensor:
        box = None if self._boxes is None else self._boxes[index]
        return torch.from_numpy(read_pixels(self._paths[index], self.preprocess, box=box)).permute(2, 0, 1)
