"""Language models on the command line: chats, texts, packed rows and preferences, from a file to answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat_formats
import pytest
import tiny_models
import tomli_w
import torch
from cards import Follow, code_of
from transformers import Qwen2Config, Qwen2ForCausalLM

Command = Callable[..., Any]
# Of a tokenizer that knows no words of a chat: turns end with [SEP].
TEMPLATE = "{% for m in messages %}{{ m.content + ' [SEP] ' }}{% endfor %}"


def turns(text: str) -> list[dict[str, str]]:
    *asked, answer = text.split()
    return [{"role": "user", "content": " ".join(asked)}, {"role": "assistant", "content": answer}]


def chats(text: str) -> dict[str, Any]:
    return {"messages": turns(text)}


def texts(text: str) -> dict[str, Any]:
    return {"text": text}


def preferences(text: str) -> dict[str, Any]:
    asked, answer = turns(text)
    return {"prompt": asked["content"], "chosen": answer["content"], "rejected": "the the the"}


def chosen_chats(text: str) -> dict[str, Any]:
    asked, answer = turns(text)
    return {"chosen": [asked, answer], "rejected": [asked, {**answer, "content": "the the the"}]}


def save(folder: Path, form: Callable[[str], dict[str, Any]]) -> Path:
    folder.mkdir()
    for name, count, seed in (("train", 36, 3), ("test", 8, 4)):
        rows = [form(text) for text, _ in tiny_models.sentences(count, seed)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chat.jinja").write_text(TEMPLATE)
    return folder


CASES: dict[str, tuple[Callable[[str], dict[str, Any]], dict[str, Any]]] = {
    "chat": (chats, {"task.answers": 2, "task.answer_tokens": 4}),
    "packed chat": (chats, {"task.packing": True, "task.max_length": 40}),
    "text": (texts, {}),
    "preference": (preferences, {"task.name": "preference"}),
    "preference chat": (chosen_chats, {"task.name": "preference"}),
}


def begin(hellora: Command, model: Path, data: Path, out: Path, **changes: Any) -> Any:
    settings = {
        "task.name": "causal_lm", "model.name": model, "model.rank": 4, "data.name": data, "data.clients": 3,
        "data.partitioner": "iid", "fleet.layers": [1, 2, 3], "rounds": 2, "cohort": 3, "train.lr": 0.03,
        "train.batch_size": 4, "train.steps": 4, "compute.threads": 1, "task.max_length": 64, **changes,
    }  # fmt: skip
    file = out.with_suffix(".toml")
    table: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        place = table.setdefault(section, {}) if section else table
        place[name] = str(value) if isinstance(value, Path) else value
    file.write_text(tomli_w.dumps(table))
    return hellora("run", file, "--out", out)


@pytest.mark.parametrize("case", CASES)
def test_what_was_learned_is_measured_exported_and_asked(
    case: str, hellora: Command, tiny_llama: Path, tmp_path: Path, follow: Follow
) -> None:
    form, changes = CASES[case]
    data = save(tmp_path / "data", form)
    chat = "chat" in case
    changes = {**changes, **({"task.chat_template": data / "chat.jinja"} if chat else {})}
    ran = begin(hellora, tiny_llama, data, tmp_path / "out", **changes)
    assert ran.status == 0, ran.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["final"]["loss"] < summary["initial"]["loss"]
    if "preference" in case:
        assert summary["final"]["accuracy"] > 0.5
        assert summary["final"]["margin"] > 0
    (tmp_path / "asked.jsonl").write_text('{"prompt": "we saw the"}\n')
    told = hellora("predict", tmp_path / "out", tmp_path / "asked.jsonl", "--out", tmp_path / "told.jsonl")
    assert told.status == 0, told.err
    (prediction,) = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert prediction["prompt"] == "we saw the"
    assert hellora("evaluate", tmp_path / "out", data / "test.jsonl").status == 0
    card = tmp_path / "out" / "adapter" / "README.md"
    assert ("apply_chat_template" in card.read_text()) == chat
    asked = code_of(card).replace("What is federated learning?", "we saw the") + "\nprint(answer)"
    assert follow(asked).strip() == prediction["answer"].strip()


def test_what_is_cut_is_said(hellora: Command, tiny_llama: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "data", chats)
    given = {"task.chat_template": data / "chat.jinja"}
    ran = begin(hellora, tiny_llama, data, tmp_path / "out", **given, **{"task.max_length": 6})
    assert ran.status == 0, ran.err
    assert "examples are longer than 6 tokens and are cut; " in ran.out
    assert "kept no token to learn from (task.max_length)" in " ".join(ran.out.split())
    assert sum("test examples are longer than 6 tokens" in line for line in ran.out.splitlines()) == 1
    ran = begin(hellora, tiny_llama, data, tmp_path / "other", **given, **{"task.max_length": 4})
    assert ran.status != 0
    assert "task.max_length: no example has a token to learn from among its first 4 tokens: raise it" in ran.err


def test_a_chat_without_a_template_says_what_to_set(hellora: Command, tiny_llama: Path, tmp_path: Path) -> None:
    ran = begin(hellora, tiny_llama, save(tmp_path / "data", chats), tmp_path / "out")
    assert ran.status != 0
    assert "has no chat template, and the data has conversations: set task.chat_template to a file" in ran.err
    ran = begin(hellora, tiny_llama, tmp_path / "data", tmp_path / "out", **{"task.chat_template": "none.jinja"})
    assert "chat_template: there is no file none.jinja" in ran.err


def test_a_run_of_chats_has_its_template_in_its_folder(hellora: Command, tiny_llama: Path, tmp_path: Path) -> None:
    data = save(tmp_path / "data", chats)
    begin(hellora, tiny_llama, data, tmp_path / "out", **{"task.chat_template": data / "chat.jinja", "rounds": 1})
    (data / "chat.jinja").unlink()
    assert TEMPLATE in (tmp_path / "out" / "experiment.toml").read_text()
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"messages": turns("we saw the boat")[:1]}) + "\n")
    assert hellora("predict", tmp_path / "out", asked).status == 0


def test_qwen_chat_trains_a_step_on_a_config_made_by_hand(hellora: Command, tmp_path: Path) -> None:
    """As the preset has it but for the sizes: 24 layers, rsLoRA on all linear modules, several turns, ChatML."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(vocab_size=300, num_hidden_layers=24, tie_word_embeddings=True, **sizes)
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "qwen")
    chatml = next(format for format in chat_formats.FORMATS if format.name == "qwen")
    chat_formats.tokenizer_of(chatml).save_pretrained(tmp_path / "qwen")
    talks = [chat_formats.conversation(chatml, seed) for seed in range(24)]
    for name, part in (("train_sft", talks[:16]), ("test_sft", talks[16:])):
        rows = [json.dumps({"messages": talk, "prompt": "x", "prompt_id": "y"}) for talk in part]
        (tmp_path / "data" / f"{name}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    small = {
        "model.name": tmp_path / "qwen", "data.name": tmp_path / "data", "data.clients": 3, "cohort": 3, "rounds": 1,
        "train.steps": 1, "train.batch_size": 2, "task.max_length": 256, "task.answers": 1, "task.answer_tokens": 2,
        "compute.threads": 1, "model.rank": 2,
    }  # fmt: skip
    changes = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    ran = hellora("run", "qwen_chat", *changes, "--out", tmp_path / "out")
    assert ran.status == 0, ran.err
    assert "holds conversations ('messages'); not read: 'prompt'" in " ".join(ran.out.split())
    table = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert len(table["target_modules"]) == 24 * 7
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["final"]["loss"] > 0


def test_warm_up_makes_no_honest_client_look_too_far(hellora: Command, tiny_llama: Path, tmp_path: Path) -> None:
    """Deltas of the first rounds are small; all are held against each other as if they had the whole rate."""
    data = save(tmp_path / "data", texts)
    rates = {"train.schedule": "cosine", "train.warmup": 0.5, "train.steps": 1, "rounds": 8, "eval_every": 8}
    assert begin(hellora, tiny_llama, data, tmp_path / "out", **rates).status == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert not any(line["rejected"] for line in lines)
