"""The face: a bundle that answers.

>>> import vmmr                                             # doctest: +SKIP
>>> recognizer = vmmr.load("runs/student/bundle")           # doctest: +SKIP
>>> print(recognizer("car.jpg"))                            # doctest: +SKIP
Audi S4 Sedan 2012 (93.1%)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from threadpoolctl import ThreadpoolController
from torch import Tensor

from vmmr.answer import Answer, Box, Candidate, LevelAnswer
from vmmr.config import RuntimeName
from vmmr.data.decode import DecodeLimits, decode
from vmmr.data.pixels import cores, cut_out, ordered
from vmmr.errors import ConfigError, DataError, ImageError, VmmrError
from vmmr.export.artifact import ARTIFACT, Artifact, read_artifact
from vmmr.export.bundle import Bundle, read_bundle
from vmmr.export.folder import folder_format
from vmmr.export.parity import require_parity, require_pixels
from vmmr.export.runtime import Outputs, Runtime, TorchRuntime
from vmmr.export.tuned import remembered
from vmmr.levels import NUMBERS, year_of
from vmmr.models.decoding import back_off, confidences_by_level, independent
from vmmr.models.heads.hierarchy import split_levels
from vmmr.unknown import Reason

__all__ = ["Crop", "Picture", "Prepared", "Recognizer", "directions", "load", "read_model", "recognize"]

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

# What follows the network is a millisecond's work, but after each step that torch shares among threads they spin for
# several more, waiting for the next, on cores that decode the next pictures. The limit is that of the calling thread,
# as OpenMP has it; BLAS, whose limits are the process's, is left as it is.
_on_one_thread: Callable[[_F], _F] = ThreadpoolController().select(user_api="openmp").wrap(limits=1)


@dataclass(frozen=True, slots=True)
class Crop:
    """A vehicle in a picture: what the box holds of it, upright, cut at its border."""

    picture: str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image
    box: Box


Picture = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Image.Image | Crop
"""A path, the bytes of a file, an array uint8 [H, W, 3] or [H, W], a Pillow image, or a `Crop` of one of them."""


class Prepared(NamedTuple):
    """A picture as the runtime takes it, uint8 [H, W, 3], and the shorter side, in pixels, that it or its box had."""

    pixels: NDArray[np.uint8]
    side: int


def directions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features [N, D] -> rows of length 1."""
    length: NDArray[np.float32] = np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return features / length


def _decoded(picture: Picture, shrink_to: int | None, limits: DecodeLimits) -> NDArray[np.uint8]:
    """The upright picture, uint8 [H, W, 3]; shrink_to, limits: see `decode`."""
    if isinstance(picture, np.ndarray):
        return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)
    if isinstance(picture, Image.Image):
        return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if isinstance(picture, str | bytes | os.PathLike):
        return decode(picture, limits=limits, shrink_to=shrink_to)
    raise ImageError("this is no picture", got=type(picture).__name__, do="pass a path, bytes, array or image")


class Recognizer:
    """Pictures in, answers out. runtime: what runs the network; the fastest that there is, where none is given.

    The steps in between are open too: `prepare` or `read` a picture, `outputs` of pixels, `answers_from` outputs.

    >>> import inspect
    >>> list(inspect.signature(Recognizer.__call__).parameters)
    ['self', 'pictures', 'top']
    """

    def __init__(self, model: Bundle | Artifact, runtime: Runtime | None = None, *, batch_size: int = 32) -> None:
        self.digest, self.limits = model.digest, DecodeLimits()
        self.taxonomy = model.taxonomy
        # The runtime rescales from [-1, 1] to the backbone's own statistics.
        self.preprocess = replace(model.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.temperature = model.spec.temperature
        self._scores = model.class_scores
        self._spec = model.spec.hierarchy
        self.detector = model.detector
        self.levels = model.levels
        if runtime is None:
            runtime = TorchRuntime(model) if isinstance(model, Bundle) else model.runtime()
        self.runtime: Runtime = runtime
        self.batch_size = batch_size

    @overload
    def __call__(self, pictures: Picture, *, top: int = 5) -> Answer: ...

    @overload
    def __call__(self, pictures: list[Picture] | tuple[Picture, ...], *, top: int = 5) -> list[Answer]: ...

    def __call__(
        self, pictures: Picture | list[Picture] | tuple[Picture, ...], *, top: int = 5
    ) -> Answer | list[Answer]:
        """One answer a picture, with up to `top` candidates: the answer itself and its alternatives.

        Raises ImageError for anything that is no acceptable picture; see `answers` to go on past bad ones.
        """
        if isinstance(pictures, list | tuple):
            found = self.answers(pictures, top=top)
            for answer in found:
                if isinstance(answer, VmmrError):
                    raise answer
            return [answer for answer in found if isinstance(answer, Answer)]
        return self([pictures], top=top)[0]

    def answers(self, pictures: Sequence[Picture], *, top: int = 5) -> list[Answer | VmmrError]:
        """As calling, but a picture that cannot be read yields its error in its place."""
        return list(self.stream(pictures, top=top))

    def stream(
        self, pictures: Iterable[Picture], *, top: int = 5, workers: int | None = None
    ) -> Iterator[Answer | VmmrError]:
        """An answer a picture, or its error, in order, for as many pictures as come: a folder of millions, a camera.

        workers: threads that decode and resize ahead while batches are answered; None for one a core. At most three
        batches of pictures are held at a time; answers come by batches, the last one as it is.
        """
        yield from self._streamed(pictures, lambda good: self._answered(good, top), workers)

    def embeddings(
        self, pictures: Iterable[Picture], *, workers: int | None = None
    ) -> Iterator[NDArray[np.float32] | VmmrError]:
        """A row of `embed` a picture, or its error, in order, for as many pictures as come; see `stream`."""

        def embedded(good: Sequence[Prepared]) -> Iterable[NDArray[np.float32]]:
            return directions(self.runtime(np.stack([found.pixels for found in good]))["features"])

        yield from self._streamed(pictures, embedded, workers)

    def embed(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """The direction of each picture's features: float32 [N, D], rows of length 1. Raises ImageError as calling."""
        rows = []
        for row in self.embeddings(pictures):
            if isinstance(row, VmmrError):
                raise row
            rows.append(row)
        if not rows:
            raise DataError("there is nothing to embed", got="no pictures", do="pass one or more")
        return np.stack(rows)

    def _streamed(
        self, pictures: Iterable[Picture], judge: Callable[[Sequence[Prepared]], Iterable[_T]], workers: int | None
    ) -> Iterator[_T | VmmrError]:
        """What `judge` makes of each batch of pictures, one a picture, errors in their places."""
        workers = workers or cores()
        read = ordered(self._tried, pictures, workers=workers, ahead=2 * self.batch_size + workers)
        while part := list(islice(read, self.batch_size)):
            good = [found for found in part if isinstance(found, Prepared)]
            judged = iter(judge(good) if good else [])
            yield from [next(judged) if isinstance(found, Prepared) else found for found in part]

    def read(self, picture: Picture) -> NDArray[np.uint8]:
        """The pixels that `prepare` gives, without the side."""
        return self.prepare(picture).pixels

    def prepare(self, picture: Picture) -> Prepared:
        """Decoded, upright, cut out, resized and cropped: uint8 [H, W, 3] of the runtime's size. Several threads may
        prepare.

        Raises ImageError for what is no acceptable picture and for a box that holds no pixel, DataError for an array
        that is none.
        """
        image = self._upright(picture)
        return Prepared(self.preprocess.pixels(image), min(image.shape[:2]))

    @property
    def restores(self) -> bool:
        """Whether `restore` works: a bundle whose network kept the decoders of PMAL has it, run by torch."""
        return isinstance(self.runtime, TorchRuntime) and self.runtime.restores

    def restore(self, picture: Picture) -> NDArray[np.uint8]:
        """The picture without its noise, as far as the network's deepest decoder can tell: uint8 [h, w, 3].

        The whole picture, or all of its box, at the resolution that the network works at: in the picture's proportions,
        the longer side that of the network's input. Raises ImageError and DataError as `prepare`, ConfigError where
        `restores` is false, DataError where the decoder gives no finite numbers.
        """
        if not isinstance(self.runtime, TorchRuntime):
            raise ConfigError("exported networks have no decoder", got=self.runtime.name, do="load the bundle")
        image = self._upright(picture)
        most = max(self.runtime.size)
        # Squashed, whatever answers do: so that nothing of the picture is cut off.
        squash = replace(self.preprocess, resize="squash", crop=1.0)
        restored = self.runtime.restore(squash.pixels(image)[None])[0]
        if not np.isfinite(restored).all():
            raise DataError("the decoder gives no finite numbers for this picture")
        height, width = (max(1, round(side * most / max(image.shape[:2]))) for side in image.shape[:2])
        shown = Image.fromarray(np.rint(restored).astype(np.uint8))
        return np.array(shown.resize((width, height), Image.Resampling.BILINEAR))

    def outputs(self, pixels: NDArray[np.uint8]) -> Outputs:
        """One pass through the runtime: uint8 [B, H, W, 3], as `read` gives them -> logits and features, and, where
        there is a detector, its `signs` float32 [B, 3]."""
        outputs = self.runtime(pixels)
        return outputs if self.detector is None else {**outputs, "signs": self._signs(pixels, outputs)}

    @_on_one_thread
    def answers_from(
        self, outputs: Outputs, *, top: int = 5, sides: Sequence[float | None] | None = None
    ) -> list[Answer]:
        """The calibrated answers that outputs hold, one a row.

        sides: the shorter side, in pixels, of each picture or of its box before it was resized, see `Prepared`; None
        where it is not known, and then no picture is too small. `known` is None where outputs hold no signs. Of logits
        that are not all finite numbers nothing is said: level "", confidence 0, unsure, and not known.
        """
        logits = torch.from_numpy(outputs["logits"])
        finite = logits.isfinite().all(dim=1)
        logits = logits.where(finite[:, None], 0.0)
        scores = self._scores(logits) / self.temperature
        best = scores.softmax(dim=1).topk(min(max(top, 1), len(self.taxonomy)), dim=1)
        answers = [
            self._ranked(values, labels)
            for values, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if self.levels is not None:
            answers = self._by_level(answers, logits, scores)
        nothing = Answer("", "", None, 0.0, level="", known=None if self.detector is None else False, reason="unsure")
        signs = outputs.get("signs")
        return [
            self._judged(answer, None if signs is None else signs[row].tolist(), None if sides is None else sides[row])
            if finite[row]
            else nothing
            for row, answer in enumerate(answers)
        ]

    @_on_one_thread
    def probabilities_from(self, outputs: Outputs) -> NDArray[np.float32]:
        """The calibrated probability of every class of the taxonomy: float32 [B, classes]."""
        scores = self._scores(torch.from_numpy(outputs["logits"])) / self.temperature
        probabilities: NDArray[np.float32] = scores.softmax(dim=1).numpy()
        return probabilities

    @_on_one_thread
    @torch.inference_mode()
    def _signs(self, pixels: NDArray[np.uint8], outputs: Outputs) -> NDArray[np.float32]:
        assert self.detector is not None
        features, logits = (torch.from_numpy(outputs[name]) for name in ("features", "logits"))
        signs = self.detector.signs(features, self._scores(logits), torch.from_numpy(pixels))
        found: NDArray[np.float32] = signs.numpy()
        return found

    def _upright(self, picture: Picture) -> NDArray[np.uint8]:
        """Decoded, upright, cut out: uint8 [h, w, 3]."""
        if not isinstance(picture, Crop):
            return _decoded(picture, self.preprocess.shrink_to, self.limits)
        box, source = picture.box, picture.picture
        name = os.fsdecode(source) if isinstance(source, str | os.PathLike) else "the picture"
        return cut_out(_decoded(source, None, self.limits), (box.left, box.top, box.right, box.bottom), name)

    def _tried(self, picture: Picture) -> Prepared | VmmrError:
        try:
            return self.prepare(picture)
        except VmmrError as error:
            return error

    def _answered(self, read: Sequence[Prepared], top: int) -> list[Answer]:
        outputs = self.outputs(np.stack([found.pixels for found in read]))
        return self.answers_from(outputs, top=top, sides=[found.side for found in read])

    def _judged(self, answer: Answer, signs: list[float] | None, side: float | None) -> Answer:
        """The answer with `known` and `reason`. signs: see `Detector.signs`; None where it cannot be told."""
        sure = answer.level != ""
        if self.detector is None or signs is None:
            return replace(answer, reason=str(Reason.OK if sure else Reason.UNSURE))
        reason = self.detector.reason(signs, sure=sure, side=side)
        return replace(answer, known=reason in (Reason.OK, Reason.UNSURE), reason=str(reason))

    def _ranked(self, values: list[float], labels: list[int]) -> Answer:
        candidates = []
        for value, label in zip(values, labels, strict=True):
            item = self.taxonomy.classes[label]
            candidates.append(Candidate(item.make, item.model, item.year, value))
        first = candidates[0]
        return Answer(first.make, first.model, first.year, first.confidence, tuple(candidates[1:]))

    def _by_level(self, answers: list[Answer], logits: Tensor, scores: Tensor) -> list[Answer]:
        """The answers with every level beside them, and no finer than the network is sure."""
        assert self.levels is not None
        assert self._spec is not None
        levels = self.levels
        labels, sure = confidences_by_level(scores, levels)
        beside = {level: found for level, found in split_levels(logits, levels.widths).items() if level in levels.side}
        alone = independent(beside)
        thresholds = self._spec.thresholds or dict.fromkeys(levels.tree, 0.0)
        depth = back_off(sure, thresholds).tolist()
        found = []
        for row, (answer, place) in enumerate(zip(answers, depth, strict=True)):
            told = [
                LevelAnswer(level, levels.nodes(level)[labels[level][row]], sure[level][row].item())
                for level in levels.tree
            ]
            for level, value in alone.items():
                if level in NUMBERS:
                    told.append(LevelAnswer(level, str(year_of(value[row].item())), None))
                else:
                    confidence = beside[level][row].softmax(dim=0).amax().item()
                    told.append(LevelAnswer(level, levels.nodes(level)[value[row]], confidence))
            answer = replace(answer, level=levels.finest, levels=tuple(told))
            if place < len(levels.tree) - 1:
                answer = self._backed_off(answer, levels.tree[place] if place >= 0 else "", labels, row)
            found.append(answer)
        return found

    def _backed_off(self, answer: Answer, level: str, labels: dict[str, Tensor], row: int) -> Answer:
        """The answer said at a coarser level, or, with level "", not at all; what was first becomes an alternative."""
        first = Candidate(answer.make, answer.model, answer.year, answer.confidence)
        alternatives = (first, *answer.alternatives)
        if not level:
            return replace(answer, make="", model="", year=None, level="", alternatives=alternatives)
        make, model = self.taxonomy.makes[labels[level][row]] if level == "make" else "", ""
        if level == "model":
            make, model = self.taxonomy.models[labels[level][row]]
        confidence = next(told.confidence for told in answer.levels if told.level == level)
        assert confidence is not None
        return replace(
            answer,
            make=make,
            model=model,
            year=None,
            confidence=confidence,
            level=level,
            alternatives=alternatives,
        )


def load(
    path: str | os.PathLike[str], *, runtime: RuntimeName = "auto", device: torch.device | str = "cpu"
) -> Recognizer:
    """The recognizer of a bundle folder, or of an artifact that `vmmr export` wrote, which is then shown its golden
    pictures first.

    runtime: what runs the network; "auto" takes what `vmmr bench` found fastest on this machine, or else the usually
    fastest that is installed, of what fits the folder; `Recognizer.runtime` tells which that is. device: where torch
    computes.

    Raises BundleError for a folder that is incomplete, altered or hostile or whose network does not give what it gave
    when it was exported, ConfigError for a runtime that is not installed or cannot run it.
    """
    if runtime not in get_args(RuntimeName):
        raise ConfigError("no such runtime", got=repr(runtime), do=f"choose of {', '.join(get_args(RuntimeName))}")
    model = read_model(path)
    if isinstance(model, Bundle):
        if runtime not in ("auto", "torch"):
            raise ConfigError("a bundle is run by torch", got=f"runtime={runtime!r}", do="export it: vmmr export")
        return Recognizer(model, TorchRuntime(model, device=device))
    if torch.device(device).type != "cpu":
        raise ConfigError("artifacts run on the processor", got=f"device={device}", do="load the bundle instead")
    plan = remembered(model)
    fits = plan is not None and runtime in ("auto", plan.runtime)
    running = plan.made(model) if plan is not None and fits else model.runtime(runtime)
    require_pixels(model.golden, model.preprocess)
    require_parity(model, model.golden, running)
    return Recognizer(model, running)


def read_model(path: str | os.PathLike[str]) -> Bundle | Artifact:
    """The bundle or the artifact in a folder, told apart by its manifest.json; BundleError for anything else."""
    return read_artifact(path) if folder_format(path) == ARTIFACT.name else read_bundle(path)


def recognize(picture: str | Path, *, bundle: str | os.PathLike[str], top: int = 5) -> Answer:
    """One picture, one answer; to ask more than once, `load` the bundle and keep it."""
    return load(bundle)(picture, top=top)
