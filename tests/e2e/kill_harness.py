"""Kill a run again and again with SIGKILL, resume it each time, and hold what it ends with against a run left alone.

    python kill_harness.py FOLDER SEED KILLS EXPERIMENT.toml ...

One process imports everything once and forks a child per attempt, so that no attempt pays for the imports. A kill is
timed (after a random part of the time that a whole run takes) or aimed (just before the n-th thing that the run does to
its files, or in the middle of writing one). Prints a JSON report; exit status 1 and the difference if there is one.
"""

import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from hellora.experiments.config import read_experiment
from hellora.runs.run import run_experiment

# What a run imports only when it needs it: here, so that no child pays for it.
for name in ("flwr_datasets.partitioner", "transformers.models.bert.modeling_bert", "peft", "transformers.models.bert"):
    importlib.import_module(name)

# Of some 50: the folder and its first files; then more than one round has: its line, both files of its checkpoint.
EVERY_ONE_OF = (*range(1, 10), *range(22, 33))


class Silent:
    """A Progress that says nothing."""

    def loading(self, *_: object) -> None: ...
    def noted(self, *_: object) -> None: ...
    def started(self, *_: object) -> None: ...
    def head_solved(self, *_: object) -> None: ...
    def round_started(self, *_: object) -> None: ...
    def client_answered(self, *_: object) -> None: ...
    def round_finished(self, *_: object) -> None: ...


# --------------------------------------------------------------------------------------------------- what must be equal


MEASURED = ("seconds", "peak_bytes", "seal", "lines")  # of the machine, or digests of such: never twice the same


def without_measured(value: Any) -> Any:
    """JSON values less what is measured of the machine."""
    if isinstance(value, dict):
        return {key: without_measured(item) for key, item in value.items() if key not in MEASURED}
    return [without_measured(item) for item in value] if isinstance(value, list) else value


def outcome(out: Path) -> dict[str, Any]:
    """Every file of a finished run by name, as what must not depend on kills."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(path.relative_to(out))
        if name == "rounds.jsonl":
            found[name] = [without_measured(json.loads(line)) for line in path.read_text().splitlines()]
        elif name == "summary.json":
            found[name] = without_measured(json.loads(path.read_text()))
        elif path.name == "README.md":
            found[name] = path.read_text().replace(str(out), "OUT")
        elif not name.startswith("checkpoint/state-"):
            found[name] = path.read_bytes()
    last = max((out / "checkpoint").glob("state-*.json"))
    state = without_measured(json.loads(last.read_text()))
    return found | {"state": state, "tensors": last.with_suffix(".safetensors").read_bytes()}


def difference(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    if expected.keys() != found.keys():
        return f"files differ: {sorted(expected.keys() ^ found.keys())}"
    return next((f"{name} differs" for name in expected if expected[name] != found[name]), None)


# ----------------------------------------------------------------------------------------------------- a run in a child


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def on_file_events(tell: Callable[[str], None]) -> None:
    """Call `tell` before everything that this process does to files; for a child, which does not live long."""

    def wrapped(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            tell(name)
            return original(*arguments, **options)

        setattr(owner, name, call)

    for owner, names in (
        (Path, ("mkdir", "replace", "rename", "unlink")),
        (os, ("fsync",)),
        (shutil, ("rmtree",)),
    ):
        for name in names:
            wrapped(owner, name)

    class HalfByHalf(io.BufferedWriter):
        """A file that is half written when `tell` is called."""

        def write(self, data: Any) -> int:
            whole = bytes(data)
            super().write(whole[: len(whole) // 2])
            self.flush()
            tell("half")
            super().write(whole[len(whole) // 2 :])
            return len(whole)

    open_file = Path.open

    def open_half_by_half(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode[0] not in "wa":
            return open_file(path, mode, *arguments, **options)
        file = HalfByHalf(io.FileIO(path, mode[0]))
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8", write_through=True)

    setattr(Path, "open", open_half_by_half)  # noqa: B010


def child(experiment: Path, out: Path, die_at: int | None, count_to: int | None = None) -> NoReturn:
    """Run or resume; die before the event `die_at`, or write the number of events to the descriptor `count_to`."""
    events: list[str] = []

    def tell(name: str) -> None:
        events.append(name)
        if len(events) == die_at:
            die()

    try:
        if die_at is not None or count_to is not None:
            on_file_events(tell)
        run_experiment(read_experiment(str(experiment)), out, Silent(), resume=True)
        if count_to is not None:
            os.write(count_to, str(len(events)).encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def start(experiment: Path, out: Path, die_at: int | None = None, count_to: int | None = None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        child(experiment, out, die_at, count_to)
    return pid


def wait(pid: int, seconds: float | None = None) -> int | None:
    """The child's exit status (negative: its signal), or None if it still runs after `seconds`."""
    deadline = None if seconds is None else time.perf_counter() + seconds
    while True:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.perf_counter() > deadline:
            return None
        time.sleep(0.001)


# --------------------------------------------------------------------------------------------------------------- chains


def chain(experiment: Path, out: Path, seconds: float, events: int, rng: random.Random) -> Iterator[str]:
    """Run, kill, resume, kill, … until an attempt ends by itself; yields what each kill was."""
    while True:
        aimed = rng.random() < 0.25
        die_at = rng.randint(1, events) if aimed else None
        pid = start(experiment, out, die_at)
        delay = rng.uniform(0, seconds)
        status = wait(pid, None if aimed else delay)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = wait(pid)
        if status == 0:
            return
        if status != -signal.SIGKILL:
            raise SystemExit(f"a resumed run ended with status {status}")
        yield f"before event {die_at}" if aimed else f"after {delay:.3f} s"


def wait_for_kill(pid: int) -> bool:
    """True if an attempt was killed, False if it ended well."""
    status = wait(pid)
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"a resumed run ended with status {status}")
    return status != 0


def check_each(experiment: Path, out: Path, expected: dict[str, Any]) -> int:
    """The moments that no training separates, one by one: at the start, in a round, and in the export."""
    kills = 0
    for die_at in EVERY_ONE_OF:
        shutil.rmtree(out, ignore_errors=True)
        kills += wait_for_kill(start(experiment, out, die_at))
        wait_for_kill(start(experiment, out))
        if problem := difference(expected, outcome(out)):
            raise SystemExit(f"killed before event {die_at}: {problem}")
    shutil.rmtree(out / "adapter")
    (out / "summary.json").unlink()
    die_at = 1
    while wait_for_kill(start(experiment, out, die_at)):
        die_at += 1
    if problem := difference(expected, outcome(out)):
        raise SystemExit(f"killed at every event of the export: {problem}")
    return kills + die_at - 1


def main(folder: Path, seed: int, kills: int, experiments: list[Path]) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    references = []
    for experiment in experiments:
        alone = folder / f"{experiment.stem}-alone"
        started = time.perf_counter()
        reader, writer = os.pipe()
        if wait(start(experiment, alone, count_to=writer)) != 0:
            raise SystemExit("the undisturbed run failed")
        references.append((experiment, outcome(alone), time.perf_counter() - started, int(os.read(reader, 20))))
    one_by_one = check_each(experiments[0], folder / "each", references[0][1])
    report: dict[str, Any] = {"seed": seed, "chains": 0, "kills": [], "kills_one_by_one": one_by_one}
    timed = 0
    while timed < kills:
        experiment, expected, seconds, events = references[report["chains"] % len(references)]
        out = folder / f"{experiment.stem}-{report['chains']}"
        history = []
        for kill in chain(experiment, out, seconds, events, rng):
            history.append(kill)
            timed += kill.startswith("after")
        problem = difference(expected, outcome(out))
        if problem:
            raise SystemExit(f"seed {seed}, {out.name}, killed {', '.join(history)}: {problem}")
        report["chains"] += 1
        report["kills"] += history
        shutil.rmtree(out)
    report |= {"seconds": [seconds for *_, seconds, _ in references], "events": [events for *_, events in references]}
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), [Path(name) for name in sys.argv[4:]])
