"""The server's door: what of the SuperLink can be reached from elsewhere, which is what clients need and nothing more.

A SuperLink has everything on one port: /v1/fleet/ for clients, which checks their keys, and /v1/control/ and
/v1/runtime/, which have no login and carry out code. So it listens on 127.0.0.1, and the door passes on POST requests
below /v1/fleet/, each up to a size and a time. Keys that the server has refused for good are told so here.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus

import h11
import httpx

from hellora.deployment import REFUSES_KEY

PASSES = re.compile(rb"/v1/fleet/[a-z-]{1,60}")
KEY_HEADER = b"flwr-public-key"
PIECE = 1 << 16  # bytes that are read at once
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"proxy-connection")
)
OURS_TO_SAY = frozenset((b"host", b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"expect"))

log = logging.getLogger("hellora.door")


@dataclass(frozen=True)
class DoorLimits:
    """Says how much one visitor may ask for; Flower sends tensors in requests of 5 MiB."""

    request_bytes: int = 32 << 20
    head_bytes: int = 16 << 10
    head_seconds: float = 10.0  # until the head of a connection's first request is there
    idle_seconds: float = 60.0  # until that of the next is, and between the pieces of a body
    request_seconds: float = 600.0
    connections: int = 1000
    requests: int = 64  # that the SuperLink works on at once; others wait


class Refusal(Exception):
    """A request is not passed on; the connection ends with the answer."""

    def __init__(self, status: HTTPStatus, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words


class Visitor:
    """Reads requests from one connection, and writes answers to it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: DoorLimits) -> None:
        self.reader, self.writer, self.limits = reader, writer, limits
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)

    async def event(self, seconds: float) -> object:
        """Return what comes next; every piece of it within so many seconds, or TimeoutError."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            async with asyncio.timeout(seconds):
                self.http.receive_data(await self.reader.read(PIECE))
        return event

    async def head(self, seconds: float) -> h11.Request | None:
        """Return the next request, without its body, all of it within so many seconds; None where there is none."""
        async with asyncio.timeout(seconds):
            event = await self.event(seconds)
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> AsyncIterator[bytes]:
        """Yield a request's body. Raise Refusal where it is too large."""
        size = 0
        while isinstance(event := await self.event(self.limits.idle_seconds), h11.Data):
            size += len(event.data)
            self.check_size(size)
            yield bytes(event.data)

    def check_size(self, size: int) -> None:
        if size > self.limits.request_bytes:
            words = f"a request may have {self.limits.request_bytes} bytes"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, words)

    async def send(self, event: h11.Event) -> None:
        if data := self.http.send(event):
            self.writer.write(data)
            async with asyncio.timeout(self.limits.idle_seconds):
                await self.writer.drain()

    async def refuse(self, refusal: Refusal) -> None:
        """Answer as Flower's programs understand it: a number, and words that they print."""
        body = json.dumps({"code": int(refusal.status), "detail": refusal.words}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        await self.send(h11.Response(status_code=refusal.status, headers=headers))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


class Door:
    """Passes requests on to the SuperLink, and its answers back.

    `why_refused` says of a key, as it is in its header, why it is refused for good; None where it is not.
    """

    def __init__(
        self,
        superlink: httpx.AsyncClient,
        why_refused: Callable[[str], str | None],
        limits: DoorLimits,
    ) -> None:
        self.superlink, self.why_refused, self.limits = superlink, why_refused, limits
        self.working = asyncio.Semaphore(limits.requests)
        self.open = 0  # connections
        self.away = False  # the SuperLink, when last it was asked

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end, which is at the latest when a limit is reached."""
        visitor = Visitor(reader, writer, self.limits)
        self.open += 1
        try:
            if self.open > self.limits.connections:
                log.warning("%d connections are open: another was closed", self.limits.connections)
            else:
                await self.serve(visitor)
        except (OSError, TimeoutError, h11.ProtocolError, httpx.HTTPError) as error:  # somebody is gone, or silent
            log.debug("a connection was closed: %s: %s", type(error).__name__, error)
        finally:
            self.open -= 1
            writer.close()

    async def serve(self, visitor: Visitor) -> None:
        seconds = self.limits.head_seconds
        while (request := await visitor.head(seconds)) is not None:
            try:
                async with asyncio.timeout(self.limits.request_seconds):
                    await self.answer(visitor, request)
            except Refusal as refusal:
                self.tell(request, refusal)
                if visitor.http.our_state is h11.SEND_RESPONSE:
                    await visitor.refuse(refusal)
            if visitor.http.our_state is not h11.DONE or visitor.http.their_state is not h11.DONE:
                return
            visitor.http.start_next_cycle()
            seconds = self.limits.idle_seconds

    def tell(self, request: h11.Request, refusal: Refusal) -> None:
        """Log a refusal; that the SuperLink is away, which every client then asks again and again, only once."""
        away = refusal.status is HTTPStatus.SERVICE_UNAVAILABLE
        if not (away and self.away):
            log.log(logging.WARNING if away else logging.INFO, "refused %s %s: %s", *readable(request), refusal)
        self.away = away

    async def answer(self, visitor: Visitor, request: h11.Request) -> None:
        """Pass a request on, and the answer back. Raise Refusal where it is not passed."""
        self.check(visitor, request)
        headers = [(name, value) for name, value in request.headers if name not in HOP_BY_HOP | OURS_TO_SAY]
        path = request.target.decode("ascii")
        async with self.working:
            question = self.superlink.build_request("POST", path, headers=headers, content=visitor.body())
            try:
                reply = await self.superlink.send(question, stream=True)
            except httpx.TransportError as error:  # Flower's programs try again
                raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the SuperLink does not answer") from error
            self.away = False
            try:
                kept = [(name, value) for name, value in reply.headers.raw if name.lower() not in HOP_BY_HOP]
                await visitor.send(h11.Response(status_code=reply.status_code, headers=kept))
                async for piece in reply.aiter_raw():
                    await visitor.send(h11.Data(data=piece))
                await visitor.send(h11.EndOfMessage())
            finally:
                await reply.aclose()

    def check(self, visitor: Visitor, request: h11.Request) -> None:
        """Raise Refusal where a request is not one of a client, too large, or of a key that is refused."""
        headers = dict(request.headers)
        if request.method != b"POST" or not PASSES.fullmatch(request.target):
            raise Refusal(HTTPStatus.NOT_FOUND, "there is nothing here")
        if b"transfer-encoding" in headers and b"content-length" in headers:  # where a body ends is not left to guess
            raise Refusal(HTTPStatus.BAD_REQUEST, "a body has a length or comes in chunks")
        visitor.check_size(int(headers.get(b"content-length", 0)))  # h11 lets only a number through
        if why := self.why_refused(headers.get(KEY_HEADER, b"").decode("ascii", "replace")):
            # A SuperNode that is in ends itself at 401; at its next start it prints what it is told here.
            starts = request.target == b"/v1/fleet/activate-node"
            raise Refusal(HTTPStatus.GONE if starts else HTTPStatus.UNAUTHORIZED, REFUSES_KEY + why)


def readable(request: h11.Request) -> tuple[str, str]:
    """Return method and path for a log: no line breaks, not too long."""
    return ascii(request.method.decode("latin-1"))[:20], ascii(request.target.decode("latin-1"))[:100]
