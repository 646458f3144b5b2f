"""The server as its users meet it: real HTTP to a real detector on the loopback interface."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import anchorite
from anchorite.predict import PredictConfig, Predictor
from anchorite.serve import ServeConfig, make_app
from tests.cli.commands import data_folder, weights
from tests.serve.servers import asked, running

CONFIG = ServeConfig(max_bytes=100_000, max_pixels=100_000, max_batch=4, max_waiting=6, body_seconds=1.0)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return anchorite.load(weights(), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def port(predictor: Predictor) -> Iterator[int]:
    with running(make_app(predictor, CONFIG)) as number:
        yield number


def image_bytes() -> bytes:
    return next((data_folder() / "images" / "val").iterdir()).read_bytes()


def test_an_image_gets_what_predict_finds(predictor: Predictor, port: int) -> None:
    status, _, answer = asked(port, "/predict?confidence=0.001&max_detections=7", image_bytes())
    assert status == 200
    path = next((data_folder() / "images" / "val").iterdir())
    expected = predictor.predict([path], confidence=0.001, max_detections=7)[0]
    assert (answer["width"], answer["height"]) == (64, 64)
    assert len(answer["detections"]) == len(expected) == 7
    for found, other in zip(answer["detections"], expected.to_dict()["detections"], strict=True):
        assert found == other


def test_each_of_many_at_once_gets_its_own(predictor: Predictor) -> None:
    sizes = [(40 + 8 * number, 96) for number in range(12)]
    bodies = [cv2.imencode(".png", np.full((*size, 3), 90, np.uint8))[1].tobytes() for size in sizes]
    answers: dict[int, Any] = {}
    with running(make_app(predictor, ServeConfig(max_waiting=32))) as number:

        def ask(which: int) -> None:
            confidence = (0.001, 0.9)[which % 2]
            answers[which] = asked(number, f"/predict?confidence={confidence}", bodies[which])

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for which, (height, width) in enumerate(sizes):
        status, _, answer = answers[which]
        assert (status, answer["height"], answer["width"]) == (200, height, width)
        assert all(found["score"] >= (0.001, 0.9)[which % 2] for found in answer["detections"])


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/predict", b"", 400, "the body is empty"),
        ("/predict", b"no image at all", 400, "the image sent"),
        ("/predict", b"\x89PNG\r\n\x1a\n" + b"x" * 50, 400, "the image sent"),
        ("/predict?confidence=2", b"x", 422, "must be less than or equal to 1"),
        ("/predict?confidence=much", b"x", 422, "must be a valid number"),
        ("/predict?size=3", b"x", 422, "no such setting; there are confidence"),
        ("/predict", b"x" * 100_001, 413, "more than 0.1 MB"),
    ],
)
def test_what_cannot_be_answered_is_explained(port: int, path: str, body: bytes, status: int, said: str) -> None:
    code, _, answer = asked(port, path, body)
    assert (code, said in answer["error"]) == (status, True), answer


def test_a_large_image_is_refused_before_it_is_decoded(port: int) -> None:
    body = cv2.imencode(".png", np.zeros((400, 400, 3), np.uint8))[1].tobytes()
    code, _, answer = asked(port, "/predict", body)
    assert code == 400
    assert "pixels" in answer["error"]


def test_a_body_that_states_no_length_is_cut_off_at_the_limit(port: int) -> None:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    parts = (b"x" * 10_000 for _ in range(20))
    connection.request("POST", "/predict", parts, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_does_not_arrive_is_given_up(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\nabc")
        started = time.monotonic()
        answer = connection.recv(4096)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert 0.5 < time.monotonic() - started < 20
    assert asked(port, "/predict", image_bytes())[0] == 200


def test_a_crowd_is_told_to_come_again(predictor: Predictor) -> None:
    held, answers = threading.Event(), []

    class Slow(Predictor):
        def __init__(self) -> None:
            self.__dict__.update(predictor.__dict__)

        def stream(self, *words: Any, **more: Any) -> Any:
            held.wait(20)
            return predictor.stream(*words, **more)

    with running(make_app(Slow(), CONFIG)) as number:

        def ask() -> None:
            answers.append(asked(number, "/predict", image_bytes()))

        threads = [threading.Thread(target=ask) for _ in range(15)]
        for thread in threads:
            thread.start()
        while len(answers) < 9:  # six are in hand; the others come back at once
            time.sleep(0.01)
        held.set()
        for thread in threads:
            thread.join()
    statuses = sorted(status for status, _, _ in answers)
    assert statuses == [200] * 6 + [503] * 9
    assert all(headers["retry-after"] == "1" for status, headers, _ in answers if status == 503)


def test_other_names_methods_and_places_are_refused(port: int) -> None:
    assert asked(port, "/predict", image_bytes(), Host="evil.example")[0] == 400
    assert asked(port, "/info", Host=f"localhost:{port}")[0] == 200
    assert asked(port, "/predict")[0] == 405
    for path in ("/../pyproject.toml", "/page/app.js", "/%2e%2e/app.py", "/app.css/../app.py"):
        assert asked(port, path)[0] == 404


def test_info_names_what_is_served(predictor: Predictor, port: int) -> None:
    status, _, facts = asked(port, "/info")
    assert status == 200
    assert facts["class_names"] == list(predictor.info.class_names)
    assert facts["defaults"]["confidence"] == PredictConfig().confidence
    assert asked(port, "/health")[2] == {"status": "ok"}


@pytest.mark.browser
def test_the_page_finds_draws_and_explains(browser: Any, port: int, tmp_path: Path) -> None:
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if f":{port}/" not in request.url else None)
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator("#facts", has_text="64 px").wait_for()
    page.locator("#confidence").fill("0.05")
    page.locator("#file").set_input_files(next((data_folder() / "images" / "val").iterdir()))
    page.locator("#said", has_text="in 64 x 64 pixels").wait_for()
    count = page.locator("rect").count()
    assert count == page.locator("tbody tr").count()
    assert page.locator("#said").inner_text().startswith(f"{count} object")
    wrong = tmp_path / "no-image.png"
    wrong.write_bytes(b"nothing")
    page.locator("#file").set_input_files(wrong)
    page.locator("#said.wrong", has_text="the image sent").wait_for()
    page.close()
    assert [text for text in complaints if "400" not in text and "blob:" not in text] == []
