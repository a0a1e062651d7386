"""How long a newcomer waits: `python benchmarks/newcomer.py REPOSITORY` (a quarter of an hour, idle).

The three paths of docs/quickstart.md, command by command as they stand on the page, each in an empty folder: the first
commands of the sections in PATHS, with REPOSITORY in place of that word. What the page takes for granted is put there
before the clock runs: `my.csv`, 1000 docstrings of the standard library with their topics, and `my-bert`, a copy of
MiniLM. Nothing is taken from pip's cache, unless --cached, nor from the hub, which is shut off. A command that fails
ends it all. What commands print goes to output.log in the path's folder.
"""

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "quickstart.md"
PATHS = ("See it work", "Your own texts", "Your own model")  # sections of the page
ROWS = 1000


class Timed(NamedTuple):
    path: str
    command: str
    seconds: float


def commands(page: str, title: str) -> list[str]:
    """The commands of the first console block in the section `title`."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    block = re.search(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    if block is None:
        raise ValueError(f"the section {title!r} shows no commands")
    lines = re.sub(r"\\\n\s*", "", block[1]).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def followed(title: str, lines: Sequence[str], repository: str, folder: Path, cached: bool) -> Iterator[Timed]:
    """Carry out the commands of a path in `folder`, one after the other."""
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment |= {"HF_HOME": str(folder / "huggingface"), "HF_HUB_OFFLINE": "1"}
    environment |= {} if cached else {"PIP_NO_CACHE_DIR": "1"}
    here = folder
    for line in lines:
        words = shlex.split(line)
        if words[0] == "cd":
            here = here / words[1]
            yield Timed(title, line, 0.0)
            continue
        with (folder / "output.log").open("ab") as log:
            start = time.perf_counter()
            actual = [word.replace("REPOSITORY", repository) for word in words]
            status = subprocess.run(actual, cwd=here, env=environment, stdout=log, stderr=log, check=False).returncode
            seconds = time.perf_counter() - start
        if status:
            said = (folder / "output.log").read_text().splitlines()[-5:]
            raise SystemExit(f"{title}: {line!r} ended with status {status}:\n" + "\n".join(said))
        yield Timed(title, line, seconds)


def put_there(folder: Path) -> None:
    """The newcomer's own file and model."""
    from hellora.data import stdlib_docs
    from hellora.model.location import resolve_name

    rows = stdlib_docs.load()["train"].shuffle(seed=0).select(range(ROWS))
    topics = rows.features["label"].names
    with (folder / "my.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "topic"])
        writer.writerows((row["text"], topics[row["label"]]) for row in rows)
    minilm = Path(resolve_name("minilm"))
    if not minilm.is_dir():
        raise SystemExit("MiniLM is not installed: make install")
    shutil.copytree(minilm, folder / "my-bert")


def table(results: Sequence[Timed]) -> str:
    lines = ["| path | command | seconds |", "|---|---|---|"]
    for title in dict.fromkeys(result.path for result in results):
        own = [result for result in results if result.path == title]
        lines += [f"| {title} | `{result.command}` | {result.seconds:.0f} |" for result in own]
        lines.append(f"| | in all | {sum(result.seconds for result in own):.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="address or folder to clone")
    parser.add_argument("--path", action="append", choices=PATHS, help="only this one; may be repeated")
    parser.add_argument("--cached", action="store_true", help="let pip take from its cache what it has")
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which is kept")
    parser.add_argument("--out", type=Path, help="write the seconds there, too (.json)")
    arguments = parser.parse_args()
    repository = arguments.repository
    repository = str(Path(repository).resolve()) if Path(repository).is_dir() else repository
    page, results = PAGE.read_text(), list[Timed]()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f} before, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for number, title in enumerate(arguments.path or PATHS):
            folder = (arguments.keep or Path(temporary)) / f"{number}"
            folder.mkdir(parents=True)
            put_there(folder)
            for result in followed(title, commands(page, title), repository, folder.resolve(), arguments.cached):
                print(f"{result.seconds:7.1f} s  {result.command}", flush=True)
                results.append(result)
    print(table(results))
    if arguments.out:
        record = {"cores": cores, "load_before": load, "cached": arguments.cached}
        arguments.out.write_text(json.dumps({**record, "commands": [result._asdict() for result in results]}, indent=1))


if __name__ == "__main__":
    main()
