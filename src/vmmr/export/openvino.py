"""OpenVINO: its own form of a network (IR: model.xml and model.bin), int8 by NNCF, and its runtime.

Neither library reports home: `openvino_telemetry`, which both would use, is kept from loading.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vmmr.data.pixels import cores
from vmmr.errors import BundleError
from vmmr.export.runtime import Outputs, check_pixels, in_parts

__all__ = ["OpenvinoRuntime", "checked_ir", "quantise_ir", "to_ir"]


def _openvino() -> Any:
    # Importing either library sends an event to its makers, unless this package is missing: both do without.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # slow to import, and an extra

    return openvino


def to_ir(model: bytes) -> tuple[bytes, bytes]:
    """An ONNX graph as (model.xml, model.bin), in float32.

    What is constant is computed: OpenVINO's reader leaves the weights of a grouped convolution as a reshape of those of
    the graph, in which int8 would not find their channels, and the convolution would stay in float32.
    """
    openvino = _openvino()
    from openvino.passes import ConstantFolding, Manager  # only once the package is without its telemetry

    network = openvino.Core().read_model(model)
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(network)
    return _written(network)


def _written(model: Any) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.xml"
        _openvino().save_model(model, str(target), compress_to_fp16=False)
        return target.read_bytes(), target.with_suffix(".bin").read_bytes()


def checked_ir(xml: bytes) -> bytes:
    """model.xml, if it is OpenVINO's own form and nothing else.

    OpenVINO tells formats apart by content, and other formats may name files that it would open; its own, read from
    memory, has no weights but those of model.bin. BundleError for anything else, and for a document type, which could
    define entities.
    """
    if b"<!" in xml:
        raise BundleError("model.xml holds more than elements", do="export it anew")
    try:
        root = ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise BundleError("model.xml is no XML", got=error) from error
    if root.tag != "net":
        raise BundleError("model.xml is no OpenVINO network", got=repr(root.tag[:80]))
    return xml


class OpenvinoRuntime:
    """A network run by OpenVINO on the CPU. model: model.xml, or an ONNX graph as `checked_onnx` gives it; weights:
    model.bin. precision: bf16 computes in it where the processor can. threads: None for all cores.

    batch: pictures that go through the network together; larger calls are cut, so that what passes between two layers
    stays in the processor's cache; None for two a thread. streams: parts that are computed side by side, each on its
    share of the threads, which then need not wait for each other at every layer. The network is compiled twice: for
    parts of exactly `batch` pictures, since it is faster where shapes are known, and for any number on all threads, by
    which goes what does not give every stream a part. BundleError for what it cannot run, and for another input or
    other outputs."""

    name = "openvino"

    def __init__(
        self,
        model: bytes,
        weights: bytes | None,
        size: tuple[int, int],
        precision: str,
        *,
        threads: int | None = None,
        streams: int = 1,
        batch: int | None = None,
    ) -> None:
        openvino = _openvino()
        threads = threads or cores()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # every process would count from the first core, and share it with the others
        }
        self.size, self.precision, self._batch, self._streams = size, precision, batch or 2 * threads, streams
        core = openvino.Core()
        try:
            network = core.read_model(model) if weights is None else core.read_model(model, weights)
            ports = [[port.any_name for port in side] for side in (network.inputs, network.outputs)]
            shape = network.inputs[0].partial_shape if ports[0] == ["pixels"] else None
            if ports != [["pixels"], ["logits", "features"]] or shape != openvino.PartialShape([-1, *size, 3]):
                raise BundleError("the network has other inputs or outputs", got=f"{ports}, {shape}")
            self._rest = core.compile_model(network, "CPU", {**settings, "PERFORMANCE_HINT": "LATENCY"})
            network.reshape([self._batch, *size, 3])
            self._parts = core.compile_model(network, "CPU", {**settings, "NUM_STREAMS": streams})
        except RuntimeError as error:
            raise BundleError("OpenVINO cannot run the network", got=str(error).strip()[-200:]) from error
        self._own = threading.local()  # a request serves one thread at a time

    def __call__(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime`."""
        check_pixels(pixels, self.size)
        pixels = np.ascontiguousarray(pixels)
        whole = len(pixels) - len(pixels) % (self._batch * self._streams)
        try:
            found = [self._run_parts(pixels[:whole])] if whole else []
            if whole < len(pixels):
                found.append(in_parts(self._run_rest, pixels[whole:], self._batch))
            return _joined(found)
        except RuntimeError as error:
            raise BundleError("OpenVINO cannot run the network", got=str(error).strip()[-200:]) from error

    def _run_rest(self, pixels: NDArray[np.uint8]) -> Outputs:
        if not hasattr(self._own, "request"):
            self._own.request = self._rest.create_infer_request()
        self._own.request.infer([pixels], share_inputs=True)
        return _found(self._own.request)

    def _run_parts(self, pixels: NDArray[np.uint8]) -> Outputs:
        if not hasattr(self._own, "requests"):
            self._own.requests = [self._parts.create_infer_request() for _ in range(self._streams)]
        running: deque[Any] = deque()
        found: list[Outputs] = []
        for number, start in enumerate(range(0, len(pixels), self._batch)):
            if len(running) == self._streams:
                found.append(_waited(running.popleft()))
            request = self._own.requests[number % self._streams]
            request.start_async([pixels[start : start + self._batch]], share_inputs=True)
            running.append(request)
        return _joined([*found, *map(_waited, running)])


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _waited(request: Any) -> Outputs:
    request.wait()
    return _found(request)


def _found(request: Any) -> Outputs:
    """Copies, since a request's buffers are reused."""
    return {name: np.array(request.get_tensor(name).data) for name in ("logits", "features")}


def quantise_ir(xml: bytes, weights: bytes, pixels: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """The network in int8, by NNCF's post-training quantisation on `pixels`, uint8 [N, H, W, 3]. Normalisation stays in
    float32: the statistics of an image in fog lie far from those of most."""
    openvino = _openvino()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # where its progress bar belongs
        warnings.simplefilter("ignore")
        import nncf  # slow to import, and an extra

        logging.getLogger("nncf").setLevel(logging.ERROR)
        network = openvino.Core().read_model(xml, weights)
        steps = network.get_ordered_ops()
        first = next((place for place, step in enumerate(steps) if step.get_type_name() == "Convolution"), 0)
        before = [s.get_friendly_name() for s in steps[:first] if s.get_type_name() not in ("Constant", "Parameter")]
        quantised = nncf.quantize(
            network,
            nncf.Dataset([row[None] for row in pixels]),
            preset=nncf.QuantizationPreset.MIXED,  # symmetric weights, asymmetric activations
            subset_size=len(pixels),
            ignored_scope=nncf.IgnoredScope(names=before, validate=False),
        )
    return _written(quantised)
