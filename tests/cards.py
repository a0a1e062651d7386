"""The code of model cards, run to the letter where there is no hellora."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Follow = Callable[[str], str]
# Imports take seconds. One process makes them; each piece of code runs in a fork of it, in which nothing has run yet.
SERVER = """
import json, os, sys, traceback

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hellora":
            raise ImportError("there is no hellora here")

sys.meta_path.insert(0, Forbidden())
import warnings
warnings.simplefilter("ignore")
import peft, safetensors.torch, torch, transformers
from transformers import BertModel, LlamaForCausalLM

def follow(code, out, problems):
    for path, stream in ((out, 1), (problems, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    try:
        exec(compile(code, "card", "exec"), {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        follow(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def code_of(card: Path) -> str:
    """The Python in a card."""
    return card.read_text().partition("```python\n")[2].partition("\n```")[0]


@contextmanager
def following(folder: Path) -> Iterator[Follow]:
    """A function that runs code in a new process without hellora and returns what it prints."""
    out, problems = folder / "out", folder / "problems"
    command = [sys.executable, "-I", "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        asked, answered = server.stdin, server.stdout

        def follow(code: str) -> str:
            asked.write(json.dumps([code, str(out), str(problems)]) + "\n")
            asked.flush()
            assert answered.readline() == "0\n", problems.read_text()
            return out.read_text()

        yield follow
