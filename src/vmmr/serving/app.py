"""The routes: /v1 of our own, /v2 of the Open Inference Protocol, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

import vmmr
from vmmr.serving.batcher import Batcher, Picture, Replies
from vmmr.serving.limits import Gate, refusal
from vmmr.serving.metrics import CONTENT_TYPE, Metrics
from vmmr.serving.open_inference import inferred, model_metadata, pictures_of, request_schema
from vmmr.serving.schema import (
    BOXES,
    CODES,
    PICTURES,
    Embedded,
    Failure,
    InferResponse,
    Ready,
    Recognized,
    RefusalError,
    State,
    V2Failure,
    V2Live,
    V2Metadata,
    V2Model,
    V2ModelReady,
    V2Ready,
)
from vmmr.serving.settings import Settings
from vmmr.serving.supervisor import Supervisor, WorkerRefusedError

__all__ = ["create_app"]

_TOP = Annotated[int, Query(ge=1, le=100, description="candidates of an answer, itself included")]


def _form_of(pictures: int) -> dict[str, Any]:
    """A form of at most so many pictures, for OpenAPI."""
    file = {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP"}
    boxes = "JSON: for every picture [left, top, right, bottom], half-open, or null"
    properties = {
        "image": file if pictures == 1 else {"type": "array", "items": file, "minItems": 1, "maxItems": pictures},
        "boxes": {"type": "string", "description": boxes},
    }
    schema = {"type": "object", "required": ["image"], "additionalProperties": False, "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


_INFER = {"requestBody": {"required": True, "content": {"application/json": {"schema": request_schema()}}}}
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def create_app(
    settings: Settings, command: Sequence[str], *, token: bytes | None = None, on_refused: Callable[[str], None]
) -> FastAPI:
    """The server's application. command: what starts a worker. token: what requests must bring. on_refused hears why
    the worker cannot serve, before which nothing is ready."""
    metrics = Metrics()
    supervisor = Supervisor(
        command,
        {name: getattr(settings, name) for name in ("bundle", "runtime", "device", "batch")},
        work_s=settings.work_s,
        on_start=metrics.workers.inc,
    )
    batcher = Batcher(
        supervisor,
        metrics,
        batch=settings.batch,
        latency_s=settings.latency_ms / 1e3,
        queue=settings.queue,
        deadline_s=settings.deadline_s,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async def keep() -> None:
            try:
                await supervisor.run()
            except WorkerRefusedError as error:
                on_refused(str(error))

        tasks = app.state.worker, _ = [asyncio.create_task(keep()), asyncio.create_task(batcher.run())]
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    app = FastAPI(
        title="vmmr",
        version=vmmr.__version__,
        description="Vehicle make and model recognition that holds up in bad images.",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.batcher = batcher
    app.add_middleware(
        Gate,
        metrics=metrics,
        place=batcher.place,
        token=token,
        body_bytes=settings.body_mib << 20,
        hosts=settings.hosts,
        read_s=settings.read_s,
    )
    _refusals(app)
    _health(app, batcher, supervisor, metrics)
    _v1(app, settings.name, batcher, supervisor)
    _v2(app, settings.name, batcher, supervisor)
    _page(app)
    return app


def _refusals(app: FastAPI) -> None:
    """Every error leaves as one of `CODES`."""

    def told(request: Request, error: RefusalError, more: Mapping[str, str] | None = None) -> Response:
        status, headers, body = refusal(request.url.path, error)
        said = {name.decode(): value.decode() for name, value in headers.items()}
        return Response(body, status, {**said, **(more or {})})

    @app.exception_handler(RefusalError)
    async def refused(request: Request, error: RefusalError) -> Response:
        return told(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return told(request, RefusalError("bad_request", _first(error.errors())))

    @app.exception_handler(HTTPException)
    async def without_route(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "internal")
        return told(request, RefusalError(code), error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return told(request, RefusalError("internal"))


def _first(errors: Sequence[Any]) -> str:
    """Where the first mistake is and what it is, without what was sent."""
    return f"{'.'.join(map(str, errors[0]['loc']))}: {errors[0]['msg']}"[:300]


def _documented(*codes: str, model: type[Any] = Failure) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route, for OpenAPI: its own codes and those that any may give."""
    by_status: dict[int | str, list[str]] = {}
    for code in (*codes, "bad_http", "unauthorized", "wrong_host", "header_too_large", "internal"):
        by_status.setdefault(CODES[code][0], []).append(code)
    return {status: {"model": model, "description": ", ".join(names)} for status, names in by_status.items()}


_BODY = ("cross_origin", "slow_request", "too_large", "unsupported_media")
_WORK = (*_BODY, "overloaded", "not_ready", "late", "worker_lost", "stopping")


def _json(model: Any, timing: Mapping[str, float] | None = None) -> Response:
    text = json.dumps(model, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json", headers=_timed(timing or {}))


def _timed(timing: Mapping[str, float]) -> dict[str, str]:
    told = ", ".join(f"{name};dur={value:.3f}" for name, value in timing.items())
    return {"server-timing": told} if told else {}


def _health(app: FastAPI, batcher: Batcher, supervisor: Supervisor, metrics: Metrics) -> None:
    @app.get("/healthz", response_model=State, responses=_documented(), tags=["health"])
    async def alive() -> Response:
        """This process is up."""
        return _json({"status": "ok"})

    @app.get("/readyz", response_model=Ready, responses=_documented("not_ready", "stopping"), tags=["health"])
    async def ready() -> Response:
        """The model is loaded and warm."""
        batcher.check(0)
        return _json({"status": "ready", "restores": _about(supervisor, "restores")})

    @app.get("/metrics", response_class=Response, responses=_documented(), tags=["health"])
    async def counters() -> Response:
        """Counters, as Prometheus reads them."""
        metrics.waiting.set(batcher.waiting)
        metrics.ready.set(batcher.ready)
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})


def _v1(app: FastAPI, name: str, batcher: Batcher, supervisor: Supervisor) -> None:
    async def replies_to(request: Request, item: dict[str, Any], most: int = PICTURES) -> Replies:
        pictures = [Picture({**item, **box}, blob) for box, blob in await _form(request, most)]
        replies = await batcher.ask(pictures, request.state.place)
        if len(pictures) == 1 and "error" in replies.results[0]:
            raise RefusalError(replies.results[0]["error"])
        return replies

    async def asked(request: Request, item: dict[str, Any]) -> Response:
        replies = await replies_to(request, item)
        results = [
            {"error": {"code": result["error"], "message": CODES[result["error"]][1]}} if "error" in result else result
            for result in replies.results
        ]
        model = {"name": name, "version": _version(supervisor), "restores": bool(_about(supervisor, "restores"))}
        return _json({"model": model, "results": results}, replies.timing)

    codes = ("bad_multipart", "bad_image", "bad_request", "no_finite_output", *_WORK)
    options: dict[str, Any] = {"responses": _documented(*codes), "openapi_extra": _form_of(PICTURES), "tags": ["v1"]}
    drawn: dict[int | str, Any] = {200: {"description": "the restored picture", "content": {"image/png": {}}}}

    @app.post("/v1/recognize", response_model=Recognized, **options)
    async def recognize(request: Request, top: _TOP = 5) -> Response:
        """Name the vehicle in every picture. One bad picture of several has its error in its place; a single bad one is
        refused with 422."""
        return await asked(request, {"want": "answer", "top": top})

    @app.post("/v1/embed", response_model=Embedded, **options)
    async def embed(request: Request) -> Response:
        """The features of every picture, as a vector of length 1: the nearer two are, the more alike the vehicles."""
        return await asked(request, {"want": "embedding"})

    @app.post(
        "/v1/restore",
        response_class=Response,
        responses={**_documented(*codes, "no_denoiser"), **drawn},
        openapi_extra=_form_of(1),
        tags=["v1"],
    )
    async def restore(request: Request) -> Response:
        """One picture without its noise, as far as the model's denoiser can tell: all of it, or of its box, at the
        resolution that the model works at, as PNG."""
        if supervisor.model is not None and not _about(supervisor, "restores"):
            raise RefusalError("no_denoiser")
        replies = await replies_to(request, {"want": "restored"}, 1)
        return Response(replies.results[0]["png"], media_type="image/png", headers=_timed(replies.timing))


async def _form(request: Request, most: int) -> list[tuple[dict[str, Any], bytes]]:
    """The pictures of a form, each with its box."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise RefusalError("unsupported_media", "multipart/form-data")
    try:
        form = await _InMemory(request.headers, request.stream(), max_files=most, max_fields=1).parse()
    except (MultiPartException, ValueError) as error:  # ValueError: a character set that is none
        raise RefusalError("bad_multipart") from error
    blobs, boxes = [], "[]"
    for field, value in form.multi_items():
        if field == "image" and isinstance(value, UploadFile):
            blobs.append(await value.read())
        elif field == "boxes" and isinstance(value, str):
            boxes = value
        else:
            raise RefusalError("bad_request", "the form holds files `image` and one field `boxes`")
    if not blobs:
        raise RefusalError("bad_request", "the form holds one file `image` or more")
    try:
        cut = BOXES.validate_json(boxes) or [None] * len(blobs)
    except ValidationError as error:
        raise RefusalError(
            "bad_request", _first([{**e, "loc": ("boxes", *e["loc"])} for e in error.errors()])
        ) from error
    if len(cut) != len(blobs) or any(box and not (box[0] < box[2] and box[1] < box[3]) for box in cut):
        raise RefusalError("bad_request", "boxes: one for every picture, left < right and top < bottom")
    return [({"box": box} if box else {}, blob) for box, blob in zip(cut, blobs, strict=True)]


class _InMemory(MultiPartParser):
    """Bodies are bounded before they come here; no picture is written to disk."""

    spool_max_size = 1 << 40


def _about(supervisor: Supervisor, fact: str) -> Any:
    return supervisor.model[fact] if supervisor.model is not None else None


def _version(supervisor: Supervisor) -> str:
    return _about(supervisor, "version") or ""


def _v2(app: FastAPI, name: str, batcher: Batcher, supervisor: Supervisor) -> None:
    def known(wanted: str) -> dict[str, Any]:
        if wanted != name:
            raise RefusalError("no_such_model")
        if supervisor.model is None:
            raise RefusalError("not_ready")
        return supervisor.model

    def options(*codes: str) -> dict[str, Any]:
        return {"responses": _documented(*codes, model=V2Failure), "tags": ["v2"]}

    @app.get("/v2", response_model=V2Metadata, **options())
    async def server() -> Response:
        """What this server is."""
        return _json({"name": "vmmr", "version": vmmr.__version__, "extensions": []})

    @app.get("/v2/health/live", response_model=V2Live, **options())
    async def live() -> Response:
        """This process is up."""
        return _json({"live": True})

    @app.get("/v2/health/ready", response_model=V2Ready, **options("not_ready", "stopping"))
    async def ready() -> Response:
        """The model is loaded and warm."""
        batcher.check(0)
        return _json({"ready": True})

    @app.get("/v2/models/{model}", response_model=V2Model, **options("no_such_model", "not_ready"))
    async def metadata(model: str) -> Response:
        """What the model takes and gives."""
        return _json(model_metadata(name, known(model)))

    @app.get(
        "/v2/models/{model}/ready", response_model=V2ModelReady, **options("no_such_model", "not_ready", "stopping")
    )
    async def model_ready(model: str) -> Response:
        """The model is loaded and warm."""
        known(model)
        batcher.check(0)
        return _json({"name": name, "ready": True})

    infer_options = options("no_such_model", "bad_tensor", "bad_image", "bad_request", "no_finite_output", *_WORK)

    @app.post("/v2/models/{model}/infer", response_model=InferResponse, openapi_extra=_INFER, **infer_options)
    async def infer(model: str, request: Request) -> Response:
        """Tensors in, tensors out. A bad picture refuses the request: the protocol knows no error for a part of it."""
        known(model)
        asked, pictures = pictures_of(request.headers, await request.body())
        replies: Replies = await batcher.ask(pictures, request.state.place)
        for result in replies.results:
            if "error" in result:
                raise RefusalError(result["error"])
        return _json(inferred(name, _version(supervisor), asked, replies.results), replies.timing)


def _page(app: FastAPI) -> None:
    folder = files("vmmr.serving") / "page"

    def add(address: str, name: str, kind: str) -> None:
        content = (folder / name).read_bytes()

        @app.get(address, include_in_schema=False)
        async def page() -> Response:
            return Response(content, media_type=kind)

    for address, (name, kind) in _PAGE.items():
        add(address, name, kind)
