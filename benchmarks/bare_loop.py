"""What hellora is measured against: LoRA fine-tuning with transformers and peft as their documentation shows it.

Nothing here is hellora's, and nothing is tuned: one model, every layer trained, one optimizer, one step after another.
It runs as a process of its own, which imports nothing of hellora: `python bare_loop.py` reads what to train on as a
line of JSON, and for each further line trains once and prints the seconds it took. measure.py takes turns with it.
"""

import gc
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer


class Classifier(nn.Module):
    """A text encoder with LoRA on query and value, the mean of its token states, a linear head."""

    def __init__(self, name: str, labels: int, rank: int) -> None:
        super().__init__()
        lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"], lora_dropout=0.0)
        self.encoder = get_peft_model(AutoModel.from_pretrained(name), lora)
        self.head = nn.Linear(self.encoder.config.hidden_size, labels)

    def forward(self, **inputs: Tensor) -> Tensor:
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def tokenize(
    name: str, texts: Sequence[str], labels: Sequence[int], max_length: int
) -> tuple[Any, list[dict[str, Any]]]:
    """The tokenizer, and every text as the model's inputs with its label."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    examples = []
    for text, label in zip(texts, labels, strict=True):
        examples.append({**tokenizer(text, truncation=True, max_length=max_length), "labels": label})
    return tokenizer, examples


def train(
    model: Classifier, tokenizer: Any, examples: Sequence[dict[str, Any]], batches: Sequence[Sequence[int]], lr: float
) -> None:
    """One step per batch; a batch is a list of rows of `examples`."""
    model.train()
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
    for rows in batches:
        batch = tokenizer.pad([examples[row] for row in rows], return_tensors="pt")
        labels = batch.pop("labels")
        optimizer.zero_grad()
        loss = loss_function(model(**batch), labels)
        loss.backward()
        optimizer.step()


def main() -> None:
    given = json.loads(sys.stdin.readline())
    torch.set_num_threads(given["threads"])
    tokenizer, examples = tokenize(given["model"], given["texts"], given["labels"], given["max_length"])
    model = Classifier(given["model"], given["classes"], given["rank"])
    clock = time.process_time if given["cpu"] else time.perf_counter
    for _ in sys.stdin:
        gc.collect()
        start = clock()
        train(model, tokenizer, examples, given["batches"], given["lr"])
        print(json.dumps({"seconds": clock() - start}), flush=True)


if __name__ == "__main__":
    main()
