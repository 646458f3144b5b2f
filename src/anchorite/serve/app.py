"""The web application: `POST /predict` with an image as the body, a page to drop one on, `/info` and `/health`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from anchorite.boxes import Detections
from anchorite.data import decode_image
from anchorite.errors import InputError
from anchorite.predict import PredictConfig, Predictor

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Job = tuple[NDArray[np.uint8], PredictConfig]

_LIMITS = ("confidence", "iou_threshold", "max_detections")
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


def make_app(predictor: Predictor, config: ServeConfig | None = None) -> Starlette:
    """The application around a predictor. Every error is JSON: {"error": what is wrong and what to do}."""
    service = _Service(predictor, config or ServeConfig())

    async def health(_: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def page(request: Request) -> Response:
        name, kind = _FILES[request.url.path]
        content = files("anchorite.serve").joinpath("page", name).read_text(encoding="utf-8")
        return Response(content, media_type=kind, headers=_HEADERS)

    async def failed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    routes = [Route(path, page, methods=["GET"]) for path in _FILES]
    routes += [
        Route("/predict", service.predict, methods=["POST"]),
        Route("/info", service.info, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(service.config.allowed_hosts), www_redirect=False)
    handlers = {HTTPException: failed}
    return Starlette(routes=routes, middleware=[trusted], exception_handlers=handlers, lifespan=service.lifespan)


class _Service:
    """What the routes share: the predictor behind its batches, threads that decode, and a count of what is in hand."""

    def __init__(self, predictor: Predictor, config: ServeConfig) -> None:
        self.predictor, self.config = predictor, config
        self.in_hand = 0
        self.found_in: Callable[[Job], Awaitable[Detections]]
        self.decoders: ThreadPoolExecutor

    @asynccontextmanager
    async def lifespan(self, _: object) -> AsyncIterator[None]:
        """Threads while the application runs."""
        with ThreadPoolExecutor(os.cpu_count(), "anchorite-decode") as self.decoders:
            async with batched(self._run, self.config.max_batch) as self.found_in:
                yield

    async def info(self, _: Request) -> JSONResponse:
        """What is served."""
        info, config = self.predictor.info, self.config
        return JSONResponse(
            {
                "model": info.size,
                "class_names": list(info.class_names),
                "image_size": info.image_size,
                "limits": {"max_bytes": config.max_bytes, "max_pixels": config.max_pixels},
                "defaults": PredictConfig().model_dump(include=set(_LIMITS)),
            }
        )

    async def predict(self, request: Request) -> JSONResponse:
        """The detections of the image in a request's body, as `Detections.to_dict` has them."""
        started = time.perf_counter()
        unknown = next((name for name in request.query_params if name not in (*_LIMITS, "iou_limit")), None)
        if unknown is not None:
            raise HTTPException(422, f"{unknown[:40]!r}: no such setting; there are {', '.join(_LIMITS)}")
        try:
            limits = PredictConfig.model_validate_strings(dict(request.query_params), strict=False)
        except ValidationError as error:
            problem = error.errors()[0]
            reason = problem["msg"].replace("Input should be", "must be")
            raise HTTPException(422, f"{problem['loc'][0]}={problem['input'][:40]!r}: {reason}") from None
        if self.in_hand >= self.config.max_waiting:
            raise HTTPException(503, "the server is busy; try again in a second", headers={"Retry-After": "1"})
        self.in_hand += 1
        try:
            data = await self._body(request)
            decode = partial(decode_image, data, name="the image sent", max_pixels=self.config.max_pixels)
            image = await asyncio.get_running_loop().run_in_executor(self.decoders, decode)
            del data, decode
            found = await self.found_in((image, limits))
        except InputError as error:
            raise HTTPException(400, str(error)) from error
        finally:
            self.in_hand -= 1
        return JSONResponse({**found.to_dict(), "milliseconds": round((time.perf_counter() - started) * 1000, 1)})

    async def _body(self, request: Request) -> bytes:
        """The body, which is given up as soon as it turns out too large or too slow."""
        limit = self.config.max_bytes
        too_large = HTTPException(413, f"the image has more than {limit / 1e6:g} MB; send a smaller one")
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
            raise HTTPException(408, f"the image took more than {self.config.body_seconds:g} s to arrive") from None
        if not data:
            raise HTTPException(400, "the body is empty; send the bytes of an image: curl --data-binary @photo.jpg")
        return bytes(data)

    def _run(self, jobs: Sequence[Job]) -> list[Detections]:
        """One pass for each setting of limits that occurs; nearly always there is one."""
        found: dict[int, Detections] = {}
        for limits in dict.fromkeys(limits for _, limits in jobs):
            numbers = [number for number, (_, other) in enumerate(jobs) if other == limits]
            images = [jobs[number][0] for number in numbers]
            streamed = self.predictor.stream(images, limits, batch_size=self.config.max_batch)
            found.update(zip(numbers, (result.detections for result in streamed), strict=True))
        return [found[number] for number in range(len(jobs))]


@asynccontextmanager
async def batched(
    run: Callable[[Sequence[Item]], Sequence[Answer]], max_batch: int
) -> AsyncIterator[Callable[[Item], Awaitable[Answer]]]:
    """A function that gives the answer of `run` for one item, and raises what `run` raised for its batch.

    `run` is called in a thread of its own with up to `max_batch` items: whatever waits when it becomes free is its next
    batch; nothing is ever waited for to fill one.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[Item, asyncio.Future[Answer]]] = asyncio.Queue()

    async def answer_of(item: Item) -> Answer:
        future: asyncio.Future[Answer] = loop.create_future()
        waiting.put_nowait((item, future))
        return await future

    async def work() -> None:
        """Answer what waits, a batch at a time, until cancelled."""
        while True:
            batch = [await waiting.get()]
            while len(batch) < max_batch and not waiting.empty():
                batch.append(waiting.get_nowait())
            batch = [(item, future) for item, future in batch if not future.done()]  # who asked may have left meanwhile
            if not batch:
                continue
            try:
                answers = await loop.run_in_executor(thread, run, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    with ThreadPoolExecutor(1, "anchorite-network") as thread:
        working = asyncio.create_task(work())
        try:
            yield answer_of
        finally:
            working.cancel()
            await asyncio.wait([working])
