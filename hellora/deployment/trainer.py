"""A client's resident process serves the short-lived processes that Flower starts for each message, over a Unix socket,
and ends when its standard input does.

    python -m hellora.deployment.trainer settings.json
"""

import json
import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from hellora.core.errors import HelloraError

KINDS = ("join", "prepare", "train")


def serve(socket: str, participant: Any) -> None:
    """Answer requests, one after the other, for ever: a kind, a contract, and for training a packed task."""
    Path(socket).unlink(missing_ok=True)
    with Listener(socket, "AF_UNIX", backlog=16) as listener:
        log("ready")
        while True:
            try:
                with listener.accept() as connection:
                    answer(connection, participant)
            except (EOFError, OSError) as error:  # whoever asked is gone
                log(f"a request was given up: {type(error).__name__}")


def answer(connection: "Connection[Any, Any]", participant: Any) -> None:
    """Read a request, and send "ok" and the answer, or "failed" and the reason."""
    from hellora.deployment.participant import Contract

    kind, contract, data = (connection.recv_bytes() for _ in range(3))
    try:
        agreed = Contract.from_json(contract.decode())
        if kind == b"train":
            found = participant.train(agreed, data)
        else:
            found = json.dumps(participant.join(agreed) if kind == b"join" else participant.prepare(agreed)).encode()
        status = b"ok"
    except Exception as error:
        status, found = b"failed", " ".join(f"{described(error)}{error}".split()).encode()
        log(found.decode())
        if not isinstance(error, HelloraError):
            traceback.print_exc()
    connection.send_bytes(status)
    connection.send_bytes(found)


def described(error: Exception) -> str:
    return "" if isinstance(error, HelloraError) else f"{type(error).__name__}: "


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} trainer: {line}", file=sys.stderr, flush=True)


def end_with_parent() -> None:
    """End this process when its standard input is closed: whoever started it is gone."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text())
    end_with_parent()
    from hellora.runs.terminal import quieten

    quieten()
    from hellora.deployment.own_settings import OwnSettings
    from hellora.deployment.participant import WithOwnData

    serve(settings.pop("socket"), WithOwnData(OwnSettings(**settings), log))


if __name__ == "__main__":
    main(sys.argv[1])
