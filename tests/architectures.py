"""Small models of every architecture that docs/your-model.md lists, and of some that it only mentions."""

from pathlib import Path
from typing import Any

import tiny_models
import torch
import transformers
from torch import nn

from hellora.model.load import AUTO_CLASSES, adapter_spec, own_head
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Batch, Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.seq2seq import Seq2Seq
from hellora.tasks.sequence_classification import SequenceClassification
from hellora.tasks.token_classification import TokenClassification

TEXT, OWN, IMAGE, LANGUAGE = (
    SequenceClassification(),
    SequenceClassification(head_type="own"),
    ImageClassification(),
    CausalLM(),
)
WORD, SEQ2SEQ = TokenClassification(), Seq2Seq()
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
BART = {**WORDS, **SIDES, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
T5 = {
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "eos_token_id": 3,
}
# By model_type, and another word where it is there already: the task, and the settings of a model of two blocks.
SMALL: dict[str, tuple[Task, dict[str, Any]]] = {
    **{name: (TEXT, {**SIZES, **WORDS}) for name in ENCODERS},
    "distilbert": (TEXT, {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "vocab_size": 40}),
    "longformer": (TEXT, {**SIZES, **WORDS, "attention_window": 8, "max_position_embeddings": 50}),
    "modernbert": (TEXT, {**SIZES, **WORDS, "cls_token_id": 2, "sep_token_id": 3}),
    "bart": (TEXT, BART),
    "t5": (OWN, T5),
    "bert words": (WORD, {**SIZES, **WORDS}),
    "bart seq2seq": (SEQ2SEQ, BART),
    "t5 seq2seq": (SEQ2SEQ, T5),
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

# Not found without `targets`: the modules to adapt, and the model.
MENTIONED: dict[str, tuple[tuple[str, ...], Task, dict[str, Any]]] = {
    "big_bird": (("query", "value"), TEXT, {**SIZES, **WORDS}),  # it replaces its attention at the first short text
    "convnext": (
        ("pwconv1", "pwconv2"),
        IMAGE,
        {"image_size": 16, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    "cvt": (
        ("projection_query", "projection_value"),
        IMAGE,
        {
            "image_size": 32,
            "initializer_range": 0.3,
            "patch_sizes": [3, 3, 3],
            "patch_stride": [2, 2, 2],
            "patch_padding": [1, 1, 1],
            "embed_dim": [8, 16, 16],
            "num_heads": [1, 2, 2],
            "depth": [1, 2, 3],
        },
    ),
    "deberta": (("in_proj",), TEXT, {**SIZES, **WORDS}),
    "funnel": (
        ("q_head", "v_head"),
        TEXT,
        {"vocab_size": 40, "block_sizes": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 48},
    ),
    "levit": (
        ("linear",),
        IMAGE,
        {
            "image_size": 32,
            "hidden_sizes": [16, 16, 32],
            "num_attention_heads": [2, 2, 2],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "mlp_ratio": [2, 2, 2],
            "attention_ratio": [2, 2, 2],
        },
    ),
    "mamba": (
        ("in_proj", "x_proj"),
        LANGUAGE,
        {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 3},
    ),
    "mobilevit": (
        ("query", "value"),
        IMAGE,
        {
            "image_size": 32,
            "initializer_range": 0.3,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
            "num_attention_heads": 2,
            "mlp_ratio": 1.0,
            "expand_ratio": 2.0,
        },
    ),
    "xlnet": (
        ("layer_1", "layer_2"),
        TEXT,
        {"vocab_size": 40, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    ),
}
EVERY = sorted({**SMALL, **MENTIONED})


def targets_of(name: str) -> tuple[str, ...]:
    return MENTIONED[name][0] if name in MENTIONED else ()


def config_of(name: str) -> tuple[Task, Any]:
    """The task, and the config for 3 classes."""
    task, settings = MENTIONED[name][1:] if name in MENTIONED else SMALL[name]
    config = transformers.CONFIG_MAPPING[name.partition(" ")[0]](**settings)
    config.num_labels, config.architectures = 3, []
    return task, config


def base_of(name: str, rank: int = 2) -> tuple[Task, BaseModel]:
    """A model of random weights, on the base's own statistics if it keeps any, without processor."""
    task, config = config_of(name)
    torch.manual_seed(0)
    net = AUTO_CLASSES[task.kind()].from_config(config).eval().requires_grad_(False)
    settings = ModelSettings(rank=rank, targets=targets_of(name))
    spec = adapter_spec(net, settings, language_model=task is LANGUAGE)
    head = nn.Linear(32, 3).requires_grad_(False) if task is TEXT else None
    return task, BaseModel(
        net, spec, None, head=head, head_modules=own_head(net, ()) if task in (OWN, WORD, IMAGE) else ()
    )


def batch_of(task: Task, base: BaseModel, examples: int = 2, tokens: int = 8) -> Batch:
    """Examples of other words, or pixels, at every place."""
    batch = task.blank_batch(base, examples, tokens)
    if task is IMAGE:
        return {**batch, "pixel_values": torch.randn_like(batch["pixel_values"])}
    words = torch.randint(4, 40, batch["input_ids"].shape)
    words[:, -1] = 3
    if task in (WORD, SEQ2SEQ):
        batch["labels"] = torch.randint(0, 3, words.shape) if task is WORD else words.flip(0)
    return {**batch, "input_ids": words}


def save_model(name: str, folder: Path) -> Path:
    """The model as a folder, with tokenizer or image processor."""
    task, config = config_of(name)
    folder.mkdir()
    torch.manual_seed(0)
    AUTO_CLASSES[task.kind()].from_config(config).save_pretrained(str(folder))
    if task is IMAGE:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", 224)
        transformers.ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(str(folder))
    else:
        tiny_models.save_tokenizer(folder)
    return folder
