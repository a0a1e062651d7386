"""The process that a SuperNode starts for a message: Flower's own, with the app that is installed here.

    python -m hellora.deployment.own_app MODULE:APP … (Flower's arguments)

A run comes to a client with a bundle, which Flower's `flwr-clientapp` would unpack and carry out: whoever can submit a
run could then do at every client what its user can, and no limit of the client's would bind. Here the bundle is neither
unpacked nor imported. A message goes to hellora's app, which holds it against the client's limits.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

APP = "hellora.deployment.flower_app:client"
PROGRAM = "flwr-clientapp"  # by this name a SuperNode's processes start it
OTHERS = (
    "flwr-agentapp",
    "flwr-connector",
    "flwr-model",
    "flwr-serverapp",
    "flwr-simulation",
)  # what else a run may be


def pin(app: Any) -> None:
    """Let Flower's client process, in this process, have this app whatever bundle comes with a message.

    Raises:
        RuntimeError: this version of Flower loads bundles in another way, so that nothing would be pinned.
    """
    from flwr.supernode.runtime import run_clientapp as runtime

    replacements = {
        "install_from_fab": lambda *_, **__: None,
        "get_load_client_app_fn": lambda *_, **__: lambda *_, **__: app,
    }
    for name, replacement in replacements.items():
        if not hasattr(runtime, name):
            raise RuntimeError(f"this version of Flower loads apps in another way ({name} is gone): install flwr 1.41")
        setattr(runtime, name, replacement)


def write_programs(folder: Path, app: str = APP) -> Path:
    """Write the program that stands for Flower's, and in the place of its others some that refuse.

    Return their folder, which is to be first on the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ours = f'exec "{sys.executable}" -m hellora.deployment.own_app {app} "$@"'
    refusal = "echo 'refused: a hellora client runs nothing but its own app' >&2; exit 1"
    for name in (PROGRAM, *OTHERS):
        (folder / name).write_text(f"#!/bin/sh\n{ours if name == PROGRAM else refusal}\n")
        (folder / name).chmod(0o700)
    return folder


def main() -> None:
    """Run Flower's client process with the app of the first argument."""
    module, _, name = sys.argv[1].partition(":")
    sys.argv = [PROGRAM, *sys.argv[2:]]
    pin(getattr(importlib.import_module(module), name))
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    flwr_clientapp()


if __name__ == "__main__":
    main()
