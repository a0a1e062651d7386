"""nginx and Caddy before a server, with the files of examples/deploy: they let through what the door does, or less."""

import asyncio
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from doors import at_a_door

from hellora.deployment.door_process import DoorSettings
from hellora.deployment.flower_tools import free_port

pytestmark = pytest.mark.flower
FILES = Path(__file__).parents[2] / "examples" / "deploy"


def fitted(name: str, settings: DoorSettings, port: int) -> str:
    """A file of examples/deploy, with this test's ports and keys."""
    text = (FILES / name).read_text()
    for before, after in (("8443", str(port)), ("9443", str(settings.port)), ("/etc/hellora/keys", "KEYS")):
        assert before in text
        text = text.replace(before, after)
    return text.replace("KEYS", settings.certificates or "")


def nginx(folder: Path, settings: DoorSettings, port: int) -> list[str]:
    paths = "".join(
        f"{kind}_temp_path {folder / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.getuid() == 0 else ""  # or its workers could not write here
    whole = f"{user}daemon off;\npid {folder / 'nginx.pid'};\nevents {{}}\nhttp {{\naccess_log off;\n{paths}"
    (folder / "nginx.conf").write_text(f"{whole}{fitted('nginx.conf', settings, port)}\n}}\n")
    return ["nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, settings: DoorSettings, port: int) -> list[str]:
    text = fitted("Caddyfile", settings, port).replace("{\n", "{\n\tadmin off\n", 1)
    (folder / "Caddyfile").write_text(text)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    environment = {"HOME": str(folder), "PATH": "/nowhere"}
    whole = [shutil.which(command[0]) or "", *command[1:]]
    with subprocess.Popen(whole, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 20
            while True:
                try:
                    ssl.get_server_certificate(("127.0.0.1", port))
                    break
                except OSError:
                    assert process.poll() is None, process.stderr and process.stderr.read().decode()
                    assert time.monotonic() < until
                    time.sleep(0.05)
            yield
        finally:
            process.terminate()


@pytest.mark.parametrize("proxy", [nginx, caddy], ids=lambda proxy: proxy.__name__)
def test_it_lets_through_what_clients_need(
    proxy: Callable[[Path, DoorSettings, int], list[str]], tmp_path: Path
) -> None:
    if shutil.which(proxy.__name__) is None:
        problem = f"needs {proxy.__name__}"
        pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)

    def visit(settings: DoorSettings) -> list[tuple[int, str]]:
        port = free_port()
        trust = ssl.create_default_context(cafile=tmp_path / "keys" / "ca.crt")
        with (
            running(proxy(tmp_path, settings, port), port, tmp_path),
            httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, trust_env=False) as client,
        ):
            replies = [
                client.request(method, path, content=content)
                for method, path, content in (
                    ("POST", "/v1/fleet/push-object", bytes(6 << 20)),
                    ("POST", "/v1/control/start-run", b"x"),
                    ("POST", "/v1/runtime/push-messages", b"x"),
                    ("POST", "/v1/fleet/../control/start-run", b"x"),
                    ("GET", "/v1/fleet/pull-messages", b""),
                    ("GET", "/health", b""),
                    ("GET", "/docs", b""),
                    ("POST", "/v1/fleet/push-object", bytes(33 << 20)),
                )
            ]
            return [(reply.status_code, reply.text) for reply in replies]

    async def in_a_thread(settings: DoorSettings) -> list[tuple[int, str]]:
        return await asyncio.to_thread(visit, settings)

    first, *others, large = at_a_door(tmp_path, in_a_thread)
    assert first == (200, "POST /v1/fleet/push-object HTTP/1.1")
    assert {status for status, _ in others} <= {403, 404}
    assert large[0] in (413, 502)
