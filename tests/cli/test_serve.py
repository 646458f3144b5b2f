"""`anchorite serve` as a real process, and what it refuses."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from anchorite.cli import run
from tests.cli.commands import data_folder, started, weights
from tests.serve.servers import asked


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal_ends_it(number: signal.Signals, code: int) -> None:
    process = started("serve", weights(), "--port", "0")
    try:
        found = re.search(r"on http://127\.0\.0\.1:(\d+) ", process.stdout.readline())
        assert found is not None
        port = int(found[1])
        image = next((data_folder() / "images" / "val").iterdir()).read_bytes()
        status, _, answer = asked(port, "/predict", image)
        assert (status, answer["width"]) == (200, 64)
        with pytest.raises(OSError):  # loopback only: not even another loopback address reaches it
            socket.create_connection(("127.0.0.2", port), timeout=5).close()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert errors == f"anchorite: {'interrupted' if code == 130 else 'terminated'}\n"


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert run(["serve", weights(), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"--host 127.0.0.1 --port {port}: cannot listen there: Address already in use; name another port" in error


def test_no_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_an_address_that_is_none_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", weights(), "--host", "no.such.place.invalid"]) == 2
    assert "no such address; name one of this machine's" in capsys.readouterr().err
