"""Foreign configs and tokenizers: padding, ends of text, positions, special tokens in texts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bases
import pytest
import tiny_models
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from hellora.core.errors import InputError
from hellora.model.load import greedy, load_tokenizer
from hellora.model.normalise import (
    blank_end,
    borrows_padding,
    end_ids,
    inseparable,
    plain,
    position_limit,
    settle_own_head,
    settle_tokenizer,
)
from hellora.model.settings import ModelSettings
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.sequence_classification import SequenceClassification

LETTERS = "abcdefghijklmnopqrstuvwxyz</>|_▁[]"


def ends(*ids: Any) -> list[Any]:
    return [SimpleNamespace(eos_token_id=one) for one in ids]


def test_ends_of_text_are_one_several_or_none() -> None:
    assert end_ids(*ends(None, 3, [7, 3], (0,))) == [3, 7, 0]
    assert end_ids(SimpleNamespace(), *ends(None)) == []
    assert [blank_end(config) for config in ends(None, 0, 5, [6, 7], [])] == [0, 0, 5, 6, 0]


def test_a_nested_config_is_read_where_the_text_is() -> None:
    inner = SimpleNamespace(eos_token_id=[4, 5], max_position_embeddings=9)
    assert blank_end(SimpleNamespace(get_text_config=lambda: inner)) == 4


# --------------------------------------------------------------------------------------------------------- positions


ROBERTA_LIKE = {
    "roberta": {}, "camembert": {}, "xlm-roberta": {}, "xlm-roberta-xl": {}, "data2vec-text": {}, "mpnet": {},
    "longformer": {"attention_window": 4}, "ibert": {}, "esm": {"position_embedding_type": "absolute"},
    "roberta-prelayernorm": {}, "luke": {"entity_vocab_size": 4, "entity_emb_size": 8},
}  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("name", sorted(ROBERTA_LIKE))
def test_the_last_position_can_be_used_and_no_further_one(name: str, padding: int) -> None:
    config = transformers.CONFIG_MAPPING[name](
        **SIZES, **ROBERTA_LIKE[name], vocab_size=40, max_position_embeddings=24, pad_token_id=padding, mask_token_id=9
    )
    net = transformers.AutoModel.from_config(config).eval()
    limit = position_limit(net)
    assert limit == 24 - (1 if name == "mpnet" else padding) - 1  # MPNet's is always 1
    ids = torch.full((1, limit + 1), 7)
    with torch.no_grad():
        net(input_ids=ids[:, :limit])
        if name != "longformer":  # it adds padding to a whole number of windows by itself
            with pytest.raises((IndexError, RuntimeError)):
                net(input_ids=ids)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (transformers.BertConfig(**SIZES, vocab_size=40, max_position_embeddings=24), 24),
        (transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=24), 24),
        (transformers.OPTConfig(**SIZES, vocab_size=40, max_position_embeddings=24, word_embed_proj_dim=16), 24),
        (transformers.LlamaConfig(**SIZES, vocab_size=40, max_position_embeddings=24), 24),
        (transformers.MptConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=40, max_seq_len=24), 24),
        (transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=40), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_other_models_have_as_many_positions_as_they_say(config: Any, limit: int | None) -> None:
    with torch.device("meta"):
        assert position_limit(transformers.AutoModel.from_config(config)) == limit


# -------------------------------------------------------------------------------------------------------- tokenizers


def tokenizer(kind: str) -> Any:
    """A fast tokenizer whose special tokens its own model knows (unigram, words), or whose added ones it does not."""
    fast = transformers.PreTrainedTokenizerFast
    if kind == "unigram":
        pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁boat", -2.0), *((c, -6.0) for c in LETTERS)]
        built = Tokenizer(models.Unigram(pieces, unk_id=2))
        built.pre_tokenizer = pre_tokenizers.Metaspace()
        built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        return fast(tokenizer_object=built, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    if kind == "words":
        built = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, "boat": 3}, unk_token="[UNK]"))
        built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return fast(tokenizer_object=built, sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]")
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    known = ["<|im_end|>", "<|im_start|>"] if kind == "chat" else []
    built.train_from_iterator(["a boat"], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=known))
    more = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]} if known else {}
    return fast(tokenizer_object=built, **more)


@pytest.mark.parametrize(
    ("kind", "text", "special"),
    [
        ("unigram", "a </s> boat<pad>b</s>", ["</s>", "<pad>"]),
        ("words", "boat [SEP] boat [PAD]", ["[SEP]", "[PAD]"]),
        ("chat", "<|im_start|>a boat<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
    ],
)
def test_a_special_token_in_a_text_is_text(kind: str, text: str, special: list[str]) -> None:
    found = tokenizer(kind)
    ids = found(plain(found, [text]), split_special_tokens=True, add_special_tokens=False)["input_ids"][0]
    forbidden = {found.convert_tokens_to_ids(token) for token in special}
    assert not forbidden & set(ids)
    assert forbidden & set(found(text, add_special_tokens=False)["input_ids"]), "as it comes, it is the special token"
    assert (plain(found, [text]) == [text]) == (kind == "chat"), "a text is changed only where splitting does not help"
    assert plain(found, ["a boat"]) == ["a boat"]


def test_only_tokens_that_are_known_to_the_tokenizers_own_model_are_inseparable() -> None:
    assert inseparable(tokenizer("unigram")) == ["<pad>", "</s>"]
    assert inseparable(tokenizer("chat")) == inseparable(tokenizer("none")) == []


@pytest.mark.parametrize("kind", ["unigram", "words", "chat", "none"])
def test_every_tokenizer_pads_and_cuts_on_the_right(kind: str) -> None:
    found = tokenizer(kind)
    found.padding_side = found.truncation_side = "left"
    own = found.pad_token
    settle_tokenizer(found)
    batch = found(["a boat and a boat and a boat", "boat"], padding=True)
    assert batch["attention_mask"][1][-1] == 0
    assert batch["attention_mask"][1][0] == 1
    assert found.pad_token == (own or {"chat": "<|im_end|>"}.get(kind, found.convert_ids_to_tokens(0)))
    assert borrows_padding(found) == (own is None)


def test_a_padding_token_that_the_model_has_no_vector_for_is_replaced(tmp_path: Path) -> None:
    tiny_models.save_llama(tmp_path)
    added = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    added.add_special_tokens({"pad_token": "<new>"})
    added.save_pretrained(str(tmp_path))
    base = bases.load(tmp_path, CausalLM())
    assert load_tokenizer(ModelSettings(name=str(tmp_path))).pad_token == "<new>"
    assert base.processor.pad_token_id < base.net.config.vocab_size


def test_an_own_head_gets_one_end_of_text() -> None:
    net = SimpleNamespace(config=SimpleNamespace(eos_token_id=[9, 3]))
    settle_own_head(net, SimpleNamespace(pad_token_id=0, eos_token_id=3))
    assert (net.config.eos_token_id, net.config.pad_token_id) == (3, 0)
    net.config.eos_token_id = [9, 8]
    settle_own_head(net, SimpleNamespace(pad_token_id=0, eos_token_id=3))
    assert net.config.eos_token_id == 9


def test_greedy_puts_the_folders_own_generation_aside_and_back(tiny_llama: Path) -> None:
    base = bases.load(tiny_llama, CausalLM())
    own = base.net.generation_config
    own.repetition_penalty, own.num_beams, own.eos_token_id, own.suppress_tokens = 2.0, 3, [5, 3], [7]
    with greedy(base.net, base.processor):
        found = base.net.generation_config
        assert (found.repetition_penalty or 1, found.num_beams, found.do_sample) == (1, 1, False)
        assert (found.eos_token_id, found.suppress_tokens) == ([3, 5], None)
    assert base.net.generation_config is own


def test_a_token_without_a_vector_names_the_row(tmp_path: Path) -> None:
    """The tokenizer of another model."""
    tiny_models.save_bert(tmp_path, vocab_size=20)
    base = bases.load(tmp_path)
    rows = bases.rows_of(["the old", "the moon"])
    with pytest.raises(
        InputError, match=r"model\.name: .* token \d+ of row 1 \('the moon'\), .* vectors for 20 tokens"
    ):
        SequenceClassification().encode(base, rows)
