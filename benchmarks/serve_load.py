"""Load on `anchorite serve`: requests a second and how long they take, with 1 to 64 clients that ask without pause.

`python benchmarks/serve_load.py WEIGHTS IMAGE [--seconds 8]` starts a server of its own and prints a table. Clients run
in one process of their own on the same machine and take processor time from the server.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CLIENTS = (1, 4, 16, 32, 64)


async def client(port: int, request: bytes, until: float, taken: list[float], refused: list[float]) -> None:
    """Ask again and again on one connection; a refused request waits a tenth of a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        started = time.monotonic()
        writer.write(request)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None
        await reader.readexactly(int(length[1]))
        status = int(head.split(b" ", 2)[1])
        (taken if status == 200 else refused).append(time.monotonic() - started)
        if status == 503:
            await asyncio.sleep(0.1)
    writer.close()


async def load(port: int, body: bytes, clients: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of the requests that were answered, and of those that were refused."""
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    taken: list[float] = []
    refused: list[float] = []
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(port, head + body, until, taken, refused) for _ in range(clients)))
    return taken, refused


def main() -> None:
    """Start a server, load it, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--seconds", type=float, default=8.0)
    words = parser.parse_args()
    command = [sys.executable, "-m", "anchorite", "serve", str(words.weights), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    found = re.search(r":(\d+) ", server.stdout.readline())
    assert found is not None
    body = words.image.read_bytes()
    print("| clients | requests/s | p50 ms | p99 ms | answered 503 |\n|---|---|---|---|---|")
    try:
        asyncio.run(load(int(found[1]), body, 4, 2.0))  # warm
        for clients in CLIENTS:
            taken, refused = asyncio.run(load(int(found[1]), body, clients, words.seconds))
            p50, p99 = np.percentile(np.array(taken) * 1000, (50, 99))
            share = len(refused) / (len(taken) + len(refused))
            print(f"| {clients} | {len(taken) / words.seconds:.1f} | {p50:.0f} | {p99:.0f} | {share:.0%} |")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    main()
