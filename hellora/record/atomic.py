"""Files are written so that they are whole or absent, whatever happens to the process or the machine."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either absent (or as it was) or whole, even if the machine stops."""
    draft = path.with_name(f"{path.name}.draft")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink(missing_ok=True)  # the disk is full: half a file takes what is left
        raise
    draft.replace(path)
    if hasattr(os, "O_DIRECTORY"):  # the new name is on disk only when its folder is
        folder = os.open(path.parent, os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
