"""The live viewer: this machine alone, two paths alone, nothing of the disk, true at every moment of a run."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from anchorite.errors import InputError
from anchorite.files import is_locked
from anchorite.report.run_data import RunFiles, read_status
from anchorite.report.serve import RunServer
from tests.cli.commands import started
from tests.report.fake_run import EVIL, make_full_run

_HOLD = """
import sys, fcntl
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RunServer]:
    with RunServer(make_full_run(tmp_path / "run"), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Path]:
    """A run that has just begun and that another process holds, as training does."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("epochs: 5\n")
    words = [sys.executable, "-c", _HOLD, str(run / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield run
        assert process.stdin is not None
        process.stdin.close()


def ask(
    server: RunServer, path: str = "/", method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def test_it_listens_on_loopback_only(served: RunServer) -> None:
    assert served.server_address[0] == "127.0.0.1"
    assert served.address == f"http://127.0.0.1:{served.server_port}/"
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    assert f"0100007F:{served.server_port:04X}" in listening
    assert f"00000000:{served.server_port:04X}" not in listening


def test_it_answers_the_page_and_its_data_and_nothing_else(served: RunServer) -> None:
    status, headers, page = ask(served)
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert b"Effective settings" in page
    assert int(headers["content-length"]) == len(page)
    status, headers, data = ask(served, "/data.json")
    assert (status, headers["content-type"]) == (200, "application/json; charset=utf-8")
    assert json.loads(data)["state"] == "finished"
    (served.run_folder / "secret.txt").write_text("secret")
    wrong = (
        "/secret.txt",
        "/recipe.yaml",
        "/../run/recipe.yaml",
        "/%2e%2e/run/recipe.yaml",
        "//etc/passwd",
        "/etc/passwd",
        "/?x",
        "/data.json/",
        f"http://127.0.0.1:{served.server_port}/",
        "file:///etc/passwd",
        "*",
    )
    for path in wrong:
        status, headers, content = ask(served, path)
        assert (status, content) == (404, b"there is only /\n"), path
        assert headers["content-type"].startswith("text/plain")


def test_another_host_is_refused(served: RunServer) -> None:
    port = served.server_port
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1.evil:{port}",
    ):
        status, _, content = ask(served, "/data.json", host=host)
        assert status == 403, host
        assert b"epoch" not in content
    assert ask(served, host=f"LOCALHOST:{port}")[0] == 200
    with socket.create_connection(("127.0.0.1", port)) as connection:  # none at all, and two
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.makefile("rb").readline()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil\r\n\r\n".encode())
        assert b" 403 " in connection.makefile("rb").readline()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_only_get_and_head_are_answered(served: RunServer, method: str) -> None:
    status, headers, content = ask(served, method=method)
    assert (status, headers["allow"], content) == (405, "GET, HEAD", b"Method Not Allowed\n")
    status, headers, content = ask(served, method="HEAD")
    assert (status, content) == (200, b"")
    assert int(headers["content-length"]) > 1000


def test_the_page_may_ask_its_server_and_nobody_may_frame_it(served: RunServer) -> None:
    _, headers, page = ask(served)
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers
    assert page.count(b"connect-src &#39;self&#39;") == 1
    assert b"script-src &#39;sha256-" in page
    assert page.count(b"<script") == 1
    assert EVIL.encode() not in page
    assert ask(served, "/data.json")[1]["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def test_a_change_changes_the_stamp_and_the_page(served: RunServer) -> None:
    before = json.loads(ask(served, "/data.json")[2])
    assert f'data-stamp="{before["stamp"]}"'.encode() in ask(served)[2]
    assert json.loads(ask(served, "/data.json")[2]) == before
    with (served.run_folder / "metrics.csv").open("a") as file:
        file.write("7,0.1,10,2.5,0.98765,0.9,0.3,3\n")
    after = json.loads(ask(served, "/data.json")[2])
    assert after["stamp"] != before["stamp"]
    assert after["title"].startswith("7/6 ")
    assert b"0.9877" in ask(served)[2]


def test_a_file_that_spoils_is_told_and_the_server_lives_on(served: RunServer) -> None:
    whole = (served.run_folder / "summary.json").read_bytes()
    (served.run_folder / "summary.json").write_text("{")
    status, _, content = ask(served)
    assert status == 500
    assert b"summary.json:1:2: not valid JSON" in content
    (served.run_folder / "summary.json").write_bytes(whole)
    assert ask(served)[0] == 200


def test_before_the_first_epoch_it_is_running(training: Path) -> None:
    status = read_status(RunFiles(training))
    assert (status.state, status.epochs, status.num_epochs) == ("running", 0, 5)
    assert status.words.startswith("Training: epoch 1 of 5 since ")
    with RunServer(training, 0) as server:
        assert json.loads(server.state())["title"] == "0/5 running - run"
        assert b"No epoch has been completed yet." in server.page()


def test_asking_for_the_lock_never_takes_it(training: Path, tmp_path: Path) -> None:
    assert is_locked(training / ".lock")
    free = tmp_path / ".lock"
    assert not is_locked(free)
    assert not free.exists()
    free.touch()
    assert not is_locked(free)
    words = [sys.executable, "-c", _HOLD, str(free)]  # none of the above is still in the way
    assert subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout == b"held\n"


def test_states_are_told_apart(tmp_path: Path) -> None:
    run = make_full_run(tmp_path / "run", concluded=False)
    assert read_status(RunFiles(run)).state == "stopped"
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "epoch-0006.json").touch()
    status = read_status(RunFiles(run))
    assert status.state == "interrupted"
    assert f"anchorite train --resume {run}" in status.words
    (run / "post-mortem-1.json").touch()
    assert read_status(RunFiles(run)).state == "diverged"
    (run / "summary.json").write_text('{"reason": "complete", "seconds": 75}')
    status = read_status(RunFiles(run))
    assert (status.state, status.words.split(" Its")[0]) == ("finished", "Finished (complete): 6 of 6 epochs, 1:15.")


def test_what_is_left_is_told_from_the_last_epochs(training: Path) -> None:
    rows = "".join(f"{epoch},10,2\n" for epoch in (1, 2))
    (training / "metrics.csv").write_text(f"epoch,seconds/train,val/seconds_nms\n{rows}")
    written = (training / "metrics.csv").stat().st_mtime
    status = read_status(RunFiles(training), now=written + 4)
    assert status.words == "Training: epoch 3 of 5 since 4 s, about 32 s left."  # 3 * 12 - 4


def test_a_taken_port_is_told(served: RunServer) -> None:
    with pytest.raises(InputError, match=rf"--port {served.server_port}: another program.*0 for any"):
        RunServer(served.run_folder, served.server_port)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_prints_its_address_and_ends_cleanly(tmp_path: Path, number: int, code: int) -> None:
    run = make_full_run(tmp_path / "run")
    before = sorted(path.name for path in run.iterdir())
    process = started("report", str(run), "--serve", "--port", "0")
    address = process.stdout.readline().split()[0]
    port = int(address.removeprefix("http://127.0.0.1:").removesuffix("/"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/data.json")
    assert connection.getresponse().status == 200
    process.send_signal(number)  # with a connection still open
    output, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert output == ("ended\n" if code == 0 else "")
    assert sorted(path.name for path in run.iterdir()) == before
