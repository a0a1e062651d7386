"""Whatever is wrong with the input: one line on stderr that says what to change, exit status 2, and no traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from filelock import FileLock
from refusals import check_refusal

Command = Callable[..., Any]


# --------------------------------------------------------------------------------------------- settings, by --set alone


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.batchsize=1"], ["unknown setting train.batchsize", "did you mean 'batch_size'"]),
        (["trian.lr=1"], ["unknown setting trian", "did you mean 'train'"]),
        (["method.allocator=fed_helo"], ["no allocator 'fed_helo'", "did you mean 'fed_hello'"]),
        (["method.aggregator=sum"], ["no aggregator 'sum'", "participant_mean"]),
        (["method.allocator=nowhere.mod:Mine"], ["allocator = 'nowhere.mod:Mine' cannot be imported"]),
        (["fleet.layers=[0]"], ["fleet", "give at least one group more than 0"]),
        (["fleet.layers=[0, 0, 0]"], ["fleet", "give at least one group more than 0"]),
        (["fleet.layers=[0, 4]", "fleet.shares=[1, 0]"], ["fleet: no client can train"]),
        (["cohort=7"], ["cohort = 7 is more than data.clients = 6", "set cohort = 6 or less"]),
        (["rounds=many"], ["rounds", "'many'"]),
        (["train.lr=-1"], ["lr must be greater than 0"]),
        (["train.lr"], ["section.key=value"]),
        (["train.lr.x=1"], ["section.key"]),
        (["data.label=topic"], ["no column 'topic'", "it has text, label", "set data.label"]),
        (["data.text=sentence"], ["no column 'sentence'", "set data.text"]),
        (["data.partitioner=column", "data.column=author"], ["no column 'author'", "data.column"]),
        (["data.name=/nowhere/data"], ["there is no file or folder /nowhere/data"]),
        (["data.clients=97", "data.partitioner=iid"], ["96 training examples are too few for 97 clients"]),
        (["model.classes=2"], ["model.classes = 2", "has 3 classes", "set model.classes = 3"]),
        (["model.classes=2", "task.head_type=own"], ["model.classes = 2", "has 3 classes"]),
        (["model.name=/nowhere/model"], ["there is no folder /nowhere/model"]),
        (['model.targets=["q_proj"]'], ["no linear module is named q_proj", "query"]),
        (["task.name=image_classification"], ["no column 'image'", "set data.image"]),
        (["compute.device=cuda:77"], ["compute.device = 'cuda:77' cannot be used here"]),
        (["compute.device=gpu"], ["compute.device = 'gpu' cannot be used here"]),
        (["compute.device=meta"], ["compute.device = 'meta' cannot be used here"]),
        (["compute.device=hpu"], ["compute.device = 'hpu' cannot be used here"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_settings_that_cannot_work(
    hellora: Command, small: Path, tmp_path: Path, settings: list[str], words: list[str]
) -> None:
    changes = [part for setting in settings for part in ("--set", setting)]
    check_refusal(hellora("run", small, "--out", tmp_path / "out", *changes), *words)
    assert not (tmp_path / "out" / "adapter").exists()


# ---------------------------------------------------------------------------------------------------- files and folders


def test_no_such_preset(hellora: Command) -> None:
    check_refusal(hellora("run", "quickstrat"), "no preset or file 'quickstrat'", "did you mean 'quickstart'")
    check_refusal(hellora("plan", "vit_cifar10"), "did you mean 'vit_cifar100'")


def test_no_such_file(hellora: Command, tmp_path: Path) -> None:
    check_refusal(hellora("run", tmp_path / "absent.toml"), "there is no experiment file", "absent.toml")


def test_a_file_that_is_not_toml(hellora: Command, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("rounds = 3\n[model\n")
    check_refusal(hellora("run", path), "broken.toml is not valid TOML", "line 2")


def test_a_model_folder_without_config(hellora: Command, small: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    setting = f"model.name={tmp_path / 'empty'}"
    for command in ("run", "plan"):
        check_refusal(hellora(command, small, "--set", setting), "has no config.json", str(tmp_path / "empty"))


def test_a_model_folder_without_weights(hellora: Command, small: Path, tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((tiny_bert / "config.json").read_bytes())
    check_refusal(
        hellora("run", small, "--out", tmp_path / "out", "--set", f"model.name={tmp_path / 'bare'}"),
        "model.name: cannot load",
    )


@pytest.mark.parametrize("content", ["", "text,label\n", "text\nthe boat\n", "text,label\nthe boat,\nthe sky,sky\n"])
def test_a_data_file_that_cannot_be_used(hellora: Command, small: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(content)
    check_refusal(hellora("run", small, "--out", tmp_path / "out", "--set", f"data.name={path}"), "data.", "odd.csv")


@pytest.mark.parametrize(
    ("task", "content", "words"),
    [
        ("regression", 'text,label\nthe boat,"3,5"\n', ["1 of the 1 rows", "'3,5', no number", "odd.csv, line 2"]),
        ("multi_label", 'text,label\na,"[1, 0, 0]"\nb,"[0, 1, 0]"\n', ["data.label", "0 and 1 for each label in turn"]),
        ("token_classification", "tokens,tags\na boat,b-X o\nby me,i-X o\n", ["data.tags", "write these as B-PER"]),
        ("token_classification", "tokens,tags\na boat,O\n", ["data.unusable", "2 words and 1 tags", "line 2"]),
    ],
)
def test_data_of_other_tasks_that_cannot_be_used(
    hellora: Command, small: Path, tmp_path: Path, task: str, content: str, words: list[str]
) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(content)
    settings = [f"data.name={path}", f"task.name={task}", "data.partitioner=iid"]
    changes = [part for setting in settings for part in ("--set", setting)]
    check_refusal(hellora("run", small, "--out", tmp_path / "out", *changes), *words)


@pytest.mark.parametrize("round", [-1, 3, 1000])
def test_a_round_out_of_range(hellora: Command, small: Path, round: int) -> None:
    check_refusal(hellora("plan", small, f"--round={round}"), f"--round {round}", "the rounds are 0 to 2")


def test_a_command_line_that_is_no_command(hellora: Command, small: Path) -> None:
    for arguments in (["run"], ["run", small, "--fast"], ["walk"], ["plan", small, "--round", "first"]):
        answer = hellora(*arguments)
        assert answer.status == 2
        assert "Traceback" not in answer.out + answer.err


# ----------------------------------------------------------------------------------------------------- the run's folder


@pytest.fixture
def finished(hellora: Command, small: Path, tmp_path: Path) -> Path:
    out = tmp_path / "finished"
    assert hellora("run", small, "--out", out, "--set", "rounds=1").status == 0
    return out


def unfinish(folder: Path) -> None:
    """As after a kill between the last checkpoint and the summary."""
    (folder / "summary.json").unlink()


def test_the_folder_of_another_experiment(hellora: Command, small: Path, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for resume in ([], ["--resume"]):
        for settings in ([], ["--set", "rounds=1", "--set", "train.lr=0.5"]):
            answer = hellora("run", small, "--out", finished, *settings, *resume)
            check_refusal(answer, "holds a run of another experiment", "choose another --out")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_the_folder_of_the_same_run_without_resume(hellora: Command, small: Path, finished: Path) -> None:
    answer = hellora("run", small, "--out", finished, "--set", "rounds=1")
    check_refusal(answer, "holds a run already", "--resume", "choose another --out")


def test_a_folder_that_is_not_a_run(hellora: Command, small: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for resume in ([], ["--resume"]):
        answer = hellora("run", small, "--out", tmp_path / "photos", *resume)
        check_refusal(answer, "is not a run of hellora", "choose another --out")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_what_is_refused_leaves_no_folder(hellora: Command, small: Path, tmp_path: Path) -> None:
    late = ("--set", "data.label=nothing")  # the data is read when the folder is taken already
    check_refusal(hellora("run", small, "--out", tmp_path / "out", *late), "data.label")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "my.log").touch()
    check_refusal(hellora("run", small, "--out", tmp_path / "out", *late), "data.label")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my.log"]


def test_a_model_that_does_not_work_on_the_data(hellora: Command, small: Path, tmp_path: Path) -> None:
    """T5 under mean pooling wants inputs for its decoder, too."""
    model = tiny_models.save_t5(tmp_path / "t5")
    answer = hellora("run", small, "--set", f"model.name={model}", "--out", tmp_path / "out")
    check_refusal(answer, "task.head_type", "(t5) has a decoder", "set task.head_type = 'own'")
    assert not (tmp_path / "out").exists()
    assert (
        hellora(
            "run", small, "--set", f"model.name={model}", "--set", "task.head_type=own", "--out", tmp_path / "t5-run"
        ).status
        == 0
    )


def test_data_in_the_place_of_an_experiment(hellora: Command) -> None:
    check_refusal(hellora("run", "my.csv"), "for data, hellora run quickstart --set data.name=my.csv")


def test_a_folder_with_an_experiment_file_that_hellora_did_not_put_there(
    hellora: Command, small: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "experiment.toml").write_text("seed = 5  # precious\n")
    check_refusal(hellora("run", small, "--out", mine), "holds a run of another experiment")
    assert (mine / "experiment.toml").read_text() == "seed = 5  # precious\n"


def test_a_folder_that_cannot_be_written(hellora: Command, small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    check_refusal(hellora("run", small, "--out", tmp_path / "file"), "is not a run of hellora", "choose another --out")
    check_refusal(hellora("run", small, "--out", tmp_path / "file" / "out"), "cannot write to")
    check_refusal(hellora("run", small, "--out", "/proc/no/such/place"), "cannot write to /proc/no/such/place")


def last_state(folder: Path) -> Path:
    return max((folder / "checkpoint").glob("state-*.json"))


def damage_state(folder: Path) -> None:
    last_state(folder).write_text('{"round": 1, ')


def damage_tensors(folder: Path) -> None:
    path = folder / "checkpoint" / "state-000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1  # one bit of one weight
    path.write_bytes(data)


def cut_tensors(folder: Path) -> None:
    path = folder / "checkpoint" / "state-000001.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def remove_tensors(folder: Path) -> None:
    (folder / "checkpoint" / "state-000001.safetensors").unlink()


def another_kind_of_json(folder: Path) -> None:
    last_state(folder).write_text("[]")


def a_field_is_gone(folder: Path) -> None:
    path = last_state(folder)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}))


@pytest.mark.parametrize(
    "damage", [damage_state, damage_tensors, cut_tensors, remove_tensors, another_kind_of_json, a_field_is_gone]
)
def test_a_damaged_state_is_gone_back_from(
    hellora: Command, small: Path, finished: Path, damage: Callable[[Path], None]
) -> None:
    unfinish(finished)
    damage(finished)
    check_refusal(hellora("export", finished), "is damaged (", "`hellora run --resume` goes back")
    again = hellora("run", small, "--out", finished, "--set", "rounds=1", "--resume")
    assert again.status == 0
    assert "is damaged (" in again.out
    assert "so the state before round 0 is used" in again.out


def test_a_checkpoint_without_a_whole_state(hellora: Command, small: Path, finished: Path) -> None:
    unfinish(finished)
    for file in (finished / "checkpoint").glob("*.json"):
        file.write_text("[]")
    again = ["run", small, "--out", finished, "--set", "rounds=1", "--resume"]
    check_refusal(hellora(*again), "state-000001.json is damaged (", f"no other state is whole; remove {finished}")
    shutil.rmtree(finished)  # and what the message says helps
    assert hellora(*again).status == 0


def test_going_back(hellora: Command, small: Path, finished: Path) -> None:
    again = ["run", small, "--out", finished, "--set", "rounds=1"]
    check_refusal(hellora(*again, "--from-round", 0), "--from-round goes back in a run that is there: give --resume")
    check_refusal(hellora(*again, "--resume", "--from-round", 7), "--from-round 7", "before the rounds 0, 1")
    before = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    answer = hellora(*again, "--resume", "--from-round", 0)
    assert answer.status == 0
    assert "going back to before round 0: what came after it is set aside, as *-after-0" in answer.out
    assert (finished / "rounds-after-0.jsonl").read_text().count("\n") == 1
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("content", ["", '{"round": 0, "coh\n', "\x00\x00\x00\n"])
def test_damaged_lines_of_rounds(hellora: Command, small: Path, finished: Path, content: str) -> None:
    unfinish(finished)
    (finished / "rounds.jsonl").write_text(content)
    answer = hellora("run", small, "--out", finished, "--set", "rounds=1", "--resume")
    assert answer.status == 0
    assert f"{finished / 'rounds.jsonl'} is damaged (" in answer.out
    assert "so the state before round 0 is used" in answer.out


def test_a_damaged_summary(hellora: Command, small: Path, finished: Path) -> None:
    (finished / "summary.json").write_text('{"experiment": ')
    answer = hellora("run", small, "--out", finished, "--set", "rounds=1", "--resume")
    check_refusal(answer, f"{finished / 'summary.json'} is damaged: remove it")


def test_other_data_than_the_run_began_with(hellora: Command, small: Path, tmp_path: Path) -> None:
    """Rows in another order are other data: batches would be others."""
    for name in ("train", "test"):
        rows = [{"text": f"{name} {i}", "label": i % 3} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine, settings = tmp_path / "run", ["--set", f"data.name={tmp_path}", "--set", "rounds=1"]
    assert hellora("run", small, "--out", mine, *settings).status == 0
    assert len(json.loads((mine / "summary.json").read_text())["data"]["sha256"]) == 64
    unfinish(mine)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(reversed(lines)))
    answer = hellora("run", small, "--out", mine, *settings, "--resume")
    check_refusal(answer, "--resume: the data of", "are not those that", "bring them back, or start a new run")


def test_a_folder_in_use(hellora: Command, small: Path, finished: Path) -> None:
    with FileLock(finished / "run.lock"):
        answer = hellora("run", small, "--out", finished, "--set", "rounds=1", "--resume")
    check_refusal(answer, "is in use by another process")


def test_an_allocator_that_does_not_fit_the_fleet_leaves_no_run(hellora: Command, small: Path, tmp_path: Path) -> None:
    settings = ["--set", "method.allocator=exclusive", "--set", "fleet.layers=[1, 2]"]
    answer = hellora("run", small, "--out", tmp_path / "out", *settings)
    check_refusal(answer, "needs a client that can train all 4 layers")
    assert not (tmp_path / "out" / "experiment.toml").exists()


def test_a_model_whose_blocks_cannot_be_left_out(hellora: Command, small: Path, tmp_path: Path) -> None:
    """T5's blocks hand on their position bias; with another dispatcher the model trains."""
    model = tiny_models.save_t5(tmp_path / "t5")
    settings = ["--set", f"model.name={model}", "--set", "task.head_type=own", "--set", "rounds=1"]
    answer = hellora("run", small, "--out", tmp_path / "out", *settings, "--set", "method.dispatcher=bypass")
    check_refusal(answer, "method.dispatcher leaves blocks out, and this model's hand each other more than hidden")
    assert not (tmp_path / "out" / "experiment.toml").exists()
    assert hellora("run", small, "--out", tmp_path / "out", *settings).status == 0


def test_a_damaged_experiment_file(hellora: Command, small: Path, finished: Path) -> None:
    (finished / "experiment.toml").write_text("rounds = ")
    check_refusal(hellora("run", small, "--out", finished, "--resume"), "is not valid TOML")
