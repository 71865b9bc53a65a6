"""A real server with a real bundle says what `Recognizer` says."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vmmr
from vmmr.recognizer import Recognizer
from vmmr.unknown import Reason

from .conftest import Server

COMMAND = "import sys; from vmmr.cli import main; sys.argv[0] = 'vmmr'; raise SystemExit(main())"


@pytest.fixture(scope="module")
def server(tiny_run: Path) -> Iterator[Server]:
    words = ["serve", str(tiny_run / "bundle"), "--port", "0", "--runtime", "torch", "--name", "cars"]
    server = Server(["-c", COMMAND, *words])
    yield server.wait()
    status, said = server.end()
    assert (status, said) == (0, "")


@pytest.fixture(scope="module")
def recognizer(tiny_run: Path) -> Recognizer:
    return vmmr.load(tiny_run / "bundle", runtime="torch")


@pytest.fixture(scope="module")
def images(tiny_cars: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((tiny_cars / "test").rglob("*.png"))]


def same(said: Any, right: Any) -> bool:
    """Equal, floats to five decimals."""
    if isinstance(right, dict):
        return set(said) == set(right) and all(same(said[key], right[key]) for key in right)
    if isinstance(right, list):
        return len(said) == len(right) and all(map(same, said, right))
    return bool(abs(said - right) < 1e-5) if isinstance(right, float) else bool(said == right)


def said_in_python(recognizer: Recognizer, picture: Any, top: int = 5) -> Any:
    return json.loads(json.dumps(recognizer(picture, top=top).to_dict()))


def test_answers_are_those_of_the_recogniser(server: Server, recognizer: Recognizer, images: list[bytes]) -> None:
    document = server.post("/v1/recognize?top=3", *images).json()
    assert document["model"]["name"] == "cars"
    assert re.fullmatch(r"[0-9a-f]{12}", document["model"]["version"])
    assert len(document["results"]) == len(images) == 12
    for result, image in zip(document["results"], images, strict=True):
        assert same(result, said_in_python(recognizer, image, top=3))
    assert {result["make"] for result in document["results"]} == {"Audi", "BMW"}
    [alone] = server.post("/v1/recognize?top=1", images[0]).json()["results"]
    assert alone["alternatives"] == []


def test_unknown_vehicles_are_told_as_the_recogniser_tells_them(tiny_known: Path, images: list[bytes]) -> None:
    server, recognizer = Server(["-c", COMMAND, "serve", str(tiny_known), "--port", "0"]), vmmr.load(tiny_known)
    pixels = np.asarray(Image.open(io.BytesIO(images[0])))
    for odd in (pixels[:15], np.full_like(pixels, 130), 255 - pixels):
        file = io.BytesIO()
        Image.fromarray(odd).save(file, "PNG")
        images = [*images, file.getvalue()]
    try:
        results = server.wait().post("/v1/recognize", *images).json()["results"]
        reasons = server.request("GET", "/openapi.json").json()["components"]["schemas"]["AnswerOut"]["properties"]
    finally:
        server.end()
    assert all(same(said, said_in_python(recognizer, image)) for said, image in zip(results, images, strict=True))
    assert {result["reason"] for result in results} >= {"ok", "too_small", "low_quality"}
    assert {result["known"] for result in results} == {True, False}
    assert set(reasons["reason"]["enum"]) == {str(reason) for reason in Reason}


def test_one_request_one_answer_to_the_byte(server: Server, images: list[bytes]) -> None:
    for path in ("/v1/recognize", "/v1/embed"):
        assert len({server.post(path, images[0], images[5]).body for _ in range(5)}) == 1


def test_neighbours_in_a_pass_do_not_matter(server: Server, images: list[bytes]) -> None:
    alone = [server.post("/v1/recognize", image).json()["results"][0] for image in images]
    before = server.metric("vmmr_pass_pictures_count")
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(server.post, "/v1/recognize", image) for image in images * 4]
        together = [future.result().json()["results"][0] for future in asked]
    assert server.metric("vmmr_pass_pictures_count") - before < 48  # they did share
    assert all(same(one, other) for one, other in zip(together, alone * 4, strict=True))
    mixed = server.post("/v1/recognize", images[3], b"junk", images[0], b"", images[7]).json()["results"]
    assert [result.get("error", {}).get("code") for result in mixed] == [None, "bad_image", None, "bad_image", None]
    assert all(same(mixed[at], alone[image]) for at, image in ((0, 3), (2, 0), (4, 7)))


def test_a_box_cuts(server: Server, recognizer: Recognizer, images: list[bytes]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(images[0])))
    both = np.concatenate([pixels, np.asarray(Image.open(io.BytesIO(images[-1])))], axis=1)
    file = io.BytesIO()
    Image.fromarray(both).save(file, "PNG")
    width = pixels.shape[1]
    boxes = [[0, 0, width, 36], [width, 0, 2 * width, 36], None]
    left, right, whole = server.post("/v1/recognize", *[file.getvalue()] * 3, boxes=boxes).json()["results"]
    assert same(left, said_in_python(recognizer, images[0]))
    assert same(right, said_in_python(recognizer, images[-1]))
    assert same(whole, said_in_python(recognizer, both))
    reply = server.post("/v1/recognize", images[0], boxes=[[5000, 0, 5001, 1]])
    assert (reply.status, reply.code) == (422, "bad_image")


def test_embeddings_are_those_of_the_recogniser(server: Server, recognizer: Recognizer, images: list[bytes]) -> None:
    results = server.post("/v1/embed", images[0], b"junk", images[1]).json()["results"]
    vectors = np.array([results[0]["embedding"], results[2]["embedding"]])
    np.testing.assert_allclose(vectors, recognizer.embed([images[0], images[1]]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert results[1]["error"]["code"] == "bad_image"


def test_what_is_no_picture_is_refused_without_a_word_of_the_system(server: Server, images: list[bytes]) -> None:
    bomb = io.BytesIO()
    Image.new("1", (12_001, 8)).save(bomb, "PNG")
    for bad in (b"", b"GIF89a", images[0][: len(images[0]) // 2], bomb.getvalue(), b"\x89PNG\r\n\x1a\n" + b"\0" * 50):
        for path in ("/v1/recognize", "/v1/embed"):
            reply = server.post(path, bad)
            assert (reply.status, reply.code) == (422, "bad_image")
            assert not re.search(rb"Error|Traceback|\.py|/(tmp|home|usr)|Pillow|got", reply.body)


def test_a_denoiser_restores_a_picture_as_the_recogniser_does(tiny_denoiser: Path, images: list[bytes]) -> None:
    server, recognizer = Server(["-c", COMMAND, "serve", str(tiny_denoiser), "--port", "0"]), vmmr.load(tiny_denoiser)
    try:
        assert server.wait().request("GET", "/readyz").json() == {"status": "ready", "restores": True}
        assert server.post("/v1/recognize", images[0]).json()["model"]["restores"] is True
        reply = server.post("/v1/restore", images[0])
        assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
        assert re.fullmatch(r"wait;dur=[\d.]+, read;dur=[\d.]+, pass;dur=[\d.]+", reply.headers["server-timing"])
        shown = Image.open(io.BytesIO(reply.body))
        assert (shown.format, shown.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(shown), recognizer.restore(images[0]))
        cut = server.post("/v1/restore", images[0], boxes=[[0, 0, 20, 30]])
        right = recognizer.restore(vmmr.Crop(images[0], vmmr.Box(0, 0, 20, 30)))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(cut.body))), right)
        with ThreadPoolExecutor(12) as pool:  # answers and pictures share passes, and each goes to who asked
            asked = [
                (image, pool.submit(server.post, "/v1/restore", image), pool.submit(server.post, "/v1/embed", image))
                for image in images
            ]
            for image, drawn, embedded in asked:
                pixels = np.asarray(Image.open(io.BytesIO(drawn.result().body)))
                np.testing.assert_array_equal(pixels, recognizer.restore(image))
                vector = embedded.result().json()["results"][0]["embedding"]
                np.testing.assert_allclose(vector, recognizer.embed([image])[0], atol=1e-5)
        for sent, code in (([b"junk"], "bad_image"), ([images[0]] * 2, "bad_multipart"), ([], "bad_request")):
            assert server.post("/v1/restore", *sent).code == code
        assert server.post("/v1/restore", images[0], boxes=[[500, 0, 501, 1]]).code == "bad_image"
    finally:
        server.end()


def test_a_plain_network_restores_nothing(server: Server, images: list[bytes]) -> None:
    reply = server.post("/v1/restore", images[0])
    assert (reply.status, reply.code) == (404, "no_denoiser")
    assert server.request("GET", "/readyz").json() == {"status": "ready", "restores": False}
    assert server.post("/v1/recognize", images[0]).json()["model"]["restores"] is False


def test_timings_are_in_a_header(server: Server, images: list[bytes]) -> None:
    told = server.post("/v1/recognize", images[0]).headers["server-timing"]
    assert re.fullmatch(r"wait;dur=[\d.]+, read;dur=[\d.]+, pass;dur=[\d.]+", told)


def infer(server: Server, request: Any, raw: bytes | None = None, name: str = "cars") -> Any:
    text = json.dumps(request).encode()
    length = {} if raw is None else {"Inference-Header-Content-Length": str(len(text))}
    kind = {"content-type": "application/json" if raw is None else "application/octet-stream"}
    return server.request("POST", f"/v2/models/{name}/infer", text + (raw or b""), {**kind, **length})


def tensor(datatype: str, shape: list[int], data: Any = None, **parameters: Any) -> Any:
    one = {"name": "x", "datatype": datatype, "shape": shape, "parameters": parameters}
    return {"id": "7", "inputs": [one if data is None else {**one, "data": data}]}


def test_the_open_inference_protocol(server: Server, recognizer: Recognizer, images: list[bytes]) -> None:
    assert server.request("GET", "/v2/health/live").json() == {"live": True}
    assert server.request("GET", "/v2/health/ready").json() == {"ready": True}
    assert server.request("GET", "/v2/models/cars/ready").json() == {"name": "cars", "ready": True}
    assert server.request("GET", "/v2/models/other/ready").code == "no_such_model"
    about = server.request("GET", "/v2/models/cars").json()
    assert (about["name"], about["platform"]) == ("cars", "vmmr_torch_fp32")
    shapes = {output["name"]: output["shape"] for output in about["outputs"]}
    assert shapes == {"logits": [-1, 3], "probabilities": [-1, 3], "labels": [-1]}

    some = images[:2]
    outputs = recognizer.outputs(np.stack([recognizer.read(image) for image in some]))
    probabilities = recognizer.probabilities_from(outputs)
    encoded = [base64.b64encode(image).decode() for image in some]
    framed = b"".join(struct.pack("<I", len(image)) + image for image in some)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in some])
    ways = [
        infer(server, tensor("BYTES", [2], encoded)),
        infer(server, tensor("BYTES", [2, 1], [[text] for text in encoded])),
        infer(server, tensor("BYTES", [2], binary_data_size=len(framed)), framed),
        infer(server, tensor("UINT8", list(pixels.shape), pixels.tolist())),
        infer(server, tensor("UINT8", list(pixels.shape), pixels.ravel().tolist())),
        infer(server, tensor("UINT8", list(pixels.shape), binary_data_size=pixels.nbytes), pixels.tobytes()),
    ]
    for reply in ways:
        assert reply.status == 200, reply.body
        document = reply.json()
        assert (document["model_name"], document["id"]) == ("cars", "7")
        found = {output["name"]: output for output in document["outputs"]}
        assert set(found) == {"logits", "probabilities", "labels"}
        for name, right in (("logits", outputs["logits"]), ("probabilities", probabilities)):
            assert found[name]["shape"] == [2, 3]
            assert found[name]["datatype"] == "FP32"
            np.testing.assert_allclose(np.reshape(found[name]["data"], (2, 3)), right, atol=1e-5)
        assert found["labels"]["data"] == [recognizer.taxonomy.names[k] for k in probabilities.argmax(1)]
    wanted = {**tensor("BYTES", [2], encoded), "outputs": [{"name": "labels"}]}
    assert [output["name"] for output in infer(server, wanted).json()["outputs"]] == ["labels"]


def test_tensors_that_do_not_fit(server: Server, images: list[bytes]) -> None:
    text = base64.b64encode(images[0]).decode()
    for request, raw, code in (
        (tensor("BYTES", [2], [text]), None, "bad_tensor"),
        (tensor("BYTES", [1], ["not base64"]), None, "bad_tensor"),
        (tensor("BYTES", [1], [None]), None, "bad_tensor"),
        (tensor("BYTES", [1, 1, 1], [text]), None, "bad_tensor"),
        (tensor("BYTES", [17], [text] * 17), None, "bad_tensor"),
        (tensor("BYTES", [1], [base64.b64encode(b"junk").decode()]), None, "bad_image"),
        (tensor("BYTES", [1], binary_data_size=3), b"abc", "bad_tensor"),
        (tensor("BYTES", [1], binary_data_size=8), b"\xff\xff\xff\xffabcd", "bad_tensor"),
        (tensor("BYTES", [1], binary_data_size=9), b"abc", "bad_tensor"),
        (tensor("BYTES", [1]), None, "bad_tensor"),
        (tensor("BYTES", [1], [text], binary_data_size=0), b"", "bad_tensor"),
        (tensor("UINT8", [1, 1, 1, 3], [1, 2]), None, "bad_tensor"),
        (tensor("UINT8", [1, 1, 1, 3], [1, 2, 256]), None, "bad_tensor"),
        (tensor("UINT8", [1, 1, 1, 3], [1, 2, 10**30]), None, "bad_tensor"),
        (tensor("UINT8", [1, 1, 1, 3], [1, 2, 0.5]), None, "bad_tensor"),
        (tensor("UINT8", [1, 1, 1, 3], [[1], [2, 3]]), None, "bad_tensor"),
        (tensor("UINT8", [1, 1, 1, 4], [1, 2, 3, 4]), None, "bad_tensor"),
        (tensor("UINT8", [1, 60000, 60000, 3], [1]), None, "bad_tensor"),
        (tensor("FP32", [1], [1.0]), None, "bad_request"),
        ({"inputs": []}, None, "bad_request"),
        ([], None, "bad_request"),
    ):
        reply = infer(server, request, raw)
        assert (reply.code, reply.status < 500) == (code, True), request
    assert infer(server, tensor("BYTES", [1], [text]), name="other").code == "no_such_model"
    for length in ("x", "-1", "9999999", "²"):
        headers = {"Inference-Header-Content-Length": length.encode().decode("latin-1")}
        assert server.request("POST", "/v2/models/cars/infer", b"{}", headers).code == "bad_tensor"


def test_the_routes_are_these(server: Server) -> None:
    """None of them loads a model, or fetches anything."""
    document = server.request("GET", "/openapi.json").json()
    assert {(path, verb) for path, verbs in document["paths"].items() for verb in verbs} == {
        ("/v1/recognize", "post"),
        ("/v1/embed", "post"),
        ("/v1/restore", "post"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
        ("/v2", "get"),
        ("/v2/health/live", "get"),
        ("/v2/health/ready", "get"),
        ("/v2/models/{model}", "get"),
        ("/v2/models/{model}/ready", "get"),
        ("/v2/models/{model}/infer", "post"),
    }
    assert server.request("GET", "/docs").status == 404


def test_no_picture_is_kept_or_named(server: Server, images: list[bytes]) -> None:
    """Neither a file that the processes hold open, nor a metric."""
    import psutil

    server.post("/v1/recognize", images[0] + b"\0" * 3_000_000)
    for process in (psutil.Process(server.process.pid), server.worker):
        assert [file.path for file in process.open_files() if "w" in file.mode] == []
    assert b"127.0.0.1" not in server.request("GET", "/metrics").body
