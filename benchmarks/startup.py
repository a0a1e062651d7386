"""How long commands take to start: `python benchmarks/startup.py --check` (a minute).

Seconds of the processor, user and system, of the whole command in a fresh process of one thread: the best of REPEATS.
What needs no model answers without torch, whose import is measured beside it. Gates are seconds of the machine that
they were set for, which adds up 10⁷ numbers in a loop in REFERENCE seconds: here the loop is measured, too, and what a
command takes is scaled by it.
"""

import argparse
import os
import resource
import subprocess
import sys

REPEATS, REFERENCE = 3, 0.65
LOOP = ["-c", "x = 0\nfor i in range(10_000_000): x += i"]
TORCH = ["-c", "import torch"]
AT_ONCE, PLAN = 1.0, 3.0  # seconds
GATES: dict[str, tuple[int, float]] = {  # the command, how it ends, and its gate
    "--help": (0, AT_ONCE),
    "run --help": (0, AT_ONCE),
    "list": (0, AT_ONCE),
    "run quickstart --set train.learning=1": (2, AT_ONCE),
    "run quickstrt": (2, AT_ONCE),
    "run quickstart --set method.allocator=fedhello": (2, AT_ONCE),
    "compare quickstart --method a=train.learning=1": (2, AT_ONCE),
    "plan quickstart": (0, PLAN),
}


def seconds_of(arguments: list[str], status: int = 0) -> float:
    """The least that Python takes of the processor to do this, and to end with this status."""
    took = []
    for _ in range(REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != status:
            raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}, not {status}:\n{done.stderr}")
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(took)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is not met")
    options = parser.parse_args()
    loop, torch = seconds_of(LOOP), seconds_of(TORCH)
    print(f"the loop takes {loop:.2f} s here, {REFERENCE} s where the gates are from; import torch {torch:.2f} s here")
    print(f"{'hellora':<50}{'here':>8}{'torches':>9}{'scaled':>8}{'gate':>10}")
    missed = False
    for command, (status, gate) in GATES.items():
        here = seconds_of(["-m", "hellora", *command.split()], status)
        scaled = here * REFERENCE / loop
        missed |= scaled > gate
        verdict = "ok" if scaled <= gate else "over"
        print(f"{command:<50}{here:8.2f}{here / torch:9.2f}{scaled:8.2f}{f'<= {gate:.1f}':>10}  {verdict}", flush=True)
    return int(options.check and missed)


if __name__ == "__main__":
    sys.exit(main())
