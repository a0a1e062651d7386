"""hellora: fine-tune one Hugging Face model with LoRA across clients that cannot all afford the same training.

import hellora
summary = hellora.run("quickstart", {"method.allocator": "geometric"}, out="runs/mine")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hellora.errors import HelloraError, InputError, RunError

__version__ = "0.1.0"
__all__ = ["HelloraError", "InputError", "RunError", "__version__", "run"]


def run(
    source: str, settings: Mapping[str, Any] | None = None, *, out: str | Path, resume: bool = False
) -> Mapping[str, Any]:
    """Run a preset or an experiment file with `settings` ("section.key": value) changed, as `hellora run` does.

    Returns the run's summary; the adapter is in the folder `adapter` below `out`. With `compute.workers` above 1,
    call it below `if __name__ == "__main__":`, for the worker processes import the calling script.

    Raises:
        InputError: a setting, the data, the model or the folder `out` does not fit; nothing has been computed.
        RunError: a round got too few usable updates; go on with `resume=True`.
    """
    from rich.console import Console

    from hellora.config import read_experiment
    from hellora.progress import TerminalProgress
    from hellora.runs import run_experiment

    experiment = read_experiment(source, settings or {})
    with TerminalProgress(Console(soft_wrap=True)) as progress:
        return run_experiment(experiment, Path(out), progress, resume)
