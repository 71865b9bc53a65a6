"""ONNX: a bundle's network as one graph without external data, what is refused in a stranger's, and ONNX Runtime.

The graph takes `pixels`, uint8 [B, H, W, 3], and gives `logits` and `features`; normalisation is part of it.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vmmr.data.pixels import cores
from vmmr.errors import BundleError, ConfigError
from vmmr.export.bundle import Bundle
from vmmr.export.runtime import Outputs, PixelNetwork, check_pixels, in_parts
from vmmr.models.backbone import Backbone
from vmmr.models.heads import HierarchyHead

__all__ = ["OnnxRuntime", "checked_onnx", "quantise_onnx", "to_onnx"]

_OPSET = 20


class _Prefixed(nn.ModuleDict):
    """Modules by level, as attributes that Python can name: `class` is a level and a keyword, and the exporter writes
    code."""

    def __init__(self, modules: nn.ModuleDict) -> None:
        super().__init__({f"level_{key}": module for key, module in modules.items()})

    def __getitem__(self, key: str) -> nn.Module:
        return super().__getitem__(f"level_{key}")


def to_onnx(bundle: Bundle) -> bytes:
    """The bundle's network as a graph of any batch, in float32. Raises ConfigError where torch cannot export it."""
    network = PixelNetwork(bundle.network())
    for head in [module for module in network.modules() if isinstance(module, HierarchyHead)]:
        head.linear, head.embed = _Prefixed(head.linear), _Prefixed(head.embed)
    width = bundle.preprocess.width
    # Channels are last where ONNX Runtime normalises: three numbers a pixel cost it ten times what a row of them does.
    for trunk in [module for module in network.modules() if isinstance(module, Backbone)]:
        trunk.scale, trunk.shift = (part.repeat(1, 1, 1, width) for part in (trunk.scale, trunk.shift))
    pixels = torch.zeros(2, bundle.preprocess.height, width, 3, dtype=torch.uint8)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            quiet.setLevel(logging.ERROR)
            program = torch.onnx.export(
                network,
                (pixels,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["pixels"],
                output_names=["logits", "features"],
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).splitlines()[:1]
        raise ConfigError(
            f"{bundle.spec.backbone} cannot be exported to ONNX", got=reason, do="pick another backbone"
        ) from error
    finally:
        quiet.setLevel(level)
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def checked_onnx(data: bytes, size: tuple[int, int]) -> bytes:
    """The graph written anew from what was understood of it, if it is one that we could have exported for this input.

    BundleError for anything else: external data or sparse tensors anywhere (they name files that a runtime would open),
    operators outside of ONNX's own set, functions, or inputs and outputs other than ours.
    """
    import onnx  # slow to import, and an extra
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise BundleError("model.onnx is no ONNX graph", got=error) from error
    model.DiscardUnknownFields()
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (message.external_data or message.data_location):
            raise BundleError("model.onnx refers to other files", got=repr(message.name[:80]), do="export it anew")
        if isinstance(message, onnx.SparseTensorProto):
            raise BundleError("model.onnx holds sparse tensors", do="export it anew")
        if isinstance(message, onnx.NodeProto) and message.domain not in ("", "ai.onnx"):
            raise BundleError("model.onnx uses operators of another set", got=repr(message.domain[:80]))
    if model.functions:
        raise BundleError("model.onnx defines operators of its own", got=len(model.functions))
    found = [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in model.graph.input]
    sides = [d.dim_value for v in model.graph.input for d in v.type.tensor_type.shape.dim][1:]
    if found != [("pixels", onnx.TensorProto.UINT8, 4)] or sides != [*size, 3]:
        raise BundleError("model.onnx takes another input", got=found or None, do=f"it needs pixels [B, {size}, 3]")
    if [v.name for v in model.graph.output] != ["logits", "features"]:
        raise BundleError("model.onnx gives other outputs", got=[v.name[:80] for v in model.graph.output])
    written: bytes = model.SerializeToString()
    return written


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all below it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(part)


class OnnxRuntime:
    """A graph run by ONNX Runtime on the CPU. model: as `checked_onnx` gives it. threads: of one call; None leaves the
    choice to the library. batch: pictures that go through the network together; larger calls are cut. BundleError for a
    graph that it cannot run."""

    name = "onnxruntime"

    def __init__(
        self,
        model: bytes,
        size: tuple[int, int],
        precision: str,
        *,
        threads: int | None = None,
        batch: int | None = None,
    ) -> None:
        import onnxruntime  # slow to import, and an extra

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or cores()  # by itself it would tie each to a core
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # who decodes needs the cores
        options.add_session_config_entry("session.load_model_format", "ONNX")  # never guessed
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # a dozen kinds, of a private module
            raise BundleError("ONNX Runtime cannot run model.onnx", got=str(error)[:200]) from error
        self.size, self.precision, self._batch = size, precision, batch

    def __call__(self, pixels: NDArray[np.uint8]) -> Outputs:
        """See `Runtime`."""
        check_pixels(pixels, self.size)
        return in_parts(self._run, pixels, self._batch)

    def _run(self, pixels: NDArray[np.uint8]) -> Outputs:
        try:
            logits, features = self._session.run(["logits", "features"], {"pixels": np.ascontiguousarray(pixels)})
        except Exception as error:  # as above: a graph that does not fit itself
            raise BundleError("ONNX Runtime cannot run model.onnx", got=str(error)[:200]) from error
        return {"logits": logits, "features": features}


class _Pictures:
    """The calibration images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._rows = iter(pixels)

    def get_next(self) -> Mapping[str, NDArray[np.uint8]] | None:
        row = next(self._rows, None)
        return None if row is None else {"pixels": row[None]}


def quantise_onnx(model: bytes, pixels: NDArray[np.uint8]) -> bytes:
    """The graph with int8 convolutions and products: weights by channel, activations by the extremes that they reach on
    `pixels`, uint8 [N, H, W, 3] (static quantisation, QDQ form). Normalisation stays in float32."""
    import onnx
    from onnxruntime import quantization

    log = logging.getLogger()
    level = log.level
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(model)
            nodes = onnx.load_from_string(model).graph.node
            first = next((place for place, node in enumerate(nodes) if node.op_type == "Conv"), 0)
            quantization.quantize_static(
                source,
                target,
                _Pictures(pixels),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Mul", "Clip", "Relu"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=[node.name for node in nodes[:first]],
            )
            return target.read_bytes()
        finally:
            log.setLevel(level)
