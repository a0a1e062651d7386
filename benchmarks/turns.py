"""A process that works when it is its turn: it reads a line, works once, and answers with a line of JSON.

Ratios need turns, for the machine's clock and whatever else it does change within minutes; and they need processes of
their own, for what one side does to its process (its C library's memory, say) must not slow down or speed up the other.
"""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Partner:
    """`python script arguments`, started now; as a context it ends with it."""

    def __init__(self, script: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, given: Any) -> None:
        """Hand it a line of JSON, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()

    def turn(self, given: Any = None) -> float:
        """Let it work once; the seconds that it measured itself."""
        assert self.process.stdout is not None
        self.tell(given)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        seconds: float = json.loads(line)["seconds"]
        return seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it failed: there is an error on its way already
            self.process.stdin.close()
        self.process.wait()
