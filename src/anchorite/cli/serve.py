"""`anchorite serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from anchorite.choices import PrecisionName
from anchorite.cli.options import DEVICE, PositiveInt, Weights
from anchorite.errors import InputError

if TYPE_CHECKING:
    import socket

    from anchorite.serve import ServeConfig


@Parameter(name="*")
@dataclass(frozen=True)
class RequestOptions:
    """What is taken in, and how much of it at once."""

    max_batch: Annotated[PositiveInt, Parameter(help="Most images that the network sees at once.")] = 8
    max_waiting: Annotated[PositiveInt, Parameter(help="Requests in hand; more are answered 503.")] = 32
    max_megabytes: Annotated[float, Parameter(validator=Number(gt=0), help="Most that a request may send.")] = 20.0
    max_megapixels: Annotated[float, Parameter(validator=Number(gt=0), help="Largest image that is decoded.")] = 50.0

    def config(self, is_loopback: bool) -> ServeConfig:
        """As the server takes them; host names other than the loopback interface's only where it listens elsewhere."""
        from anchorite.serve import ServeConfig

        return ServeConfig(
            max_bytes=int(self.max_megabytes * 1e6),
            max_pixels=int(self.max_megapixels * 1e6),
            max_batch=self.max_batch,
            max_waiting=self.max_waiting,
            allowed_hosts=ServeConfig.allowed_hosts if is_loopback else ("*",),
        )


def serve(
    weights: Weights,
    *,
    host: Annotated[str, Parameter(help="Address to listen on; the default is reachable from this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), help="Port; 0 takes a free one.")] = 8000,
    device: Annotated[str, DEVICE] = "auto",
    precision: Annotated[PrecisionName, Parameter(help="Number format.")] = "auto",
    limits: RequestOptions = RequestOptions(),
) -> None:
    """Answer requests with detections: POST an image to /predict, get JSON; a page to drop an image on is at /.

    Needs starlette and uvicorn: pip install 'anchorite[serve]'. Whoever can reach the address can use it: there are no
    passwords and no encryption. Ctrl-C ends it.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise InputError("serve needs starlette and uvicorn: pip install 'anchorite[serve]'") from None
    from anchorite.export import load_predictor
    from anchorite.serve import make_app

    predictor = load_predictor(weights, device, precision)
    listening = _listening(host, port)
    is_loopback = host in ("127.0.0.1", "::1", "localhost")
    address = f"[{host}]" if ":" in host else host
    print(f"serving {weights} on http://{address}:{listening.getsockname()[1]} (Ctrl-C ends it)")
    if not is_loopback:
        print("anyone who can reach this address can use it; there are no passwords and no encryption")
    settings = uvicorn.Config(
        make_app(predictor, limits.config(is_loopback)), log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=5, limit_concurrency=limits.max_waiting * 4 + 16, timeout_graceful_shutdown=5, lifespan="on",
    )  # fmt: skip
    with listening:
        uvicorn.Server(settings).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that is listened on already, so that whoever reads the printed address can connect at once."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, because asyncio turns Nagle's delay (40 ms an answer) off only where it sees that it is.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        flags = f"--host {host} --port {port}"
        if isinstance(error, socket.gaierror):
            raise InputError(f"{flags}: no such address; name one of this machine's, such as 127.0.0.1") from error
        reason = error.strerror or str(error)
        raise InputError(
            f"{flags}: cannot listen there: {reason}; name another port, or 0 for any that is free"
        ) from error
    return listening
