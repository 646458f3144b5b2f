"""The web application: `POST /predict` with an image as the body, a page to drop one on, `/info` and `/health`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from anchorite.boxes import Detections
from anchorite.data import decode_image
from anchorite.errors import InputError
from anchorite.predict import PredictConfig, Predictor
from anchorite.serve.batching import Batcher, BusyError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

Job = tuple[NDArray[np.uint8], PredictConfig]
_LIMITS: dict[str, type] = {"confidence": float, "iou_threshold": float, "max_detections": int}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'"
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
}


@dataclass(frozen=True)
class ServeConfig:
    """Limits of a server. max_bytes: of a request's body; max_pixels: of an image, checked before it is decoded.

    max_batch: images that the network sees at once; max_waiting: requests in hand, more get 503; body_seconds: how
    long a body may take to arrive; allowed_hosts: what a request may call the server, which keeps other sites' pages
    out (DNS rebinding); "*" for anything.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_batch: int = 8
    max_waiting: int = 32
    body_seconds: float = 30.0
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")


class _RefusedError(Exception):
    """A request that is not answered. status: of HTTP; message: what to tell, and what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def make_app(predictor: Predictor, config: ServeConfig | None = None) -> Starlette:
    """The application around a predictor. Every error is JSON: {"error": what is wrong and what to do}."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    service = _Service(predictor, config or ServeConfig())

    async def predict(request: Request) -> JSONResponse:
        try:
            return JSONResponse(await service.answer(request))
        except _RefusedError as error:
            headers = {"Retry-After": "1"} if error.status == 503 else None
            return JSONResponse({"error": error.message}, error.status, headers)

    async def info(_: Request) -> JSONResponse:
        return JSONResponse(service.facts())

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def page(request: Request) -> Response:
        name, kind = _FILES[request.url.path]
        content = files("anchorite.serve").joinpath("page", name).read_text(encoding="utf-8")
        return Response(content, media_type=kind, headers=_HEADERS)

    routes = [Route(path, page, methods=["GET"]) for path in _FILES]
    routes += [
        Route("/predict", predict, methods=["POST"]),
        Route("/info", info, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(service.config.allowed_hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[trusted], lifespan=service.lifespan)


class _Service:
    """What the routes share: the predictor behind its batches, threads that decode, and a count of what is in hand."""

    def __init__(self, predictor: Predictor, config: ServeConfig) -> None:
        self.predictor, self.config = predictor, config
        self.in_hand = 0
        self.batcher: Batcher[Job, Detections]
        self.decoders: ThreadPoolExecutor

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Threads while the application runs."""
        config = self.config
        with ThreadPoolExecutor(os.cpu_count(), "anchorite-decode") as self.decoders:
            async with Batcher(self._run, config.max_batch, config.max_waiting) as self.batcher:
                yield

    def facts(self) -> dict[str, Any]:
        """What is served."""
        info = self.predictor.info
        return {
            "model": info.size,
            "class_names": list(info.class_names),
            "image_size": info.image_size,
            "limits": {"max_bytes": self.config.max_bytes, "max_pixels": self.config.max_pixels},
            "defaults": PredictConfig().model_dump(include=set(_LIMITS)),
        }

    async def answer(self, request: Request) -> dict[str, Any]:
        """The detections of the image in a request's body."""
        started = time.perf_counter()
        config = _limits_of(request)
        if self.in_hand >= self.config.max_waiting:
            raise _RefusedError(503, "the server is busy; try again in a second")
        self.in_hand += 1
        try:
            data = await self._body(request)
            loop = asyncio.get_running_loop()
            image = await loop.run_in_executor(self.decoders, self._decode, data)
            del data
            found = await self.batcher.submit((image, config))
        except InputError as error:
            raise _RefusedError(400, str(error)) from error
        except BusyError:
            raise _RefusedError(503, "the server is busy; try again in a second") from None
        finally:
            self.in_hand -= 1
        milliseconds = round((time.perf_counter() - started) * 1000, 1)
        return {**as_json(found), "milliseconds": milliseconds}

    async def _body(self, request: Request) -> bytes:
        """The body, which is given up as soon as it turns out too large or too slow."""
        limit = self.config.max_bytes
        too_large = _RefusedError(413, f"the image has more than {limit / 1e6:g} MB; send a smaller one")
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and (len(stated) > 18 or int(stated) > limit):
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(self.config.body_seconds):
                async for part in request.stream():
                    data += part
                    if len(data) > limit:
                        raise too_large
        except TimeoutError:
            raise _RefusedError(408, f"the image took more than {self.config.body_seconds:g} s to arrive") from None
        if not data:
            raise _RefusedError(
                400, "the body is empty; send the bytes of an image file: curl --data-binary @photo.jpg"
            )
        return bytes(data)

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        return decode_image(data, name="the image sent", max_pixels=self.config.max_pixels)

    def _run(self, jobs: list[Job]) -> list[Detections]:
        """One pass for each setting of limits that occurs; nearly always there is one."""
        found: dict[int, Detections] = {}
        for config in dict.fromkeys(config for _, config in jobs):
            numbers = [number for number, (_, other) in enumerate(jobs) if other == config]
            images = [jobs[number][0] for number in numbers]
            streamed = self.predictor.stream(images, config, batch_size=self.config.max_batch)
            found.update(zip(numbers, (result.detections for result in streamed), strict=True))
        return [found[number] for number in range(len(jobs))]


def as_json(found: Detections) -> dict[str, Any]:
    """Size of the image and its detections, best first, boxes as [x1, y1, x2, y2] in pixels of the image."""
    height, width = found.image_size
    rows = zip(found.class_ids.tolist(), found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
    return {
        "width": width,
        "height": height,
        "detections": [
            {
                "class": found.class_names[class_id],
                "class_id": class_id,
                "score": round(score, 4),
                "box": [round(side, 2) for side in box],
            }
            for class_id, score, box in rows
        ],
    }


def _limits_of(request: Request) -> PredictConfig:
    """The limits of a request's query; 422 for names and values that there are not."""
    given: dict[str, Any] = {}
    for name, text in request.query_params.items():
        name = "iou_threshold" if name == "iou_limit" else name  # its earlier name
        kind = _LIMITS.get(name)
        if kind is None:
            raise _RefusedError(422, f"{name[:40]!r}: no such setting; there are {', '.join(_LIMITS)}")
        try:
            given[name] = kind(text)
        except ValueError:
            raise _RefusedError(422, f"{name}={text[:40]!r}: must be a number") from None
    try:
        return PredictConfig(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        reason = problem["msg"].replace("Input should be", "must be")
        raise _RefusedError(422, f"{problem['loc'][0]}={problem['input']}: {reason}") from None
