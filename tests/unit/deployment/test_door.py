"""The server's door: what clients ask for passes, bit for bit; nothing else does, nor too much of it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from hellora.deployment.door import Door, DoorLimits

pytestmark = pytest.mark.flower

Visit = Callable[[int], Awaitable[Any]]  # at a port
LIMITS = DoorLimits(request_bytes=1000, head_bytes=2000, head_seconds=0.2, idle_seconds=0.3, connections=3)


class SuperLink:
    """Notes what reaches it, and answers with what it was asked, backwards."""

    def __init__(self, broken: bool = False) -> None:
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.broken = broken

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.broken:
            raise httpx.ConnectError("nobody")
        body = await request.aread()
        self.asked.append((request.url.raw_path.decode(), body, dict(request.headers)))
        headers = {"x-mine": "1", "content-length": str(len(body))}
        return httpx.Response(401 if b"unknown" in body else 200, stream=Pieces(body[::-1]), headers=headers)


class Pieces(httpx.AsyncByteStream):
    """An answer that comes in two pieces."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body[:2]
        yield self.body[2:]


def visiting(
    visit: Visit, superlink: SuperLink, limits: DoorLimits = LIMITS, refused: dict[str, str] | None = None
) -> Any:
    """What a visit at an open door comes to."""

    async def all_of_it() -> Any:
        inside = httpx.AsyncClient(transport=httpx.MockTransport(superlink), base_url="https://inside")
        async with inside:
            door = Door(inside, (refused or {}).get, limits)
            server = await asyncio.start_server(door.welcome, "127.0.0.1", 0)
            async with server:
                return await visit(server.sockets[0].getsockname()[1])

    return asyncio.run(all_of_it())


def asking(method: str, path: str, **more: Any) -> Visit:
    async def visit(port: int) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            return await client.request(method, path, **more)

    return visit


def saying(text: bytes) -> Visit:
    """Send bytes, and read to the end."""

    async def visit(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text)
        found = await reader.read()
        writer.close()
        return found

    return visit


def test_what_a_client_asks_passes_as_it_is() -> None:
    superlink, body = SuperLink(), bytes(range(256))
    headers = {"flwr-public-key": "abc", "flwr-signature": "def", "x-forwarded-for": "10.0.0.1"}
    reply = visiting(asking("POST", "/v1/fleet/push-object", content=body, headers=headers), superlink)
    assert (reply.status_code, reply.content, reply.headers["x-mine"]) == (200, body[::-1], "1")
    ((path, arrived, told),) = superlink.asked
    assert (path, arrived, told["flwr-public-key"], told["flwr-signature"]) == (
        "/v1/fleet/push-object", body, "abc", "def",
    )  # fmt: skip
    assert "x-forwarded-for" not in told
    assert told["host"] == "inside"


def test_a_connection_has_many_requests_and_a_refused_key_ends_it() -> None:
    superlink = SuperLink()

    async def visit(port: int) -> list[int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            bodies = [b"one", b"unknown", b"", b"four"]
            return [(await client.post("/v1/fleet/pull-messages", content=body)).status_code for body in bodies]

    assert visiting(visit, superlink) == [200, 401, 200, 200]
    keyed = asking("POST", "/v1/fleet/activate-node", headers={"flwr-public-key": "abc"})
    reply = visiting(keyed, superlink, refused={"abc": "ward's key was revoked"})
    assert reply.status_code == 410
    assert json.loads(reply.text) == {"code": 410, "detail": "this server refuses this key: ward's key was revoked"}
    keyed = asking("POST", "/v1/fleet/pull-messages", headers={"flwr-public-key": "abc"})
    assert visiting(keyed, superlink, refused={"abc": "why"}).status_code == 401, "at which a SuperNode ends itself"
    assert len(superlink.asked) == 4


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/fleet/pull-messages"),
        ("PUT", "/v1/fleet/pull-messages"),
        ("GET", "/"),
        ("GET", "/health"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/push-messages"),
        ("POST", "/v1/responses"),
        ("POST", "/v1/fleet/"),
        ("POST", "/v1/fleet/pull-messages?a=b"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/a/b"),
        ("POST", "//v1/fleet/pull-messages"),
    ],
)
def test_nothing_else_passes(method: str, path: str) -> None:
    superlink = SuperLink()
    words = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    assert visiting(saying(words), superlink).startswith(b"HTTP/1.1 404 ")
    assert superlink.asked == []


def test_every_path_of_flowers_own_but_clients_is_refused() -> None:
    """The list is the one by which the installed SuperLink reads requests."""
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES as paths

    superlink = SuperLink()

    async def visit(port: int) -> dict[str, int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            return {path: (await client.request(method, path)).status_code for method, path in paths}

    found = visiting(visit, superlink)
    assert len(found) > 50
    for path, status in found.items():
        assert status == (200 if path.startswith("/v1/fleet/") else 404), path


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_request_has_a_size(framing: str) -> None:
    superlink = SuperLink()
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n"
    if framing == "length":
        words = head + b"Content-Length: 1001\r\n\r\n"
    else:
        words = head + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * (b"1f5\r\n" + 501 * b"x" + b"\r\n") + b"0\r\n\r\n"
    assert visiting(saying(words), superlink).startswith(b"HTTP/1.1 413 ")
    assert superlink.asked == []


@pytest.mark.parametrize(
    "words",
    [
        b"",  # silence
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n",  # half a head
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf",
        b"POST /v1/fleet/pull-messages HTTP/1.1\r\nX: " + 3000 * b"x",  # a head without end
        b"\x16\x03\x01 no HTTP at all\r\n\r\n",
        b"POST /v1/fleet/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["silence", "head", "body", "long", "noise", "framing"],
)
def test_whoever_stalls_or_speaks_no_http_is_shut_out(words: bytes) -> None:
    started, superlink = time.monotonic(), SuperLink()
    found = visiting(saying(words), superlink)
    assert b" 200 " not in found
    assert superlink.asked == []
    assert time.monotonic() - started < 5


def test_so_many_connections_are_open_at_once() -> None:
    async def visit(port: int) -> list[bool]:
        visitors = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        await asyncio.sleep(0.05)
        ended = [reader.at_eof() for reader, _ in visitors]
        for _, writer in visitors:
            writer.close()
        return ended

    limits = DoorLimits(connections=3)
    assert visiting(visit, SuperLink(), limits) == [False, False, False, True]


def test_a_superlink_that_is_away_is_one_that_clients_try_again() -> None:
    reply = visiting(asking("POST", "/v1/fleet/pull-messages", content=b"x"), SuperLink(broken=True))
    assert reply.status_code == 503
