"""The interface: what requests hold, what answers say, and every code that a refusal may carry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

__all__ = [
    "BOXES",
    "CODES",
    "PICTURES",
    "AnswerOut",
    "Boxes",
    "Embedded",
    "EmbeddingOut",
    "ErrorOut",
    "Failure",
    "InferRequest",
    "InferResponse",
    "Model",
    "Ready",
    "Recognized",
    "RefusalError",
    "State",
    "V2Failure",
    "V2Live",
    "V2Metadata",
    "V2Model",
    "V2ModelReady",
    "V2Ready",
]

PICTURES = 16
"""In one request at most."""

CODES: dict[str, tuple[int, str]] = {
    "bad_http": (400, "this is no HTTP request"),
    "bad_multipart": (400, "the body is no multipart/form-data that could be read"),
    "bad_tensor": (400, "a tensor does not fit its shape, its type or the model"),
    "unauthorized": (401, "send the bearer token of this server"),
    "cross_origin": (403, "the pages of other sites may not ask this server"),
    "not_found": (404, "there is nothing at this address"),
    "no_such_model": (404, "this server has another model"),
    "no_denoiser": (404, "the model of this server cannot restore pictures"),
    "method_not_allowed": (405, "this address knows other methods"),
    "slow_request": (408, "the request did not arrive in time"),
    "too_large": (413, "the request body is too large"),
    "unsupported_media": (415, "this address takes another kind of body"),
    "wrong_host": (421, "this server is not called by this name"),
    "bad_image": (
        422,
        "no acceptable picture: JPEG, PNG or WebP, whole, of at most 10 MiB, 40 million pixels and 12,000 a side, "
        "with the box inside it",
    ),
    "bad_request": (422, "the request is not as the schema says"),
    "header_too_large": (431, "the head of the request is too large"),
    "internal": (500, "this is our fault"),
    "no_finite_output": (500, "the model gave no finite numbers for this picture"),
    "late": (503, "the answer would have come too late; try again"),
    "not_ready": (503, "the model is not ready yet; try again"),
    "overloaded": (503, "too many pictures are waiting; try again"),
    "stopping": (503, "the server is going down; try again"),
    "worker_lost": (503, "the process that computed the answer was lost; try again"),
}
"""Code -> status, and what it says. Codes are stable; what they say may change."""


class RefusalError(Exception):
    """A request, or one picture of it, that gets no answer. detail: what to add, and never text of the system's."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code, self.detail = code, detail
        self.status, told = CODES[code]
        self.message = f"{told}: {detail}" if detail else told
        super().__init__(self.message)


class _Out(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorOut(_Out):
    """Why there is no answer."""

    code: str = Field(description="stable, for programs", json_schema_extra={"enum": list[JsonValue](CODES)})
    message: str = Field(description="for people")


class Failure(_Out):
    """A request, or one of its pictures, without an answer."""

    error: ErrorOut


class Model(_Out):
    """What answered."""

    name: str
    version: str = Field(description="the first twelve digits of the SHA-256 of the folder's manifest")
    restores: bool = Field(description="whether /v1/restore works: the bundle has a denoiser")


Reason = Literal["ok", "unsure", "unknown_vehicle", "not_a_vehicle", "too_small", "low_quality"]
Confidence = Annotated[float, Field(ge=0, le=1)]


class CandidateOut(_Out):
    """One possible answer."""

    make: str
    model: str
    year: int | None
    confidence: Confidence


class LevelOut(_Out):
    """What is said at one level by itself."""

    level: str
    value: str
    confidence: Confidence | None


class AnswerOut(_Out):
    """What is said of a picture, no finer than the model is sure of: level "" says nothing, "make" the make alone."""

    make: str
    model: str
    year: int | None
    confidence: Confidence
    alternatives: list[CandidateOut]
    level: str
    levels: list[LevelOut]
    known: bool | None = Field(description="whether the model learned this vehicle; null where it cannot tell")
    reason: Reason = Field(description="ok, or why not to trust what is said")


class Recognized(_Out):
    """One result for every picture, in their order."""

    model: Model
    results: list[AnswerOut | Failure]


class EmbeddingOut(_Out):
    """The direction of a picture's features: a vector of length 1."""

    embedding: list[float]


class Embedded(_Out):
    """One result for every picture, in their order."""

    model: Model
    results: list[EmbeddingOut | Failure]


class State(_Out):
    """Of the process."""

    status: Literal["ok"]


class Ready(_Out):
    """Of the server and its model."""

    status: Literal["ready"]
    restores: bool = Field(description="whether /v1/restore works: the bundle has a denoiser")


Box = Annotated[
    tuple[
        Annotated[int, Field(ge=0, lt=1 << 20)],
        Annotated[int, Field(ge=0, lt=1 << 20)],
        Annotated[int, Field(gt=0, lt=1 << 20)],
        Annotated[int, Field(gt=0, lt=1 << 20)],
    ],
    Field(description="left, top, right, bottom in pixels of the upright picture, half-open"),
]
Boxes = Annotated[list[Box | None], Field(max_length=PICTURES)]
"""One for every picture, null for the whole of it."""

BOXES: TypeAdapter[list[tuple[int, int, int, int] | None]] = TypeAdapter(Boxes)


class _In(BaseModel):
    """The protocol lets clients send more than a server knows."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class TensorIn(_In):
    """Pictures: BYTES [N] or [N, 1], the bytes of images in base64; or UINT8 [N, H, W, 3], pixels."""

    name: str = Field(max_length=256)
    shape: list[Annotated[int, Field(ge=1, le=1 << 16)]] = Field(min_length=1, max_length=4)
    datatype: Literal["BYTES", "UINT8"]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class TensorWanted(_In):
    """An output to send; without any, all are sent."""

    name: Literal["logits", "probabilities", "labels"]


class InferRequest(_In):
    """A request of the Open Inference Protocol."""

    id: str | None = Field(None, max_length=256)
    parameters: dict[str, Any] = {}
    inputs: list[TensorIn] = Field(min_length=1, max_length=1)
    outputs: list[TensorWanted] | None = None


class TensorOut(_Out):
    """Row by row in one list."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | list[str]


class InferResponse(_Out):
    """An answer of the Open Inference Protocol."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[TensorOut]


class V2Failure(_Out):
    """A refusal of the Open Inference Protocol: code and message in one."""

    error: str


class V2Live(_Out):
    """Of the process."""

    live: bool


class V2Ready(_Out):
    """Of the server."""

    ready: bool


class V2ModelReady(_Out):
    """Of the model."""

    name: str
    ready: bool


class V2Metadata(_Out):
    """Of the server."""

    name: str
    version: str
    extensions: list[str]


class TensorKind(_Out):
    """Of the model's inputs and outputs; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class V2Model(_Out):
    """Of the model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorKind]
    outputs: list[TensorKind]
