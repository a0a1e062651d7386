"""The process of the server's door: TLS with the server's certificate, and a health address for this machine only.

    python -m hellora.deployment.door_process settings.json

A certificate that was renewed is shown from the next connection on, without a restart. The process ends when its
standard input does.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import ssl
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from hellora.deployment.certificates import days_left
from hellora.deployment.door import Door, DoorLimits
from hellora.deployment.trainer import end_with_parent

LOOK_SECONDS = 2.0  # between looks at files
SUPERLINK_SECONDS = 120.0  # that the SuperLink may take to answer
HANDSHAKE_SECONDS = 10.0
HEALTH_SECONDS = 5.0

log = logging.getLogger("hellora.door")


@dataclass(frozen=True)
class DoorSettings:
    """Says where the door is, and what is behind it. Without certificates both sides speak plain text."""

    host: str
    port: int
    superlink: str  # its URL
    authority: str | None  # that has signed the SuperLink's certificate
    certificates: str | None  # the folder of server.crt and server.key
    refused: str  # the file of keys that are refused, each with the reason
    state: str  # the server's folder, of whose disk the health address tells
    health_port: int | None


class Watched:
    """Tells whether files have changed since the last look."""

    def __init__(self, *paths: Path) -> None:
        self.paths, self.seen = paths, self.stamps(paths)

    @staticmethod
    def stamps(paths: tuple[Path, ...]) -> list[tuple[int, int] | None]:
        return [(at.st_mtime_ns, at.st_ino) if path.exists() and (at := path.stat()) else None for path in paths]

    def changed(self) -> bool:
        before, self.seen = self.seen, self.stamps(self.paths)
        return before != self.seen


@dataclass
class Refused:
    """Knows the keys that the server refuses, from a file that may change."""

    path: Path
    reasons: dict[str, str] = field(default_factory=dict)

    def why(self, key: str) -> str | None:
        return self.reasons.get(key)

    def read(self) -> None:
        if self.path.exists():
            self.reasons = json.loads(self.path.read_text())


async def keep_looking(
    refused: Refused, keys: Watched, context: ssl.SSLContext | None, certificate: Watched
) -> None:  # fmt: skip
    """Take up a renewed certificate, and keys that were refused, within seconds."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if keys.changed():
            refused.read()
        if context is not None and certificate.changed():
            try:
                context.load_cert_chain(certificate.paths[0], certificate.paths[1])
                log.info("showing the new certificate")
            except (OSError, ssl.SSLError) as error:  # half of the pair is there yet, or it is none
                log.error("the new certificate cannot be used, the former is shown: %s", error)


def certificate_files(folder: str) -> tuple[Path, Path]:
    """Return the paths of the certificate and its key."""
    return Path(folder) / "server.crt", Path(folder) / "server.key"


# --------------------------------------------------------------------------------------------------------------- health


async def health_of(settings: DoorSettings, superlink: httpx.AsyncClient, door: Door) -> tuple[bool, dict[str, object]]:
    """Say whether clients can be served, and what an operator watches."""
    try:
        answers = (await superlink.get("/health", timeout=HEALTH_SECONDS)).status_code < 500
    except httpx.HTTPError:
        answers = False
    found: dict[str, object] = {"superlink": answers, "connections": door.open}
    found["disk_free_bytes"] = shutil.disk_usage(settings.state).free
    if settings.certificates is not None:
        found["certificate_days"] = days_left(certificate_files(settings.certificates)[0])
    return answers, found


async def tell_health(
    settings: DoorSettings, superlink: httpx.AsyncClient, door: Door,
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
) -> None:  # fmt: skip
    """Answer any request with 200 where the server is well, with 503 where it is not."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(2 * HEALTH_SECONDS):
            await reader.readuntil(b"\r\n\r\n")
            well, found = await health_of(settings, superlink, door)
            body = json.dumps(found).encode() + b"\n"
            status = b"200 OK" if well else b"503 Service Unavailable"
            head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
            writer.write(head % (status, len(body)) + body)
            await writer.drain()
    writer.close()


# -------------------------------------------------------------------------------------------------------------- process


async def keep_open(settings: DoorSettings, limits: DoorLimits) -> None:
    """Serve until cancelled."""
    files = () if settings.certificates is None else certificate_files(settings.certificates)
    refused = Refused(Path(settings.refused))
    keys, certificate = Watched(refused.path), Watched(*files)  # before they are read
    refused.read()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if files else None
    if context is not None:
        context.load_cert_chain(*files)
    trust = ssl.create_default_context(cafile=settings.authority) if settings.authority else True
    async with httpx.AsyncClient(
        base_url=settings.superlink,
        verify=trust,
        timeout=httpx.Timeout(SUPERLINK_SECONDS, connect=HEALTH_SECONDS),
        limits=httpx.Limits(max_connections=limits.requests + 1),
        trust_env=False,  # no proxy stands before this machine's own SuperLink
    ) as superlink:
        door = Door(superlink, refused.why, limits)
        handshake = HANDSHAKE_SECONDS if context else None
        servers = [
            await asyncio.start_server(
                door.welcome, settings.host, settings.port, ssl=context, ssl_handshake_timeout=handshake
            )
        ]
        if settings.health_port is not None:
            tell = partial(tell_health, settings, superlink, door)
            servers.append(await asyncio.start_server(tell, "127.0.0.1", settings.health_port))
        log.info("listening on %s:%d", settings.host, settings.port)
        try:
            await keep_looking(refused, keys, context, certificate)
        finally:
            for server in servers:
                server.close()


def main(path: str) -> None:
    """Keep the door of the settings in a file."""
    end_with_parent()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    asyncio.run(keep_open(DoorSettings(**json.loads(Path(path).read_text())), DoorLimits()))


if __name__ == "__main__":
    main(sys.argv[1])
