"""The architectures that docs/your-model.md lists: found without being told where LoRA goes, and trained for a step."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from hellora.core.algebra import new_adapter
from hellora.model.load import AUTO_CLASSES, ModelSettings, adapter_spec, own_head
from hellora.model.resident import BaseModel
from hellora.tasks import Batch, Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

PAGE = Path(__file__).parents[3] / "docs" / "your-model.md"
TEXT, OWN, IMAGE, LANGUAGE = (
    SequenceClassification(),
    SequenceClassification(head_type="own"),
    ImageClassification(),
    CausalLM(),
)
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WORDS = {"vocab_size": 40, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
GROUPED = {**SIZES, **WORDS, "num_key_value_heads": 1, "head_dim": 16}
PIXELS = {**SIZES, "image_size": 16, "patch_size": 8}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
SIDES = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
ENCODERS = ("bert", "camembert", "deberta-v2", "electra", "mpnet", "roberta", "xlm-roberta")
DECODERS = (
    *("cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "mixtral", "olmo2", "phi", "phi3"),
    *("qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
)
# By model_type: the task, and the settings of a model of two blocks.
SMALL: dict[str, tuple[Task, dict[str, Any]]] = {
    **{name: (TEXT, {**SIZES, **WORDS}) for name in ENCODERS},
    "distilbert": (TEXT, {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 40}),
    "longformer": (TEXT, {**SIZES, **WORDS, "attention_window": 8, "max_position_embeddings": 50}),
    "modernbert": (TEXT, {**SIZES, **WORDS, "cls_token_id": 2, "sep_token_id": 3}),
    "bart": (TEXT, {**WORDS, **SIDES, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}),
    "t5": (
        OWN,
        {
            "vocab_size": 40,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 48,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "eos_token_id": 3,
        },
    ),
    **dict.fromkeys(DECODERS, (LANGUAGE, GROUPED)),
    "bloom": (LANGUAGE, {**WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "falcon": (LANGUAGE, {**WORDS, **SIZES}),
    "gpt2": (LANGUAGE, {**WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "gpt_neo": (
        LANGUAGE,
        {**WORDS, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": (LANGUAGE, {**WORDS, **SIZES}),
    "mpt": (LANGUAGE, {"vocab_size": 40, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 40}),
    "opt": (LANGUAGE, {**WORDS, **SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    **dict.fromkeys(("beit", "data2vec-vision", "deit", "dinov2", "vit"), (IMAGE, PIXELS)),
    "clip": (IMAGE, {"vision_config": PIXELS}),
    "siglip": (IMAGE, {"vision_config": PIXELS}),
    "swin": (IMAGE, SWIN),
    "swinv2": (IMAGE, SWIN),
}


def batch_of(task: Task, base: BaseModel) -> Batch:
    """Two examples of other words, or pixels, at every place."""
    batch = task.blank_batch(base, 2, 8)
    if task is IMAGE:
        return {**batch, "pixel_values": torch.randn_like(batch["pixel_values"])}
    words = torch.randint(4, 40, batch["input_ids"].shape)
    words[:, -1] = 3
    return {**batch, "input_ids": words}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_step_trains_both_blocks(name: str) -> None:
    task, settings = SMALL[name]
    config = transformers.CONFIG_MAPPING[name](**settings)
    config.num_labels, config.architectures = 3, []
    torch.manual_seed(0)
    net = AUTO_CLASSES[task.kind()].from_config(config).eval().requires_grad_(False)
    spec = adapter_spec(net, ModelSettings(rank=2), language_model=task is LANGUAGE)
    assert spec.num_layers == 2
    head = nn.Linear(32, 3).requires_grad_(False) if task is TEXT else None
    base = BaseModel(net, spec, None, head=head, head_modules=own_head(net, ()) if task in (OWN, IMAGE) else ())
    trained = torch.ones(2, 2, dtype=torch.bool).numpy()
    with base.adapted(new_adapter(spec, base.initial_head(), 0), trained, True) as adapted:
        task.outputs(base, batch_of(task, base)).loss_sums.sum().backward()
        assert len(adapted.lora) == len(spec.modules)
        of_layer = {name: module.B.grad.abs().max().item() for name, module in adapted.lora.items()}
        assert all(max(of_layer[m.name] for m in spec.modules if m.layer == layer) > 0 for layer in (0, 1))
        assert [n for n, p in adapted.head.items() if p.grad is None] == [], "the head is no more than the head"
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_page_names_these_and_no_others() -> None:
    said: dict[Task, set[str]] = {}
    titles = {
        TEXT: "| `task.name = sequence_classification` |",
        OWN: "| `task.name = sequence_classification`, `task.head_type = own` |",
        IMAGE: "| `task.name = image_classification` |",
        LANGUAGE: "| `task.name = causal_lm` |",
    }
    for task, title in titles.items():
        (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(title)]
        said[task] = set(re.findall(r"`([^`]+)`", row.removeprefix(title)))
    assert said == {task: {name for name, (other, _) in SMALL.items() if other == task} for task in titles}
