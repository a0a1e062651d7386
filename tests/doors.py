"""An open door of a server, with TLS, in this process; behind it a SuperLink that says what it was asked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hellora.deployment import certificates
from hellora.deployment.door import DoorLimits
from hellora.deployment.door_process import DoorSettings, keep_open
from hellora.deployment.flower_tools import free_port

Visit = Callable[[DoorSettings], Awaitable[Any]]


async def say_what_was_asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request, which has a length, with its first line."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    await reader.readexactly(size)
    line = head.partition(b"\r\n")[0]
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(line), line))
    await writer.drain()
    writer.close()


def at_a_door(folder: Path, visit: Visit, superlink: bool = True) -> Any:
    """What a visit comes to; the server's keys are made in `folder`."""
    certificates.make(folder / "keys", [], ["ward"])

    async def all_of_it() -> Any:
        inside = await asyncio.start_server(say_what_was_asked, "127.0.0.1", 0)
        port = inside.sockets[0].getsockname()[1] if superlink else free_port()
        settings = DoorSettings(
            host="127.0.0.1",
            port=free_port(),
            superlink=f"http://127.0.0.1:{port}",
            authority=None,
            certificates=str(folder / "keys"),
            refused=str(folder / "refused.json"),
            state=str(folder),
            health_port=free_port(),
        )
        async with inside:
            door = asyncio.create_task(keep_open(settings, DoorLimits()))
            try:
                await until_open(settings.port)
                return await visit(settings)
            finally:
                door.cancel()
                await asyncio.gather(door, return_exceptions=True)

    logging.getLogger("hellora.door").setLevel(logging.INFO)
    return asyncio.run(all_of_it())


async def until_open(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return
