"""`anchorite serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from anchorite.cli.options import AT_LEAST_ONE


def serve(
    weights: Annotated[Path, Parameter(help="Weights, such as runs/NAME/best.safetensors.")],
    *,
    host: Annotated[str, Parameter(help="Address to listen on; the default is reachable from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), help="Port; 0 takes a free one.")] = 8000,
    device: Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Parameter(help="Number format.")] = "auto",
    max_batch: Annotated[int, Parameter(validator=AT_LEAST_ONE, help="Most images that the network sees at once.")] = 8,
    max_waiting: Annotated[
        int, Parameter(validator=AT_LEAST_ONE, help="Requests in hand; more are answered 503.")
    ] = 32,
    max_megabytes: Annotated[float, Parameter(validator=Number(gt=0), help="Most that a request may send.")] = 20.0,
    max_megapixels: Annotated[float, Parameter(validator=Number(gt=0), help="Largest image that is decoded.")] = 50.0,
) -> None:
    """Answer requests with detections: POST an image to /predict, get JSON; a page to drop an image on at /.

    Needs starlette and uvicorn: pip install 'anchorite[serve]'. Whoever can reach the address can use it: there are no
    passwords and no encryption. Ctrl-C ends it.
    """
    import socket

    from anchorite.errors import InputError, StorageError

    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise InputError("serve needs starlette and uvicorn: pip install 'anchorite[serve]'") from None
    from anchorite.predict import load
    from anchorite.serve import ServeConfig, make_app

    predictor = load(weights, device, precision)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio turns Nagle's delay (40 ms an answer) off only where it sees that it is.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # whoever reads the address that is printed can connect at once
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise StorageError(f"{host}:{port}: cannot listen there: {reason}; take another --port, or 0") from error
    is_loopback = host in ("127.0.0.1", "::1", "localhost")
    config = ServeConfig(
        max_bytes=int(max_megabytes * 1e6),
        max_pixels=int(max_megapixels * 1e6),
        max_batch=max_batch,
        max_waiting=max_waiting,
        allowed_hosts=ServeConfig.allowed_hosts if is_loopback else ("*",),
    )
    address = f"[{host}]" if ":" in host else host
    print(f"serving {weights} on http://{address}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    if not is_loopback:
        print("anyone who can reach this address can use it; there are no passwords and no encryption")
    settings = uvicorn.Config(
        make_app(predictor, config), log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=5, limit_concurrency=max_waiting * 4 + 16, timeout_graceful_shutdown=5, lifespan="on",
    )  # fmt: skip
    with listening:
        uvicorn.Server(settings).run(sockets=[listening])
