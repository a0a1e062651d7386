"""The server of `hellora watch`: what it answers, and whom."""

import gzip
import http.client
import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from run_folders import ended_run, line, write_run

from hellora.core.errors import InputError
from hellora.reporting.watch import server_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "läuft → …", [line(0)])


@pytest.fixture
def server(folder: Path) -> Iterator[ThreadingHTTPServer]:
    with server_of(folder) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ThreadingHTTPServer, path: str, host: str = "localhost:1") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    packed = answer.getheader("Content-Encoding") == "gzip"
    return answer.status, (gzip.decompress(body) if packed else body).decode()


def test_it_listens_on_loopback_only(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_is_live(server: ThreadingHTTPServer) -> None:
    status, text = ask(server, "/")
    assert status == 200
    assert "const LIVE = true;" in text


def test_the_data_are_sent_when_they_are_new(server: ThreadingHTTPServer, folder: Path) -> None:
    status, text = ask(server, "/data?since=")
    first = json.loads(text)
    assert (status, first["facts"][0]) == (200, ["state", "1 of 3 rounds, not ended"])
    assert ask(server, f"/data?since={first['version']}") == (204, "")
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(line(1)) + "\n")
    second = json.loads(ask(server, f"/data?since={first['version']}")[1])
    assert second["facts"][0] == ["state", "2 of 3 rounds, not ended"]
    assert second["version"] != first["version"]
    ended_run(folder)
    assert json.loads(ask(server, f"/data?since={second['version']}")[1])["ended"] is True


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "127.0.0.1:1", 200),
        ("/", "example.org", 403),
        ("/data", "localhost.example.org:80", 403),
        ("/rounds.jsonl", "localhost", 404),
        ("/../experiment.toml", "localhost", 404),
    ],
)
def test_nothing_else_is_served_and_to_nobody_else(
    server: ThreadingHTTPServer, path: str, host: str, status: int
) -> None:
    assert ask(server, path, host)[0] == status


def test_a_damaged_file_is_said(server: ThreadingHTTPServer, folder: Path) -> None:
    (folder / "rounds.jsonl").write_text("{\n")
    status, text = ask(server, "/data?since=1")
    assert status == 500
    assert text.startswith(f"{folder / 'rounds.jsonl'} is damaged")


def test_a_taken_port_and_a_folder_without_a_run_are_refused(
    server: ThreadingHTTPServer, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--port"):
        server_of(folder, server.server_address[1])
    with pytest.raises(InputError, match="no folder of a run"):
        server_of(tmp_path)
