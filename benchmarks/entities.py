"""Entities between unequal clients, and in one place: `python benchmarks/entities.py` (half an hour on one core).

The texts are the docstrings of the standard library, cut into words; the entities are what a word, or two, name in
them: an exception, a built-in type, a module, a call, a notion such as "file descriptor". hellora trains MiniLM on them
with 20 clients, a third of which can train 2 of the 6 layers, a third 4, a third all; a plain loop of transformers and
peft trains every layer on all rows in one place, with as many steps of as many examples. Printed is seqeval's F1 of
entities on the same test rows, by seed.
"""

import argparse
import builtins
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from seqeval.metrics import f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, get_linear_schedule_with_warmup

import hellora
from hellora.data import stdlib_docs
from hellora.model.location import resolve_name

ROUNDS, COHORT, STEPS, BATCH, LENGTH = 80, 2, 8, 16, 64
RANK, LR = 8, 5e-3  # at first; on both sides it falls to 0 in a line
WORD = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*(?:\(\))?|\d+|[^\w\s]")
RAISED = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
TYPES = {
    "int",
    "str",
    "bytes",
    "float",
    "bool",
    "list",
    "tuple",
    "dict",
    "set",
    "object",
    "string",
    "integer",
    "sequence",
}
NOTIONS = {
    "file descriptor", "file object", "file name", "regular expression", "context manager", "default value",
    "return value", "event loop", "current thread", "exit status", "command line", "source code", "byte code",
    "keyword argument", "keyword arguments", "test case", "current directory", "temporary file", "time zone",
}  # fmt: skip


def named(word: str) -> str:
    """What a single word names; "" for most."""
    if word in RAISED or word.endswith(("Error", "Exception", "Warning")):
        return "EXCEPTION"
    if word.endswith("()"):
        return "CALL"
    if word in TYPES:
        return "TYPE"
    return "MODULE" if word in sys.stdlib_module_names and len(word) > 3 else ""


def tags_of(words: Sequence[str]) -> list[str]:
    """Tags in IOB2."""
    tags = ["O"] * len(words)
    for i, word in enumerate(words):
        if " ".join(words[i : i + 2]).lower() in NOTIONS:
            tags[i : i + 2] = ["B-NOTION", "I-NOTION"]
        elif tags[i] == "O" and (name := named(word)):
            tags[i] = f"B-{name}"
    return tags


def examples(split: str) -> Iterator[dict[str, list[str]]]:
    """Yield docstrings in which something is named."""
    for text in stdlib_docs.load()[split]["text"]:
        words = WORD.findall(text)[:40]
        if set(tags := tags_of(words)) != {"O"}:
            yield {"tokens": words, "tags": tags}


def federated(folder: Path, seed: int) -> float:
    """Train between clients; return F1 on the test rows."""
    summary = hellora.run(
        "fed_hello",
        {
            "seed": seed,
            "rounds": ROUNDS,
            "cohort": COHORT,
            "eval_every": ROUNDS,
            "task.name": "token_classification",
            "task.max_length": LENGTH,
            "model.rank": RANK,
            "data.name": str(folder),
            "data.partitioner": "iid",
            "data.clients": 20,
            "fleet.layers": ["1/3", "2/3", "all"],
            "train.lr": LR,
            "train.schedule": "linear",
            "train.batch_size": BATCH,
            "train.steps": STEPS,
            "compute.threads": 1,
        },
        out=folder / f"run-{seed}",
    )
    return float(summary["final"]["entity_f1"])


def central(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]], seed: int) -> float:
    """Train in one place with transformers and peft; return F1 on the test rows."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    name = resolve_name("minilm")
    labels = sorted({tag for row in train for tag in row["tags"]})
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForTokenClassification.from_pretrained(name, num_labels=len(labels))
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["query", "value"], modules_to_save=["classifier"])
    model = get_peft_model(model, lora)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=LR)
    steps = ROUNDS * COHORT * STEPS
    schedule = get_linear_schedule_with_warmup(optimizer, 0, steps)
    order, rng = list[int](), np.random.default_rng(seed)
    model.train()
    for _ in range(steps):
        if len(order) < BATCH:
            order = rng.permutation(len(train)).tolist()
        rows, order = [train[i] for i in order[:BATCH]], order[BATCH:]
        batch, first = encoded(tokenizer, rows)
        targets = torch.full(batch["input_ids"].shape, -100)
        for i, (row, places) in enumerate(zip(rows, first, strict=True)):
            for word, place in places.items():
                targets[i, place] = labels.index(row["tags"][word])
        optimizer.zero_grad()
        model(**batch, labels=targets).loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    said = []
    for start in range(0, len(test), 64):
        batch, first = encoded(tokenizer, test[start : start + 64])
        with torch.no_grad():
            best = model(**batch).logits.argmax(-1)
        said += [[labels[int(best[i, place])] for place in places.values()] for i, places in enumerate(first)]
    right = [row["tags"][: len(each)] for row, each in zip(test, said, strict=True)]
    return float(f1_score(right, said))


def encoded(tokenizer: Any, rows: Sequence[dict[str, Any]]) -> tuple[Any, list[dict[int, int]]]:
    """Return a batch, and of each row the place of each word's first token."""
    words = [row["tokens"] for row in rows]
    batch = tokenizer(
        words, is_split_into_words=True, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
    )
    first = []
    for i in range(len(rows)):
        places: dict[int, int] = {}
        for place, word in enumerate(batch.word_ids(i)):
            if word is not None:
                places.setdefault(word, place)
        first.append(places)
    return batch, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, rows = Path(place), {}
        for split in ("train", "test", "proxy"):
            rows[split] = [*examples(split)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[split]))
        print(
            f"{len(rows['train'])} training, {len(rows['test'])} test texts; {ROUNDS * COHORT * STEPS} steps of {BATCH}"
        )
        print(f"{'seed':>4}{'federated':>11}{'one place':>11}{'less':>7}")
        for seed in range(options.seeds):
            f1, reference = federated(folder, seed), central(rows["train"], rows["test"], seed)
            print(f"{seed:>4}{f1:11.3f}{reference:11.3f}{reference - f1:7.3f}", flush=True)


if __name__ == "__main__":
    main()
