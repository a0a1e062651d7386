"""One client's training of SmolLM2 beside TRL's own trainer: `PYTHONPATH=.:WHERE_TRL_IS python benchmarks/sft.py`.

Both train LoRA of rank 8 on all attention projections, on the same conversations (Dolly's instructions as turns), in
float32, so many steps of 4 rows of at most 256 tokens, with AdamW. A turn is the preparation of the rows and all steps;
the model is loaded before, TRL's
anew for every turn, because peft changes it. TRL runs in a process of its own (`bare_sft.py`), which takes turns with
ours; a ratio is ours over the mean of its turns just before and just after. TRL is no dependency: install it elsewhere
(`pip install --no-deps --target FOLDER trl`) and name the folder.

TRL learns every token here, for its masks of the assistant need a template that marks them; hellora learns the answers
alone. Both run the same tokens through the network. With `--all`, hellora learns every token, too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from turns import Partner

from hellora.client.train import train_client
from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, TrainSettings
from hellora.data.settings import DataSettings
from hellora.data.sources import load_corpus
from hellora.model.location import resolve_name
from hellora.model.settings import ModelSettings
from hellora.tasks.causal_lm import CausalLM

GATE = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the gate is not met")
    parser.add_argument("--data", default="../shared/data/dolly15k", help="Dolly's folder")
    parser.add_argument("--all", action="store_true", help="learn every token")
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="CPU time of one thread: for a machine that is not idle")
    given = parser.parse_args(arguments)
    threads, clock = (1, time.process_time) if given.cpu else (2, time.perf_counter)
    torch.set_num_threads(threads)
    kind = CausalLM(max_length=256, loss_on="all" if given.all else "answers", packing=given.packing)
    base = kind.load(ModelSettings(name="smollm2", rank=8), (), 0)
    corpus = load_corpus(DataSettings(name=given.data, as_chat=True, max_examples=64), "instruction", 0)
    trained = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    train = TrainSettings(batch_size=4, steps=given.steps, lr=1e-4)

    def ours() -> float:
        task = ClientTask(0, 0, 0, new_adapter(base.spec, {}, 0), trained, train)
        start = clock()
        train_client(task, base, kind, corpus.train)
        return clock() - start

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        talks = [
            [{name: turn[name] for name in ("role", "content")} for turn in talk] for talk in corpus.train["messages"]
        ]
        file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
        words = (resolve_name("smollm2"), file, given.steps, 4, 256, threads, "cpu" if given.cpu else "wall")
        with Partner(Path(__file__).with_name("bare_sft.py"), *map(str, words)) as bare:
            theirs, mine = [bare.turn(), bare.turn()][1:], [ours()][1:]  # a warm-up each
            for _ in range(given.repeat):
                mine.append(ours())
                theirs.append(bare.turn())
    ratios = [own / ((theirs[i] + theirs[i + 1]) / 2) for i, own in enumerate(mine)]
    print(f"hellora {median(mine):.1f} s, TRL {median(theirs):.1f} s; hellora over TRL: ", end="")
    print(f"median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}, gate {GATE}")
    return int(given.check and median(ratios) > GATE)


if __name__ == "__main__":
    raise SystemExit(main())
