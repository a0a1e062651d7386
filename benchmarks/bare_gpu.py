"""What gpu.py measures hellora against: transformers and peft as their documentation shows them, in their own process.

Nothing here is hellora's. `python bare_gpu.py` reads what to do as a line of JSON, and prints a line of JSON: seconds
of each kind of work, the best of its repetitions, and the most bytes that the device held in a training step.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

Json = dict[str, Any]


def best(work: Callable[[], Any], device: str, repeat: int) -> float:
    """Seconds of the quickest of some repetitions, after one that does not count."""
    seconds = []
    for _ in range(repeat + 1):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def adapted(given: Json, layers: list[int]) -> Any:
    net = AutoModelForCausalLM.from_pretrained(given["model"], dtype=getattr(torch, given["dtype"]))
    lora = LoraConfig(
        r=given["rank"], lora_alpha=given["rank"], target_modules=given["targets"], layers_to_transform=layers
    )
    return get_peft_model(net.to(given["device"]), lora)


def batches(given: Json) -> list[Tensor]:
    """The texts, each a row of ids of the same length, a batch at a time."""
    ids, size = given["ids"], given["batch"]
    return [torch.tensor(ids[start : start + size], device=given["device"]) for start in range(0, len(ids), size)]


def loss_of(model: Any, ids: Tensor, given: Json) -> Tensor:
    device = given["device"].partition(":")[0]
    with torch.autocast(device, dtype=torch.bfloat16, enabled=given["dtype"] == "bfloat16"):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1]
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train(model: Any, given: Json) -> None:
    model.train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    for ids in batches(given):
        optimizer.zero_grad()
        loss_of(model, ids, given).backward()
        optimizer.step()


@torch.no_grad()
def evaluate(model: Any, given: Json) -> float:
    model.eval()
    return sum(float(loss_of(model, ids, given)) for ids in batches(given))


def answer(model: Any, given: Json) -> None:
    model.eval()
    ids = torch.tensor(given["prompts"], device=given["device"])
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=given["new_tokens"]
    )


def mean(adapters: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([each[name] for each in adapters]).mean(0) for name in adapters[0]}


def main() -> None:
    given = json.loads(sys.stdin.readline())
    device, repeat = given["device"], given["repeat"]
    torch.manual_seed(0)
    found: Json = {}
    for name in ("every", "few"):
        model = adapted(given, given[name])
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        found[f"step, {name} layer{'s' * (name == 'few')}"] = best(
            lambda model=model: train(model, given), device, repeat
        )
        if device.startswith("cuda"):
            found[f"peak bytes, {name}"] = torch.cuda.max_memory_allocated()
        if name == "every":
            found["evaluation"] = best(lambda model=model: evaluate(model, given), device, repeat)
            found["generation"] = best(lambda model=model: answer(model, given), device, repeat)
            lora = {n: p.detach().float().cpu() for n, p in model.named_parameters() if p.requires_grad}
            found["aggregation"] = best(lambda lora=lora: mean([lora] * given["clients"]), "cpu", repeat)
        del model
    print(json.dumps(found))


if __name__ == "__main__":
    main()
