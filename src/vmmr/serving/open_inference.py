"""The tensors of the Open Inference Protocol, version 2 (KServe, Triton): pictures in; logits, probabilities, labels
out.

One input, of any name: BYTES [N] or [N, 1] with the bytes of an image each, in base64 where they stand in JSON; or
UINT8 [N, H, W, 3], RGB pixels of any size. Inputs may follow the JSON as raw bytes (the protocol's binary tensor
extension, header Inference-Header-Content-Length); outputs are always JSON.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from vmmr.serving.batcher import Picture
from vmmr.serving.schema import PICTURES, InferRequest, RefusalError, TensorIn

__all__ = ["inferred", "model_metadata", "pictures_of", "request_schema"]

_SIDE, _PIXELS = 12_000, 40_000_000  # as of an encoded picture
_OUTPUTS = {"logits": "FP32", "probabilities": "FP32", "labels": "BYTES"}


def pictures_of(headers: Mapping[str, str], body: bytes) -> tuple[InferRequest, list[Picture]]:
    """The request in a body, and its pictures. Raises RefusalError: unsupported_media, bad_request, bad_tensor."""
    length = headers.get("inference-header-content-length")
    if length is None:
        if not headers.get("content-type", "application/json").lower().startswith("application/json"):
            raise RefusalError("unsupported_media", "application/json")
        text, raw = body, None
    else:
        if not (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= len(body)):
            raise RefusalError("bad_tensor", "Inference-Header-Content-Length is no length of this body")
        text, raw = body[: int(length)], body[int(length) :]
    try:
        request = InferRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RefusalError("bad_request", f"{where}: {first['msg']}"[:300]) from None
    tensor = request.inputs[0]
    if tensor.shape[0] > PICTURES:
        raise RefusalError("bad_tensor", f"at most {PICTURES} pictures in one request")
    binary = "binary_data_size" in tensor.parameters
    if binary != (tensor.data is None) or (
        binary and (raw is None or tensor.parameters["binary_data_size"] != len(raw))
    ):
        raise RefusalError("bad_tensor", "an input has data, or binary_data_size and so many bytes behind the JSON")
    blobs = _encoded(tensor, raw) if tensor.datatype == "BYTES" else _pixels(tensor, raw)
    item: dict[str, Any] = {"want": "tensors"}
    if tensor.datatype == "UINT8":
        item["shape"] = tensor.shape[1:]
    return request, [Picture(item, blob) for blob in blobs]


def _encoded(tensor: TensorIn, raw: bytes | None) -> list[bytes]:
    if tensor.shape[1:] not in ([], [1]):
        raise RefusalError("bad_tensor", "BYTES pictures have the shape [N] or [N, 1]")
    blobs: list[bytes] = []
    try:
        if raw is None:
            assert tensor.data is not None
            for value in tensor.data:
                [text] = value if isinstance(value, list) else [value]
                blobs.append(base64.b64decode(text, validate=True))
        else:
            at = 0
            while at < len(raw):
                (size,) = struct.unpack_from("<I", raw, at)
                blobs.append(raw[at + 4 : at + 4 + size])
                at += 4 + size
            if at != len(raw):
                raise ValueError
    except (ValueError, TypeError, binascii.Error, struct.error):
        raise RefusalError("bad_tensor", "BYTES are base64 in JSON, or lengths and bytes behind it") from None
    if len(blobs) != tensor.shape[0]:
        raise RefusalError("bad_tensor", f"{len(blobs)} elements for the shape {tensor.shape}")
    return blobs


def _pixels(tensor: TensorIn, raw: bytes | None) -> list[bytes]:
    shape = tensor.shape
    if len(shape) != 4 or shape[3] != 3 or max(shape[1:3]) > _SIDE or shape[1] * shape[2] > _PIXELS:
        raise RefusalError("bad_tensor", "UINT8 pictures have the shape [N, H, W, 3]")
    if raw is None:
        try:
            values = np.asarray(tensor.data)
        except ValueError:  # lists of different lengths
            raise RefusalError("bad_tensor", "the data is no array") from None
        if values.dtype.kind != "i" or values.size == 0 or values.min() < 0 or values.max() > 255:
            raise RefusalError("bad_tensor", "UINT8 data are integers from 0 to 255")
        raw = values.astype(np.uint8).tobytes()
    size = shape[1] * shape[2] * 3
    if len(raw) != shape[0] * size:
        raise RefusalError("bad_tensor", f"{len(raw)} values for the shape {shape}")
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def inferred(name: str, version: str, request: InferRequest, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The answer to a request, from what the worker said of each picture."""
    wanted: list[str] = [output.name for output in request.outputs or ()] or list(_OUTPUTS)
    outputs = []
    for output in dict.fromkeys(wanted):
        rows = [result[output] for result in results]
        if output == "labels":
            outputs.append({"name": output, "shape": [len(rows)], "datatype": "BYTES", "data": rows})
        else:
            data = [value for row in rows for value in row]
            outputs.append({"name": output, "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": data})
    document: dict[str, Any] = {"model_name": name, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    return {**document, "outputs": outputs}


def model_metadata(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """What the model takes and gives, from what its worker said when it was ready."""
    widths = {"logits": [-1, model["outputs"]], "probabilities": [-1, model["classes"]], "labels": [-1]}
    return {
        "name": name,
        "versions": [model["version"]],
        "platform": f"vmmr_{model['runtime']}_{model['precision']}",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [{"name": output, "datatype": kind, "shape": widths[output]} for output, kind in _OUTPUTS.items()],
    }


def request_schema() -> dict[str, Any]:
    """The JSON schema of a request, in one piece."""
    schema = InferRequest.model_json_schema()
    parts = schema.pop("$defs")
    schema["properties"]["inputs"]["items"] = parts["TensorIn"]
    schema["properties"]["outputs"]["anyOf"][0]["items"] = parts["TensorWanted"]
    return schema
