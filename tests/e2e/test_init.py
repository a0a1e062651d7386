"""`hellora init` for all forms that people's data have: what it writes runs at once, and what is unclear is refused."""

import csv
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_models
from PIL import Image
from refusals import check_refusal

from hellora.experiments import first_draft, model_choice

Command = Callable[..., Any]
SENTENCES = tiny_models.sentences(60)
Rows = Sequence[Mapping[str, Any]]


def write(path: Path, rows: Rows) -> None:
    """A file of rows in the format of its suffix."""
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(list(rows)).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def turns(text: str, topic: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": topic}]


ROWS: dict[str, Rows] = {
    "classes.csv": [{"id": i, "message": text, "topic": topic} for i, (text, topic) in enumerate(SENTENCES)],
    "pairs.tsv": [{"premise": text, "hypothesis": "we saw", "label": topic} for text, topic in SENTENCES],
    "hospitals.parquet": [
        {"note": text, "category": topic, "hospital": f"h{i % 4}"} for i, (text, topic) in enumerate(SENTENCES)
    ],
    "sets.csv": [
        {"text": text, "labels": f"{topic}; {('old', 'new')[i % 2]}"} for i, (text, topic) in enumerate(SENTENCES)
    ],
    "one_hot.csv": [{"text": t, **{each: int(each == topic) for each in tiny_models.TOPICS}} for t, topic in SENTENCES],
    "numbers.csv": [
        {"text": text, "valence": f"{i / 7:.2f}", "arousal": f"{i % 13 / 4:.2f}"}
        for i, (text, _) in enumerate(SENTENCES)
    ],
    "score.jsonl": [{"text": text, "score": i / 8} for i, (text, _) in enumerate(SENTENCES)],
    "chat.jsonl": [{"messages": turns(text, topic)} for text, topic in SENTENCES],
    "asked.csv": [{"question": text, "answer": topic} for text, topic in SENTENCES],
    "preferred.jsonl": [{"prompt": text, "chosen": "we saw", "rejected": topic} for text, topic in SENTENCES],
    "plain.csv": [{"text": text} for text, _ in SENTENCES],
    "words.csv": [
        {"tokens": text, "tags": " ".join("ab"[len(word) % 2] for word in text.split())} for text, _ in SENTENCES
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of these, a folder of images, and a file of tagged words."""
    here = tmp_path_factory.mktemp("own")
    for name, rows in ROWS.items():
        write(here / name, rows)
    for i in range(36):
        file = here / "photos" / ("dark", "light", "grey")[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (5 * i + 60 * (i % 3),) * 3).save(file)
    sentence = "boat B-SHIP\nis O\nnear O\n\nold O\nstone B-ROCK\n\n"
    (here / "tagged.conll").write_text(sentence * 20)
    return here


@pytest.fixture
def models(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tiny_bert: Path, tiny_vit: Path, tiny_llama: Path, tiny_bart: Path
) -> dict[str, Path]:
    monkeypatch.chdir(folder)
    return {"bert": tiny_bert, "vit": tiny_vit, "llama": tiny_llama, "bart": tiny_bart}


def drafted(hellora: Command, file: Path, data: str, model: Path, *settings: str) -> dict[str, Any]:
    """The [data] table of what is written for data, and its task; the fleet is named, so that nothing is planned."""
    changes = [part for each in ("fleet.layers=[1, 2]", *settings) for part in ("--set", each)]
    answer = hellora("init", data, "--model", model, "--out", file, *changes)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.endswith(f"wrote {file}; go on with: hellora plan {file}, hellora run {file}\n")
    table = tomllib.loads(file.read_text())
    return {**table["data"], "task": table["task"]["name"]}


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        ("classes.csv", "bert", {"task": "sequence_classification", "text": "message", "label": "topic"}),
        ("sets.csv", "bert", {"task": "multi_label", "label": "labels", "separator": ";"}),
        ("numbers.csv", "bert", {"task": "regression", "labels": ["valence", "arousal"]}),
        ("asked.csv", "llama", {"task": "causal_lm", "as_chat": None}),
        ("asked.csv", "bart", {"task": "seq2seq"}),
        ("preferred.jsonl", "llama", {"task": "preference"}),
        ("tagged.conll", "bert", {"task": "token_classification"}),
        ("photos", "vit", {"task": "image_classification", "partitioner": "iid"}),
    ],
)
def test_what_it_writes_runs_as_it_is(
    hellora: Command, tmp_path: Path, models: dict[str, Path], data: str, model: str, expected: dict[str, Any]
) -> None:
    file = tmp_path / "mine.toml"
    found = drafted(hellora, file, data, models[model], "rounds=1", "train.steps=1")
    assert {key: found.get(key) for key in expected} == expected
    run = hellora("run", file, "--out", tmp_path / "run", "--json")
    assert run.status == 0, run.err
    assert json.loads(run.out)["summary"]["rounds"] == 1
    assert "adapter: " not in run.err, "nothing is said twice"


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        ("pairs.tsv", "bert", {"text": "premise", "text_pair": "hypothesis", "label": "label"}),
        ("hospitals.parquet", "bert", {"text": "note", "partitioner": "column", "column": "hospital", "clients": None}),
        ("one_hot.csv", "bert", {"task": "multi_label", "labels": ["sea", "sky", "soil"]}),
        ("score.jsonl", "bert", {"task": "regression", "label": "score"}),
        ("classes.csv", "llama", {"task": "sequence_classification", "label": "topic"}),
        ("chat.jsonl", "llama", {"task": "causal_lm", "label": None}),
        ("plain.csv", "llama", {"task": "causal_lm", "text": "text"}),
        ("words.csv", "bert", {"task": "token_classification"}),
    ],
)
def test_what_it_finds(
    hellora: Command, tmp_path: Path, models: dict[str, Path], data: str, model: str, expected: dict[str, Any]
) -> None:
    found = drafted(hellora, tmp_path / "mine.toml", data, models[model])
    assert {key: found.get(key) for key in expected} == expected


def test_every_assumption_stands_in_the_file_and_on_the_screen(
    hellora: Command, tmp_path: Path, models: dict[str, Path]
) -> None:
    answer = hellora("init", "classes.csv", "--model", models["bert"], "--out", tmp_path / "mine.toml")
    text = (tmp_path / "mine.toml").read_text()
    assert text.startswith("# Drafted by `hellora init` from 60 rows of classes.csv, on ")
    for line in ('name = "sequence_classification"', 'label = "topic"', "clients = 4", "test_fraction = 0.3"):
        assert any(each.startswith(line) and " # " in each for each in text.splitlines()), line
    assert "# memory = [" in text, "what all of it takes"
    assert "data: read 60 rows of own" in answer.out
    for words in ("task.name", "data.text", "by its name", "data.label", "3 classes", "as you said"):
        assert words in answer.out


def test_where_training_takes_more_than_there_is_clients_have_a_budget(
    hellora: Command, tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_draft, "peaks_of", lambda *_: [2**30, 2**35, 2**40])
    monkeypatch.setattr(first_draft, "free_memory", lambda _: 2**30)
    answer = hellora("init", "classes.csv", "--model", models["bert"], "--out", tmp_path / "mine.toml")
    assert tomllib.loads((tmp_path / "mine.toml").read_text())["fleet"] == {"memory": ["819MiB"]}
    assert "all layers take 1048576MiB; what fits into less is planned" in answer.out


@pytest.mark.parametrize(
    ("task", "free", "gpu", "here", "chosen", "said"),
    [
        ("sequence_classification", 2**34, False, {"minilm"}, "minilm", "on this machine; FacebookAI/roberta-base"),
        ("sequence_classification", 2**34, True, {"minilm"}, "minilm", "on this machine"),
        ("regression", 2**34, True, set(), "FacebookAI/roberta-base", "fetched from the hub when the run begins"),
        ("causal_lm", 2**34, False, {"smollm2"}, "smollm2", "135 M parameters, on this machine"),
        ("causal_lm", 2**34, False, set(), "HuggingFaceTB/SmolLM2-135M-Instruct", "fetched from the hub"),
        ("image_classification", 2**34, False, set(), "facebook/deit-tiny-patch16-224", "vit-base-patch16-224-in21k"),
        ("seq2seq", 2**20, False, set(), "google-t5/t5-small", "the smallest one known for 1.0 MiB"),
    ],
)
def test_the_model_is_one_that_is_here_and_fits(
    monkeypatch: pytest.MonkeyPatch, task: str, free: int, gpu: bool, here: set[str], chosen: str, said: str
) -> None:
    monkeypatch.setattr(model_choice, "is_here", lambda name: name in here)
    found = model_choice.chosen_model(task, None, free, gpu)
    assert found.name == chosen
    assert said in found.why


def test_it_writes_over_nothing_unless_it_is_forced(hellora: Command, models: dict[str, Path], folder: Path) -> None:
    file = folder / "classes.toml"
    file.write_text("# precious\n")
    check_refusal(hellora("init", "classes.csv", "--model", models["bert"]), "classes.toml is there already", "--force")
    assert file.read_text() == "# precious\n"
    answer = hellora("init", "classes.csv", "--model", models["bert"], "--force", "--quiet")
    assert (answer.status, answer.out.count("\n")) == (0, 1)
    assert "precious" not in file.read_text()
    check_refusal(hellora("init", "classes.csv", "--out", "mine.txt"), "--out mine.txt: an experiment file ends in")


def test_what_it_is_told_goes_before_what_it_finds(hellora: Command, tmp_path: Path, models: dict[str, Path]) -> None:
    told = {"data.label": "id", "data.clients": 3, "cohort": 3, "fleet.memory": '["1GiB"]', "data.partitioner": "iid"}
    changes = [part for key, value in told.items() for part in ("--set", f"{key}={value}")]
    answer = hellora("init", "classes.csv", "--model", models["bert"], "--out", tmp_path / "mine.toml", *changes)
    assert answer.status == 0, answer.err
    table = tomllib.loads((tmp_path / "mine.toml").read_text())
    assert (table["data"]["label"], table["data"]["clients"], table["cohort"]) == ("id", 3, 3)
    assert table["fleet"]["memory"] == ["1GiB"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bars.csv", "text|label\na b|1\n", "'text|label', which '|' seems to separate: save it with commas"),
        ("two.csv", "text,mood,place\n" + "a b,x,y\na c,z,w\n" * 9, "could be labelled by 'mood' or 'place'"),
        ("free.csv", "text,label\n" + "".join(f"a b,word {i}\n" for i in range(30)), "30 different values in 30 rows"),
        ("bare.csv", "id,kind\n" + "1,x\n2,y\n" * 9, "has no column of texts (it has id, kind)"),
        ("row.csv", "text,label\na b,x,z\n", "line 2: Expected 2 columns, got 3"),
        ("gaps.csv", "text,label\n" + "a b,x\n,y\n" * 20, "gaps.csv, line 3"),
        ("one.csv", "text,label\n" + "a b,x\n" * 20, "data."),
        ("odd.xlsx", "PK", "does not end in .parquet"),
    ],
    ids=lambda value: value if value.endswith((".csv", ".xlsx")) else "",
)
def test_what_it_does_not_understand_is_refused(
    hellora: Command, tmp_path: Path, models: dict[str, Path], name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    answer = hellora("init", tmp_path / name, "--model", models["bert"], "--out", tmp_path / "mine.toml")
    check_refusal(answer, words)
    assert not (tmp_path / "mine.toml").exists()


def test_a_model_that_cannot_learn_the_data_is_refused(
    hellora: Command, tmp_path: Path, models: dict[str, Path]
) -> None:
    for data, model, words in (
        ("chat.jsonl", "bert", "is an encoder, and the data are for causal_lm, which takes a language model"),
        ("photos", "bert", "is an encoder, and the data are for image_classification, which takes a model of images"),
        ("classes.csv", "vit", "reads images, and the data are for sequence_classification, which takes a model of"),
    ):
        check_refusal(hellora("init", data, "--model", models[model], "--out", tmp_path / "mine.toml"), words)
    check_refusal(hellora("init", "org/corpus"), "there is no file or folder org/corpus", "--set data.name=org/corpus")
    check_refusal(hellora("init", models["bert"]), "is a model: name the data, and --model")
