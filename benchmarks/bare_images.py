"""What many small clients are measured against: FedAvg of LoRA with transformers, peft and datasets, as their
documentation shows it.

Nothing here is hellora's, and nothing is tuned: one model; for each client the global adapter is loaded, a few steps
are taken on images that are decoded and processed batch by batch, and the adapter is read back; then the mean. It runs
as a process of its own, which imports nothing of hellora: `python bare_images.py` reads what to train on as a line of
JSON, and for each further line does one round and prints the seconds it took. measure.py takes turns with it.
"""

import gc
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, Image, load_dataset
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification


def images(path: str, processor: Any, image: str, label: str) -> Dataset:
    """The rows of a parquet file, decoded and processed when they are read."""

    def processed(rows: dict[str, list[Any]]) -> dict[str, Any]:
        pixels = processor([picture.convert("RGB") for picture in rows[image]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, "labels": rows[label]}

    rows = load_dataset("parquet", data_files=path, split="train").cast_column(image, Image())
    return rows.with_transform(processed)


def fed_avg(
    model: Any, data: Dataset, received: dict[str, Tensor], clients: Sequence[Sequence[Sequence[int]]], lr: float
) -> dict[str, Tensor]:
    """One round: a client is a list of batches, a batch a list of rows. The mean of what the clients trained."""
    total: dict[str, Tensor] = {}
    model.train()
    for batches in clients:
        set_peft_model_state_dict(model, received)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)
        for rows in batches:
            batch = data[rows]
            optimizer.zero_grad()
            loss = model(pixel_values=batch["pixel_values"], labels=torch.tensor(batch["labels"])).loss
            loss.backward()
            optimizer.step()
        for name, tensor in get_peft_model_state_dict(model).items():
            total[name] = total.get(name, 0) + tensor.detach() / len(clients)
    return total


def main() -> None:
    given = json.loads(sys.stdin.readline())
    torch.set_num_threads(given["threads"])
    data = images(given["data"], AutoImageProcessor.from_pretrained(given["model"]), given["image"], given["label"])
    net = AutoModelForImageClassification.from_pretrained(
        given["model"], num_labels=given["classes"], ignore_mismatched_sizes=True
    )
    rank, head = given["rank"], ["classifier"]
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=given["targets"], modules_to_save=head)
    model = get_peft_model(net, lora)
    received = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    clock = time.process_time if given["cpu"] else time.perf_counter
    for _ in sys.stdin:
        gc.collect()
        start = clock()
        fed_avg(model, data, received, given["clients"], given["lr"])
        print(json.dumps({"seconds": clock() - start}), flush=True)


if __name__ == "__main__":
    main()
