"""Checkpoints as others save them, used as a person does: runs, plans, predictions, and the card without hellora."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from cards import Follow, code_of
from refusals import check_refusal
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import hellora

Command = Callable[..., Any]
CASES = Path(__file__).parents[3] / "shared" / "cases"
SPECIAL = ["we saw </s> the boat", "<pad> rain", "the </s>moon</s> is old", "a star"]


def settings(folder: Path, sentences: Path, **more: Any) -> dict[str, Any]:
    base = {
        "model.name": folder, "model.rank": 4, "data.name": sentences, "data.clients": 2, "data.partitioner": "iid",
        "data.proxy_examples": 0, "rounds": 1, "cohort": 2, "train.steps": 3, "train.batch_size": 8, "train.lr": 1e-2,
        "fleet.layers": [], "method.allocator": "everything", "compute.threads": 1,
    }  # fmt: skip
    changes = {name.replace("__", "."): value for name, value in more.items()}
    return {k: str(v) if isinstance(v, Path) else v for k, v in {**base, **changes}.items()}


def unigram(folder: Path) -> Path:
    """A tokenizer like T5's and XLM-R's: its own model knows `</s>`, so that splitting does not help."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -3.0) for word in tiny_models.WORDS[:12]] + [(c, -6.0) for c in "abcdefghijklm</>s▁"]
    built = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=2))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    for old in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / old).unlink(missing_ok=True)
    fast = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=built, eos_token="</s>", unk_token="<unk>", pad_token="<pad>").save_pretrained(str(folder))
    return folder


def said_by(card: Path, follow: Follow, **replaced: str) -> dict[str, Any]:
    """Run the code of a card, with other lines for some of its own, without hellora."""
    lines = code_of(card).split("\n")
    for name, value in replaced.items():
        (place,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[place] = f"{name} = {value}"
    lines.append("import json")
    lines.append("print('SAID' + json.dumps({'logits': logits.tolist(), 'answer': globals().get('answer')}))")
    found: dict[str, Any] = json.loads(follow("\n".join(lines)).partition("SAID")[2])
    return found


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("head", ["mean_pooling", "own"])
@pytest.mark.parametrize("kind", ["left", "unigram"])
def test_the_card_gives_the_runs_logits(kind: str, head: str, tmp_path: Path, sentences: Path, follow: Follow) -> None:
    """Of a GPT-2 whose tokenizer pads on the left, or knows `</s>` itself; of texts with special tokens inside."""
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=40, n_positions=64, eos_token_id=1)
    torch.manual_seed(0)
    transformers.GPT2Model(config).save_pretrained(str(tmp_path / "gpt2"))
    tiny_models.save_tokenizer(tmp_path / "gpt2")
    if kind == "unigram":
        unigram(tmp_path / "gpt2")
    file = tmp_path / "gpt2" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left", "truncation_side": "left"}))
    hellora.run("quickstart", settings(tmp_path / "gpt2", sentences, task__head_type=head), out=tmp_path / "run")
    rows = jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in SPECIAL])
    said = {
        size: [list(row["probabilities"].values()) for row in hellora.predict(tmp_path / "run", rows, {
            "compute.eval_batch_size": size})]
        for size in (1, 4)
    }  # fmt: skip
    torch.testing.assert_close(torch.tensor(said[1]), torch.tensor(said[4]), atol=1e-6, rtol=0)
    card = tmp_path / "run" / "adapter" / "README.md"
    plain = torch.tensor(said_by(card, follow, texts=repr(SPECIAL))["logits"]).softmax(-1)
    torch.testing.assert_close(plain, torch.tensor(said[4]), atol=1e-5, rtol=0)


def test_an_answer_is_greedy_in_the_card_too(tmp_path: Path, follow: Follow) -> None:
    folder = tiny_models.save_llama(tmp_path / "llama", eos_token_id=[3, 4])
    rows = [{"instruction": text, "response": topic} for text, topic in tiny_models.sentences(24)]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    run = settings(folder, data, task__name="causal_lm", task__answer_tokens=6)
    asked = jsonl(tmp_path / "asked.jsonl", [{"instruction": "the [SEP] old boat"}])
    said = []
    for penalty in (None, {"repetition_penalty": 9.0, "num_beams": 3, "no_repeat_ngram_size": 1, "min_new_tokens": 5}):
        if penalty:
            file = folder / "generation_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | penalty))
        out = tmp_path / f"run{len(said)}"
        hellora.run("quickstart", run, out=out)
        said.append(hellora.predict(out, asked)[0]["answer"])
        card = out / "adapter" / "README.md"
        assert said_by(card, follow, prompt="'the [SEP] old boat'")["answer"] == said[-1]
    assert said[0] == said[1]


def test_a_folder_that_holds_an_adapter_is_named(hellora: Command, tmp_path: Path, sentences: Path) -> None:
    folder = tiny_models.save_bert(tmp_path / "bert")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    changes = [f"--set={k}={json.dumps(v)}" for k, v in settings(folder, sentences).items()]
    check_refusal(
        hellora("run", "quickstart", "--out", tmp_path / "run", *changes), "model.name", "holds an adapter", "merge"
    )


def test_float16_runs_on_a_cpu(tiny_bert: Path, sentences: Path, tmp_path: Path) -> None:
    found = {}
    for dtype in ("float32", "float16"):
        run = settings(tiny_bert, sentences, model__dtype=dtype, compute__device="cpu")
        found[dtype] = hellora.run("quickstart", run, out=tmp_path / dtype)["final"]["loss"]
    assert found["float16"] == pytest.approx(found["float32"], abs=0.02)


def test_what_was_done_to_a_head_is_said(hellora: Command, tmp_path: Path, sentences: Path) -> None:
    folder = tiny_models.save_bert(tmp_path / "bert", own_head=True)
    changes = [f"--set={k}={json.dumps(v)}" for k, v in settings(folder, sentences, task__head_type="own").items()]
    answer = hellora("run", "quickstart", "--out", tmp_path / "run", *changes)
    assert answer.status == 0, answer.err
    assert "taken in order: sea = LABEL_0, sky = LABEL_1, soil = LABEL_2" in " ".join(answer.out.split())


def test_a_special_token_in_a_template_is_text_and_that_is_said(hellora: Command, tmp_path: Path) -> None:
    rows = [{"instruction": text, "response": topic} for text, topic in tiny_models.sentences(24)]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    run = settings(tiny_models.save_llama(tmp_path / "llama"), data, task__name="causal_lm")
    changes = [f"--set={k}={json.dumps(v)}" for k, v in run.items()]
    answer = hellora(
        "run", "quickstart", "--out", tmp_path / "run", *changes, "--set=data.prompt=[CLS] {instruction} [SEP]"
    )
    assert answer.status == 0, answer.err
    assert "data.prompt has [CLS], [SEP]: in a template that is text, no special token" in " ".join(answer.out.split())


# ------------------------------------------------------------------------------------------- the cases in ../shared


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cases as their READMEs use it."""
    monkeypatch.chdir(CASES)
    return tmp_path


def base(out: Path, changes: dict[str, Any]) -> Any:
    return hellora.run("base.toml", changes, out=out)


@pytest.mark.shared_data
def test_case_head_label_order(cases: Path) -> None:
    changes = {"task.head_type": "own", "model.name": "head-label-order/model", "train.lr": 1e-3}
    assert base(cases / "out", changes)["initial"]["accuracy"] == 1.0


@pytest.mark.shared_data
@pytest.mark.parametrize("head", ["mean_pooling", "own"])
def test_case_left_padding(head: str, cases: Path) -> None:
    base(cases / "out", {"task.head_type": head, "model.name": "left-padding/gpt2"})
    one, many = (
        hellora.predict(cases / "out", "left-padding/some.jsonl", {"compute.eval_batch_size": size}) for size in (1, 30)
    )
    assert [row["label"] for row in one] == [row["label"] for row in many]


@pytest.mark.shared_data
@pytest.mark.usefixtures("cases")
@pytest.mark.parametrize("name", ["llama", "llama_eoslist"])
def test_case_eos_list(name: str, hellora: Command) -> None:
    answer = hellora("plan", "--model", f"models/{name}", "--memory", "200MiB", "--batch", "2", "--tokens", "16")
    assert answer.status == 0, answer.err


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["mpnet", "longformer", "data2vec-text", "xlm-roberta-xl", "roberta"])
def test_case_position_offset(name: str, cases: Path) -> None:
    changes = {
        "model.name": f"position-offset/{name}", "data.name": "position-offset/long.jsonl", "task.max_length": 512,
        "train.steps": 1,
    }  # fmt: skip
    assert base(cases / "out", changes)["rounds"] == 1


@pytest.mark.shared_data
def test_case_generation_config(cases: Path) -> None:
    said, some = [], cases / "some.jsonl"  # a CPU answers one prompt after the other
    some.write_text("".join(Path("generation-config/qa.jsonl").read_text().splitlines(keepends=True)[:20]))
    for name in ("plain", "penalty", "beams"):
        base(
            cases / name,
            {
                "task.name": "causal_lm", "model.name": f"generation-config/{name}",
                "data.name": "generation-config/qa.jsonl", "task.answer_tokens": 8,
            },
        )  # fmt: skip
        said.append([row["answer"] for row in hellora.predict(cases / name, str(some))])
    assert said[0] == said[1] == said[2]


@pytest.mark.shared_data
@pytest.mark.parametrize("file", ["few.jsonl", "b.jsonl"])
def test_case_weird_texts(file: str, cases: Path, hellora: Command) -> None:
    changes = ["--set", "model.name=weird-texts/noaffix", "--set", f"data.name=weird-texts/{file}"]
    answer = hellora("run", "base.toml", "--out", cases / "out", *changes)
    check_refusal(answer, "data.text", "finds no token in row ", "leave the row out")


@pytest.mark.shared_data
def test_case_half_on_cpu(cases: Path) -> None:
    found = base(cases / "out", {"model.dtype": "float16", "compute.device": "cpu"})
    assert found["final"]["accuracy"] == pytest.approx(0.426, abs=0.02)


@pytest.mark.shared_data
def test_case_base_with_adapter(cases: Path, hellora: Command) -> None:
    answer = hellora("run", "base.toml", "--out", cases / "out", "--set", "model.name=base-with-adapter/m")
    check_refusal(answer, "model.name", "holds an adapter (adapter_config.json): merge it into its base first")
