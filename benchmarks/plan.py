"""How long a plan takes: `python benchmarks/plan.py --check` (a minute).

`plan_budget` for the config of meta-llama/Llama-3.1-8B in bfloat16, batches of 16 × 512 tokens, a budget of 24 GiB: in
a fresh process of one thread that has imported what it needs, the best of REPEATS. Beside it the whole command
`hellora plan --model`, nearly all of which is imports. Gate: the plan takes less than a second. Wall time needs an idle
machine; the processor's time is printed beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPEATS, GATE = 3, 1.0  # seconds
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}


def child(folder: str) -> None:
    """Print the seconds of one plan, by the clock and of the processor."""
    import torch
    import transformers.models.llama.modeling_llama

    from hellora.experiments.budget_plan import plan_budget

    assert transformers.AutoConfig
    assert transformers.AutoModelForCausalLM
    torch.set_num_threads(1)
    table: dict[str, Any] = {
        "model": {"name": folder, "dtype": "bfloat16"},
        "train": {"batch_size": 16},
        "fleet": {"memory": ["24GiB"]},
    }
    clock, processor = time.perf_counter(), time.process_time()
    plan = plan_budget(table, 1000, 512)
    print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]))
    assert all(choice.estimate is not None for choice in plan.choices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail unless the gate is met")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA_8B))
        asked = ["plan", "--model", folder, "--memory", "24GiB", "--dtype", "bfloat16", "--batch", "16"]
        command = [sys.executable, "-m", "hellora", *asked, "--tokens", "512"]
        plans, commands = [], []
        for _ in range(REPEATS):
            answer = subprocess.run(
                [sys.executable, __file__, "--child", folder],
                env=one_thread,
                check=True,
                capture_output=True,
                text=True,
            )
            plans.append(json.loads(answer.stdout.splitlines()[-1]))
            started = time.perf_counter()
            subprocess.run(command, env=one_thread, check=True, capture_output=True)
            commands.append(time.perf_counter() - started)
    clock, processor = (min(times) for times in zip(*plans, strict=True))
    print(f"plan {clock:.2f} s, {processor:.2f} s of the processor; the whole command {min(commands):.1f} s")
    if arguments.check and clock >= GATE:
        raise SystemExit(f"FAILED: a plan takes {clock:.2f} s, not less than {GATE:.0f} s")


if __name__ == "__main__":
    main()
