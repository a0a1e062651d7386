"""Tiny real models and data, built from configs and written as Hugging Face folders. No download."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

TOPICS = {
    "sea": ["boat", "wave", "fish", "sail", "harbour", "tide"],
    "sky": ["cloud", "bird", "wind", "star", "rain", "moon"],
    "soil": ["root", "worm", "seed", "stone", "field", "plough"],
}
COMMON = ["the", "a", "is", "near", "with", "old", "new", "and", "we", "saw"]
WORDS = [*COMMON, *(word for words in TOPICS.values() for word in words)]


def save_tokenizer(folder: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(str(folder))


def bert_config(**changes: object) -> BertConfig:
    settings: dict = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    return BertConfig(**{**settings, **changes})


def save_bert(folder: Path, own_head: bool = False, **changes: object) -> Path:
    """A 4-layer BERT, 32 wide: the bare encoder, or with a classification head of its own (3 classes)."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = bert_config(**changes)
    config.num_labels = 3
    (BertForSequenceClassification(config) if own_head else BertModel(config)).save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def save_vit(folder: Path) -> Path:
    """A 3-layer ViT, 24 wide, for 8 × 8 images of 3 classes."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    config.num_labels = 3
    ViTForImageClassification(config).save_pretrained(str(folder))
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(str(folder))
    return folder


def save_llama(folder: Path, **changes: object) -> Path:
    """A 3-layer Llama, 32 wide, with the words of this file as its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    settings: dict = {
        "vocab_size": len(WORDS) + 5,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def save_t5(folder: Path) -> Path:
    """A T5 of 2 blocks on each side, 16 wide, with a head for 3 classes."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(WORDS) + 5,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        eos_token_id=3,
        decoder_start_token_id=0,
    )
    config.num_labels = 3
    T5ForSequenceClassification(config).save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def save_bart(folder: Path) -> Path:
    """A BART of 2 blocks on each side, 32 wide, without dropout."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sides = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = BartConfig(
        **sides,
        vocab_size=len(WORDS) + 5,
        d_model=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        dropout=0.0,
        init_std=0.1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
    )
    BartForConditionalGeneration(config).save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(text, topic) pairs: common words with two of the topic's own; learnable by a tiny model."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        topic = list(TOPICS)[i % len(TOPICS)]
        words = [str(w) for w in rng.choice(COMMON, size=int(rng.integers(2, 8)))]
        words += [str(w) for w in rng.choice(TOPICS[topic], size=2)]
        rows.append((" ".join(words), topic))
    return rows


def save_sentences(folder: Path, train: int = 96, test: int = 60) -> Path:
    """train.csv and test.csv with the columns text and label."""
    return save_splits(folder, ("text", "label"), sentences(train, 1), sentences(test, 2))


def save_pairs(folder: Path) -> Path:
    """The same with a column more, other: the last half of the text's words."""
    train, test = ([(a, a[len(a) // 2 :], b) for a, b in sentences(*each)] for each in ((96, 1), (60, 2)))
    return save_splits(folder, ("text", "other", "label"), train, test)


def save_splits(folder: Path, names: Sequence[str], train: Sequence[Any], test: Sequence[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    return folder
