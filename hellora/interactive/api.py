"""What people call: `hellora.run`, `hellora.rounds` and `hellora.load`. Heavy imports wait until one of them is."""

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hellora.experiments.experiment import Experiment
    from hellora.interactive.run import Run
    from hellora.interactive.starting import OnRound

Settings = Mapping[str, Any]  # "section.key": value, or "section": {key: value}


def run(
    source: "str | Path | Experiment",
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    from_round: int | None = None,
    allow: Sequence[str] = (),
    model: Any = None,
    tokenizer: Any = None,
    on_round: "OnRound | Sequence[OnRound]" = (),
    **changes: Any,
) -> "Run":
    """Run a preset or an experiment file, as `hellora run` does; progress is printed, in a notebook as a bar.

    With `compute.workers` above 1, call it below `if __name__ == "__main__":`, for the worker processes import the
    calling script.

    Args:
        source: a preset's name, a TOML file, or an `Experiment` that `read_experiment` returned
        settings: what to change in it, `{"section.key": value}` or `{"section": {"key": value}}`
        out: the folder of the run, new or, to resume, as it was left; None = `runs/NAME`
        resume: go on with the run in `out` after its last whole round
        from_round: with `resume`, go back to before this round; a state of it must be kept (the setting `keep`)
        allow: code that the file may name (`"mine.py:Mine"`, `"remote-code"`); what `settings` name is allowed
        model: a loaded model of transformers, in the place of its name; or a name, or settings
        tokenizer: of that model, or its image processor
        on_round: called with the record of each round, as in `rounds.jsonl`, once it is safe on disk; what it raises
            ends the run, which can be resumed
        **changes: settings, too: `rounds=2`, `train={"steps": 5}`. In `data`, tables (DataFrames, `datasets.Dataset`,
            lists of dictionaries) are its splits: `data={"train": frame, "test": other, "text": "body"}`

    Returns:
        The run, which answers like the summary (`run["final"]`).

    Raises:
        InputError: a setting, an object or the folder `out` does not fit; nothing has been computed.
        RunError: a round got too few usable updates; go on with `resume=True`.
    """
    from hellora.interactive.starting import Start

    every = [settings or {}, changes]
    start = Start(source, every, out, resume, allow=allow, model=model, tokenizer=tokenizer, from_round=from_round)
    return start.run(on_round)


def rounds(
    source: "str | Path | Experiment",
    settings: Settings | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    allow: Sequence[str] = (),
    model: Any = None,
    tokenizer: Any = None,
    **changes: Any,
) -> Generator[dict[str, Any], None, None]:
    """Do as `run` does, of the same arguments, and yield each round's record, as in `rounds.jsonl`, once it is safe.

    Who leaves the loop early goes on with `resume=True`, bit for bit as if there had been no break; after the last
    round `load` reads the run. Raises InputError (nothing has been computed) and RunError, as `run` does.
    """
    from hellora.interactive.starting import Start

    every = [settings or {}, changes]
    return Start(source, every, out, resume, allow=allow, model=model, tokenizer=tokenizer).rounds()


def load(folder: str | Path, *, model: Any = None, tokenizer: Any = None, allow: Sequence[str] = ()) -> "Run":
    """Read the run in a folder, finished or not, as the object that `run` returns.

    For predictions it needs the `model` and `tokenizer` that the run was given, where it was, and its code is named in
    `allow`. Raises InputError where the folder holds no run, or a damaged one.
    """
    from hellora.interactive.starting import load_run

    return load_run(folder, model, tokenizer, allow)
