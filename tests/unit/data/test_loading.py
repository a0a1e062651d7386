"""From a name to splits: which files of a folder are read, and what a person is told where that cannot be done."""

import importlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hellora.core.errors import InputError
from hellora.data.loading import load_splits

TEST = ("test", "validation", "dev", "proxy")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, *texts: str) -> None:
    """A file of one column, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        path.write_text("\n".join(["text", *texts]))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    else:
        path.write_text(json.dumps([{"text": text} for text in texts]))


def texts(name: Path, train: str = "train", others: tuple[str, ...] = TEST) -> dict[str, list[str]]:
    return {key: split.data["text"][:] for key, split in load_splits(str(name), "", train, others).splits.items()}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tsv", ".json"])
def test_a_file_is_the_training_split(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"all{suffix}", "a", "b")
    assert texts(tmp_path / f"all{suffix}") == {"train": ["a", "b"]}
    assert (
        load_splits(str(tmp_path / f"all{suffix}"), "", "train", TEST).splits["train"].where
        == f"{tmp_path.name}/all{suffix}"
    )


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "all.jsonl", "a", "b")
    assert texts(tmp_path / "all.jsonl") == {"train": ["a", "b"]}
    write(tmp_path / "all.jsonl", "c")
    assert texts(tmp_path / "all.jsonl") == {"train": ["c"]}


def test_a_csv_cell_is_read_as_it_is(tmp_path: Path) -> None:
    """Never as the number, date or truth value that it looks like."""
    (tmp_path / "all.csv").write_text(
        '\ufefftext,label,when,sure\n"two\nlines, one cell",1,2024-01-02,true\nNA,007,,\n,1.50,12:01,FALSE\n'
    )
    data = load_splits(str(tmp_path), "", "train", TEST).splits["train"].data
    assert data.to_dict() == {
        "text": ["two\nlines, one cell", "NA", ""],
        "label": ["1", "007", "1.50"],
        "when": ["2024-01-02", "", "12:01"],
        "sure": ["true", "", "FALSE"],
    }


def test_tabs_separate_cells_of_a_tsv_file(tmp_path: Path) -> None:
    (tmp_path / "all.tsv").write_text('text\tlabel\na, b\t1\n"two\tcells"\t2\n')
    data = load_splits(str(tmp_path / "all.tsv"), "", "train", TEST).splits["train"].data
    assert data.to_dict() == {"text": ["a, b", "two\tcells"], "label": ["1", "2"]}


def test_the_columns_of_several_csv_files_are_matched_by_name(tmp_path: Path) -> None:
    (tmp_path / "train_1.csv").write_text("text,note,label\na,3,x\n")
    (tmp_path / "train_2.csv").write_text("label,text,note\ny,b,\n")
    (tmp_path / "train_3.csv").write_text("text,label\nc,z\n")
    data = load_splits(str(tmp_path), "", "train", TEST).splits["train"].data
    assert data.to_dict() == {"text": ["a", "b", "c"], "note": ["3", "", None], "label": ["x", "y", "z"]}


def test_files_of_a_folder_are_told_apart_by_their_names(tmp_path: Path) -> None:
    write(tmp_path / "train_1.csv", "a")
    write(tmp_path / "train_2.csv", "b")
    write(tmp_path / "dev.csv", "c")
    write(tmp_path / "proxy.csv", "d")
    write(tmp_path / "train.json", "another format")
    write(tmp_path / "train_data.csv", "no split's whole name")
    assert texts(tmp_path) == {"train": ["another format", "a", "b"], "dev": ["c"], "proxy": ["d"]}


def test_a_folder_of_several_data_sets_is_told_apart_by_longer_names(tmp_path: Path) -> None:
    for name in ("rte_train", "rte_dev", "sst_train", "sst_dev"):
        write(tmp_path / f"{name}.jsonl", name)
    found = texts(tmp_path, "rte_train", ("rte_dev",))
    assert found == {"rte_train": ["rte_train"], "rte_dev": ["rte_dev"]}


def test_the_one_data_file_of_a_folder_is_the_training_split(tmp_path: Path) -> None:
    write(tmp_path / "tasks.parquet", "a")
    write(tmp_path / "manifest.json", "not data")
    (tmp_path / "README.md").write_text("about it")
    assert texts(tmp_path) == {"train": ["a"]}


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    image = importlib.import_module("PIL.Image")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            image.new("RGB", (2, 2)).save(tmp_path / split / name / "1.png")
    splits = load_splits(str(tmp_path), "", "train", TEST, "image").splits
    assert splits["train"].data.features["label"].names == ["cat", "dog"]
    assert len(splits["test"].data) == 2


def test_a_hub_data_set_keeps_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(name: str, subset: str | None) -> datasets.DatasetDict:
        assert (name, subset) == ("owner/corpus", "en")
        one = datasets.Dataset.from_dict({"text": ["a"]})
        return datasets.DatasetDict({"train": one, "validation": one})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    splits = load_splits("owner/corpus", "en", "train", TEST).splits
    assert [split.where for split in splits.values()] == [
        "split 'train' of owner/corpus",
        "split 'validation' of owner/corpus",
    ]
    with pytest.raises(InputError, match=r"data\.train_split: owner/corpus has no split 'all' \(it has train, valid"):
        load_splits("owner/corpus", "en", "all", TEST)


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(*_: Any) -> None:
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(
        InputError, match=r"data\.name: owner/corpus is no file or folder here, and cannot be had"
    ) as info:
        load_splits("owner/corpus", "", "train", TEST)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["./nothing", "nothing.csv", "a/b/c", "~/nothing/at/all"])
def test_a_path_to_nothing(name: str) -> None:
    with pytest.raises(InputError, match=f"data.name: there is no file or folder {name}: correct the path"):
        load_splits(name, "", "train", TEST)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("all.parquet", b"PAR1 and then nothing of the kind", "is empty, damaged, or not in the format"),
        ("all.jsonl", b'{"text": "a"}\n{"text": ', "is empty, damaged, or not in the format"),
        ("all.jsonl", b"", "is empty, damaged, or not in the format"),
        ("all.csv", b"", "is empty, damaged, or not in the format"),
        ("all.csv", b"text,label\na,1\nb,2,3\n", "is empty, damaged, or not .*Expected 2 columns, got 3"),
        ("all.csv", b"text,label,text\na,1,b\n", r"is empty, damaged, or not .*\(two columns are named 'text'\)"),
        ("all.csv", b"text\n", "has no rows: fill it or name other data"),
        ("all.txt", b"a", r"does not end in \.parquet, \.jsonl, \.csv, \.tsv, \.json, nor in one of these and"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match=rf"data\.name: .*{file}.*({message})") as info:
        load_splits(str(tmp_path / file), "", "train", TEST)
    assert "\n" not in str(info.value)


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither data files nor one folder of images per class"):
        load_splits(str(tmp_path), "", "train", TEST)
    write(tmp_path / "rte_train.csv", "a")
    write(tmp_path / "rte_dev.csv", "a")
    with pytest.raises(InputError, match=r"is named 'train' \(it has rte_dev\.csv, rte_train\.csv\): set data\.train"):
        load_splits(str(tmp_path), "", "train", TEST)
    with pytest.raises(InputError, match=r"is named 'rte'"):
        load_splits(str(tmp_path), "", "rte", ("rte_dev",))


@pytest.mark.parametrize("shown", [True, False])
def test_the_caller_keeps_its_progress_bars(tmp_path: Path, shown: bool) -> None:
    write(tmp_path / "all.csv", "a")
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        texts(tmp_path)
        assert datasets.are_progress_bars_disabled() is not shown
    finally:
        datasets.enable_progress_bars()
