"""The task that data and model are for, where nobody names one."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from PIL import Image

from hellora.core.errors import InputError
from hellora.data.numbers import are_amounts
from hellora.experiments.config import read_experiment
from hellora.experiments.found_task import found_task
from hellora.experiments.registry import check_name, names
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

ROWS: dict[str, dict[str, Any]] = {
    "class": {"text": "a boat", "label": "sea"},
    "pair": {"prompt": "a boat?", "response": "yes"},
    "chat": {"messages": [{"role": "user", "content": "a boat?"}, {"role": "assistant", "content": "yes"}]},
    "text": {"text": "a boat"},
    "preferred": {"prompt": "a boat?", "chosen": "yes", "rejected": "no"},
    "lists": {"text": "a boat", "label": ["sea", "sky"]},
    "tags": {"tokens": ["a", "boat"], "ner_tags": ["O", "B-SHIP"]},
    "else": {"body": "a boat", "topic": "sea"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data and configs of models; nothing of a model but its config is looked at."""
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "written.csv").write_text("text,label\na boat,\"['sea', 'sky']\"\n")
    (tmp_path / "spoken.csv").write_text("words,tags\nhello,O\na boat,O B-SHIP\n")
    (tmp_path / "one_word.csv").write_text("words,labels\nhello,greeting\nhi,greeting\n")
    (tmp_path / "columns.conll").write_text("a O\nboat B-SHIP\n")
    (tmp_path / "amounts.csv").write_text("text,label\n" + "".join(f"a boat,{i / 4}\n" for i in range(20)))
    for split in ("train", "test"):
        for label in ("dark", "light"):
            (tmp_path / "photos" / split / label).mkdir(parents=True)
            Image.new("RGB", (2, 2)).save(tmp_path / "photos" / split / label / "1.png")
    configs: dict[str, dict[str, Any]] = {
        "bert": {"architectures": ["BertModel"]},
        "llama": {"architectures": ["LlamaForCausalLM"]},
        "t5": {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
        "vit": {"image_size": 8},
    }
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("data", "model", "task"),
    [
        ("class.jsonl", "bert", "sequence_classification"),
        ("photos", "bert", "image_classification"),
        ("pair.jsonl", "llama", "causal_lm"),
        ("chat.jsonl", "org/not-here", "causal_lm"),
        ("text.jsonl", "llama", "causal_lm"),
        ("preferred.jsonl", "llama", "preference"),
        ("org/not-here", "vit", "image_classification"),
        ("stdlib_questions", "smollm2", "causal_lm"),
        ("stdlib_docs", "minilm", "sequence_classification"),
        ("lists.jsonl", "bert", "multi_label"),
        ("amounts.csv", "bert", "regression"),
        ("tags.jsonl", "bert", "token_classification"),
        ("written.csv", "bert", "multi_label"),
        ("spoken.csv", "bert", "token_classification"),
        ("columns.conll", "bert", "token_classification"),
        ("one_word.csv", "bert", None),
        ("pair.jsonl", "t5", "seq2seq"),
        ("class.jsonl", "llama", None),  # to be classified, or to be learned as texts
        ("pair.jsonl", "bert", None),
        ("text.jsonl", "bert", None),
        ("else.jsonl", "bert", None),
        ("gone.csv", "bert", None),
        ("org/not-here", "llama", None),
    ],
)
def test_what_data_and_model_are_for(data: str, model: str, task: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    every = ["multi_label", "regression", "token_classification", "seq2seq", *names("task")]
    monkeypatch.setattr("hellora.experiments.registry.names", lambda _: every)
    found = found_task({"data": {"name": data}, "model": {"name": model}})
    assert (found and found.name) == task


@pytest.mark.usefixtures("folder")
def test_who_names_a_separator_has_several_labels() -> None:
    found = found_task({"data": {"name": "class.jsonl", "separator": ";"}, "model": {"name": "bert"}})
    assert found is not None
    assert found.why.startswith("multi_label, for class.jsonl has texts ('text') with labels between ';' ('label')")


@pytest.mark.usefixtures("folder")
def test_a_task_that_is_not_there_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hellora.experiments.registry.names", lambda _: ["sequence_classification"])
    assert found_task({"data": {"name": "photos"}}) is None


def experiment_of(folder: Path, settings: dict[str, Any] | None = None, **task: Any) -> Any:
    """One whose file has these settings of [task], with the photos."""
    (folder / "x.toml").write_text(tomli_w.dumps({"task": task, "data": {"name": "photos", "partitioner": "iid"}}))
    return read_experiment("x.toml", settings)


def test_it_is_written_into_the_experiment_and_said(folder: Path) -> None:
    experiment = experiment_of(folder)
    assert experiment.task == ImageClassification()
    assert experiment.table["task"]["name"] == "image_classification"
    assert experiment.found == "image_classification, for photos has images (task.name says otherwise)"
    assert "found" not in experiment.to_toml()


def test_who_names_a_task_or_has_settings_of_another_gets_it(folder: Path) -> None:
    for experiment in (
        experiment_of(folder, name="sequence_classification"),
        experiment_of(folder, {"task.name": "sequence_classification"}),
        experiment_of(folder, head_type="own"),
    ):
        assert (type(experiment.task), experiment.found) == (SequenceClassification, "")


@pytest.mark.usefixtures("folder")
def test_other_data_or_another_model_of_a_preset_find_the_task_anew() -> None:
    """What the preset says of its own task goes, and what is set stays."""
    other = read_experiment("quickstart", {"data.name": "photos", "model.name": "vit", "task.label_smoothing": 0.1})
    assert other.task == ImageClassification(label_smoothing=0.1)
    assert read_experiment("quickstart", {"rounds": 2}).found == ""
    same = read_experiment("quickstart", {"data.name": "class.jsonl"})
    assert same.task == SequenceClassification(max_length=64)
    assert same.found.startswith("sequence_classification, for class.jsonl has texts ('text') with a class each")
    chat = read_experiment("llm_quickstart", {"data.name": "class.jsonl"})
    assert isinstance(chat.task, CausalLM), "a language model may learn these texts"


def test_amounts_are_many_numbers_some_with_a_fraction() -> None:
    assert are_amounts([str(i / 5) for i in range(11)])
    assert not are_amounts([str(float(i)) for i in range(50)]), "numbers of classes, as pandas writes them"
    assert not are_amounts(["1.5", "2.5", "3.5"] * 9), "grades"
    assert are_amounts([*(f"{i}.5" for i in range(20)), "n/a"]), "one of them is no number"
    assert not are_amounts([*(f"{i}.5" for i in range(20)), "none", "none"])
    assert not are_amounts(["nan"] * 20)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("text-classification", "sequence_classification"),
        ("chat", "causal_lm"),
        ("Text-Generation", "causal_lm"),
        ("DPO", "preference"),
        ("image-classification", "image_classification"),
    ],
)
def test_a_task_by_a_name_from_elsewhere_is_refused_with_its_own(name: str, task: str) -> None:
    with pytest.raises(InputError, match=f"there is no task '{name}': did you mean '{task}'. There are causal_lm, "):
        check_name("task", name)


def test_a_task_that_is_not_supported_is_answered_with_all_and_how_to_write_one() -> None:
    with pytest.raises(InputError, match=r"choose among causal_lm, .*; one of your own is .*your-own-strategy.md"):
        check_name("task", "object_detection")
