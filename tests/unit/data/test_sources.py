"""From a source to canonical columns: labels, templates, images, held-out and proxy data, errors."""

import importlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.settings import DataSettings
from hellora.data.sources import Corpus, load_corpus


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def numbered(count: int, **cells: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {row}", "label": row % 3, **cells} for row in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train.jsonl", numbered(60))
    write(tmp_path / "test.jsonl", [{"text": f"test {row}", "label": row % 3} for row in range(40)])
    return tmp_path


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([10, 9, 10, 2], ("2", "9", "10")),
        (["b", "a", "b", "c"], ("a", "b", "c")),
        (["10", "9", "10", "-2"], ("-2", "9", "10")),
        (["10", "9", "10", "1.0"], ("1.0", "10", "9")),
        ([True, False, True, True], ("false", "true")),
    ],
)
def test_classes_are_sorted_values(tmp_path: Path, values: list[Any], names: tuple[str, ...]) -> None:
    rows = [{"text": "a text", "kind": value} for value in values * 10]
    corpus = load_corpus(DataSettings(name=write(tmp_path / "all.jsonl", rows), label="kind"), "text", seed=0)
    assert corpus.labels == names
    everything = datasets.concatenate_datasets([corpus.train, corpus.test, corpus.proxy])
    assert sorted(everything["label"]) == sorted(names.index(str(value).lower()) for value in values * 10)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (("01", "1", "2"), ("01", "1", "2")),
        (("10", "9", "2"), ("2", "9", "10")),
        (("true", "FALSE", "true"), ("FALSE", "true")),
        (("2024-01-02", "2024-01-01", "2024-01-02"), ("2024-01-01", "2024-01-02")),
    ],
)
def test_labels_of_a_csv_are_what_it_says(tmp_path: Path, cells: tuple[str, ...], names: tuple[str, ...]) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"a,{cell}\n" for cell in cells))
    (tmp_path / "test.csv").write_text(f"text,label\nb,{cells[0]}\nc,{cells[1]}\n")
    corpus = load_corpus(DataSettings(name=str(tmp_path), proxy_examples=0), "text", seed=0)
    assert corpus.labels == names
    assert corpus.test["label"][:] == [names.index(cell) for cell in cells[:2]]


def test_labels_need_not_look_alike_in_every_split(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,0\na,1\na,x\n")
    (tmp_path / "test.csv").write_text("text,label\nb,1\nb,0\n")
    corpus = load_corpus(DataSettings(name=str(tmp_path), proxy_examples=0), "text", seed=0)
    assert (corpus.labels, corpus.test["label"][:]) == (("0", "1", "x"), [1, 0])


def hub(monkeypatch: pytest.MonkeyPatch, **labels: list[int | None]) -> None:
    """A data set on the hub whose labels are a ClassLabel with names in their own order."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zebra", "ape", "never"])})
    splits = {name: Dataset.from_dict({"text": ["t"] * len(v), "label": v}, features) for name, v in labels.items()}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: DatasetDict(splits))


def test_named_classes_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[1, 0, 1], validation=[0, 1])
    corpus = load_corpus(DataSettings(name="owner/corpus", proxy_examples=0), "text", seed=0)
    assert corpus.labels == ("zebra", "ape", "never")
    assert (corpus.train["label"][:], corpus.test["label"][:]) == ([1, 0, 1], [0, 1])


def test_a_label_of_the_test_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[1, 0, 1], test=[0, 2])
    with pytest.raises(
        InputError, match="row 1 of split 'test' of owner/corpus has the label 'never', which no training"
    ):
        load_corpus(DataSettings(name="owner/corpus"), "text", seed=0)


def test_a_test_split_without_labels_tests_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """GLUE's test labels are secret: -1 in every row. The validation split stands in, and that is said."""
    hub(monkeypatch, train=[1, 0, 1] * 10, test=[-1, -1], validation=[0, 1, 0])
    corpus = load_corpus(DataSettings(name="owner/corpus", proxy_examples=0), "text", seed=0)
    assert corpus.test["label"][:] == [0, 1, 0]
    assert "not used to test on: split 'test' of owner/corpus (it has no labels)" in corpus.notes
    hub(monkeypatch, train=[-1, -1])
    with pytest.raises(InputError, match=r"data\.label: split 'train' of owner/corpus is unlabelled"):
        load_corpus(DataSettings(name="owner/corpus"), "text", seed=0)


# --- splits ----------------------------------------------------------------------------------------------------------


def contents(corpus: Corpus) -> list[list[str]]:
    return [split["text"][:] for split in (corpus.train, corpus.test, corpus.proxy)]


def test_a_test_split_is_held_out_by_seed(tmp_path: Path) -> None:
    settings = DataSettings(name=write(tmp_path / "all.jsonl", numbered(100)), test_fraction=0.2, proxy_examples=0)
    first, again, other = (contents(load_corpus(settings, "text", seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert [len(texts) for texts in first] == [80, 20, 0]
    assert len(set(first[0] + first[1])) == 100


def test_proxy_data_is_a_slice_removed_from_the_test_split(folder: Path) -> None:
    corpus = load_corpus(DataSettings(name=str(folder)), "text", seed=0)
    train, test, proxy = contents(corpus)
    assert (len(train), len(test), len(proxy)) == (60, 36, 4)  # at most a tenth of 40
    assert set(test) | set(proxy) == {f"test {row}" for row in range(40)}
    assert corpus.proxy_source == f"4 examples: a slice of the test split of {folder}, removed from it"


def test_a_source_with_a_proxy_split_uses_it(folder: Path) -> None:
    write(folder / "proxy.jsonl", [{"text": f"proxy {row}", "label": 0} for row in range(9)])
    corpus = load_corpus(DataSettings(name=str(folder), proxy_examples=5), "text", seed=0)
    assert len(corpus.test) == 40
    assert len(corpus.proxy) == 5
    assert corpus.proxy_source == f"5 examples: {folder.name}/proxy.jsonl"


def test_proxy_data_from_a_named_split_or_another_source(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write(folder / "public.jsonl", [{"text": "public", "label": 2}])
    assert contents(load_corpus(DataSettings(name=str(folder), proxy="public"), "text", seed=0))[2] == ["public"]
    elsewhere = write(tmp_path_factory.mktemp("other") / "all.jsonl", [{"text": "elsewhere", "label": 2}])
    assert contents(load_corpus(DataSettings(name=str(folder), proxy=elsewhere), "text", seed=0))[2] == ["elsewhere"]
    with pytest.raises(InputError, match=r"data\.proxy: there is no file or folder \./nothing"):
        load_corpus(DataSettings(name=str(folder), proxy="./nothing"), "text", seed=0)


@pytest.mark.parametrize("way", ["by another path", "by a link", "a copy", "mostly a copy", "the folder it is in"])
def test_proxy_data_must_not_be_the_clients_own(folder: Path, tmp_path: Path, way: str) -> None:
    train = folder / "train.jsonl"
    copy, link = tmp_path / "copy.jsonl", tmp_path / "link.jsonl"
    rows = train.read_text().splitlines()
    copy.write_text("\n".join(rows[:40] + ([] if way == "a copy" else ['{"text": "new", "label": 0}'])))
    link.symlink_to(train)
    proxy = {
        "by another path": folder / ".." / folder.name / "train.jsonl",
        "by a link": link,
        "the folder it is in": f"{folder}/",
    }.get(way, copy)
    with pytest.raises(InputError, match=r"data\.proxy: \d+ of the \d+ examples in .* are the clients' own"):
        load_corpus(DataSettings(name=str(folder), proxy=str(proxy)), "text", seed=0)


def test_a_test_split_may_serve_as_proxy_data_of_a_single_file(tmp_path: Path) -> None:
    """A few texts in common are chance; they are left out."""
    name = write(tmp_path / "all.jsonl", numbered(60))
    proxy = write(tmp_path / "public.jsonl", [*numbered(3), *({"text": f"mine {i}", "label": 0} for i in range(9))])
    assert len(load_corpus(DataSettings(name=name, proxy=proxy), "text", seed=0).proxy) in (
        9,
        10,
    )  # test texts may serve


def test_public_data_loses_what_the_clients_or_the_test_hold(folder: Path, tmp_path: Path) -> None:
    taken = [{"text": text, "label": 0} for text in (numbered(60)[3]["text"], "test 5")]
    public = write(tmp_path / "public.jsonl", [*taken, *({"text": f"mine {i}", "label": 0} for i in range(4))])
    corpus = load_corpus(DataSettings(name=str(folder), public=public), "text", seed=0)
    assert corpus.public["text"][:] == [f"mine {i}" for i in range(4)]


def test_a_small_test_split_gives_one_proxy_example_and_keeps_the_last_one(tmp_path: Path) -> None:
    name = write(tmp_path / "all.jsonl", numbered(30))
    corpus = load_corpus(DataSettings(name=name), "text", seed=0)
    source = f"1 example: a slice of the test split of {name}, removed from it"
    assert (len(corpus.test), len(corpus.proxy), corpus.proxy_source) == (2, 1, source)
    corpus = load_corpus(DataSettings(name=write(tmp_path / "few.jsonl", numbered(10))), "text", seed=0)
    assert (len(corpus.test), len(corpus.proxy), corpus.proxy_source) == (1, 0, "none")
    assert corpus.proxy.column_names == ["text", "label"]


def test_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,a\nbar,b\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv is .*line \d or below is not UTF-8: save the file as UTF-8"):
        load_corpus(DataSettings(name=str(tmp_path / "latin.csv")), "text", seed=0)


def test_max_examples_are_drawn_from_the_training_split_by_seed(folder: Path) -> None:
    settings = DataSettings(name=str(folder), max_examples=10)
    corpora = [load_corpus(settings, "text", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (corpus.train["text"][:] for corpus in corpora)
    assert first == again != other
    assert len(set(first)) == 10
    assert corpora[0].labels == ("0", "1", "2")


def test_a_validation_split_is_cut_from_the_training_split(folder: Path) -> None:
    plain, test, tuning = (
        load_corpus(DataSettings(name=str(folder), **settings), "text", seed=0)  # type: ignore[arg-type]
        for settings in ({}, {"validation": 0.25}, {"validation": 0.25, "evaluate_on": "validation"})
    )
    assert [len(texts) for texts in contents(tuning)] == [45, 15, 4]
    assert set(contents(tuning)[0] + contents(tuning)[1]) == set(contents(plain)[0])
    assert contents(test) == [contents(tuning)[0], *contents(plain)[1:]]  # the same to train on, and the test split
    assert contents(tuning)[2] == contents(plain)[2]
    few = DataSettings(name=str(folder), max_examples=8, validation=0.5)
    assert len(load_corpus(few, "text", seed=0).train) == 4
    with pytest.raises(InputError, match=r"data\.validation: .* too few examples to hold out a validation split"):
        load_corpus(DataSettings(name=str(folder), max_examples=1, validation=0.5), "text", seed=0)


def test_a_named_test_split_must_be_there(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"data\.test_split: .* has no split 'held_out' with labels \(it has train, test\): name one"
    ):
        load_corpus(DataSettings(name=str(folder), test_split="held_out"), "text", seed=0)


# --- public data -----------------------------------------------------------------------------------------------------


def with_public(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Corpus:
    """The corpus of the folder with these rows as its split `public`."""
    write(folder / "public.jsonl", rows)
    return load_corpus(DataSettings(name=str(folder), public="public", **settings), "text", seed=0)


def test_without_a_name_there_is_no_public_data(folder: Path) -> None:
    corpus = load_corpus(DataSettings(name=str(folder)), "text", seed=0)
    assert (len(corpus.public), corpus.public_source) == (0, "none")


def test_public_data_from_a_named_split_or_another_source(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [{"text": f"public {row}", "label": 2} for row in range(9)]
    corpus = with_public(folder, rows, public_examples=4)
    assert len(set(corpus.public["text"])) == 4
    assert corpus.public["label"][:] == [2] * 4
    assert corpus.public_source == f"4 examples: {folder.name}/public.jsonl"
    assert len(corpus.test) == 36, "the test split is as it is without"
    elsewhere = write(tmp_path_factory.mktemp("elsewhere") / "any.jsonl", rows)
    corpus = load_corpus(DataSettings(name=str(folder), public=elsewhere), "text", seed=0)
    assert len(corpus.public) == 9
    with pytest.raises(InputError, match=r"data\.public: there is no file or folder \./nothing"):
        load_corpus(DataSettings(name=str(folder), public="./nothing"), "text", seed=0)


@pytest.mark.parametrize("setting", ["proxy", "public"])
def test_a_proxy_split_is_not_looked_for_on_the_hub(
    setting: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", at_home(datasets.load_dataset))
    monkeypatch.chdir(folder)
    settings = DataSettings(**{"name": str(folder), setting: "proxy"})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"^data\.{setting}: this data has no split 'proxy': set data\.{setting} to"):
        load_corpus(settings, "text", seed=0)
    (folder / "proxy").mkdir()
    write(folder / "proxy" / "own.jsonl", [{"text": "own", "label": 0}])
    assert getattr(load_corpus(settings, "text", seed=0), setting)["text"][:] == ["own"]


def at_home(load: Any) -> Any:
    """`load_dataset` for local files; a name must not come to it."""

    def loaded(name: str, *arguments: Any, **files: Any) -> Any:
        assert files, f"{name} is asked of the hub"
        return load(name, *arguments, **files)

    return loaded


def test_public_data_needs_no_labels(folder: Path) -> None:
    corpus = with_public(folder, [{"text": f"public {row}"} for row in range(5)])
    assert corpus.public["label"][:] == [UNLABELLED] * 5
    assert corpus.public_source == f"5 examples, 5 without a label: {folder.name}/public.jsonl"


def test_a_public_label_that_is_no_class_is_none(folder: Path) -> None:
    """The clients' classes are 0, 1 and 2."""
    labels = [1, 7, None, 0]
    corpus = with_public(folder, [{"text": f"public {row}", "label": label} for row, label in enumerate(labels)])
    assert corpus.public["label"][:] == [1, UNLABELLED, UNLABELLED, 0]
    assert corpus.public_source.startswith("4 examples, 2 without a label")
    assert corpus.labels == ("0", "1", "2")


def test_named_classes_of_public_data_go_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, train=[1, 0, 1], test=[0, 1], other=[2, 1, -1, None, 0])
    monkeypatch.setattr(datasets, "load_dataset", renamed(datasets.load_dataset))
    corpus = load_corpus(DataSettings(name="owner/corpus", public="other"), "text", seed=0)
    assert corpus.public["label"][:] == [
        UNLABELLED,
        1,
        UNLABELLED,
        UNLABELLED,
        0,
    ]  # "never" occurs in no training example


def renamed(load: Any) -> Any:
    """The same splits, the texts of `other` being its own."""

    def loaded(*arguments: Any) -> Any:
        splits = load(*arguments)
        other = splits["other"]
        own = Dataset.from_dict({"text": ["o"] * len(other), "label": other["label"][:]}, other.features)
        return DatasetDict({**splits, "other": own})

    return loaded


@pytest.mark.parametrize(("whose", "owner"), [("train", "the clients' own training"), ("test", "the test")])
def test_public_data_must_not_be_the_clients_nor_what_is_tested_on(whose: str, owner: str, folder: Path) -> None:
    copy = (folder / f"{whose}.jsonl").read_text().splitlines()
    unlabelled = [{"text": json.loads(line)["text"]} for line in copy[:20]]
    with pytest.raises(
        InputError, match=rf"data\.public: 20 of the 20 examples in 'public' are {owner} examples: name"
    ):
        with_public(folder, unlabelled)


# --- columns ---------------------------------------------------------------------------------------------------------


def test_the_embedded_corpus_and_a_kept_column() -> None:
    corpus = load_corpus(DataSettings(), "text", seed=0, natural="module")
    assert corpus.train.column_names == ["text", "label", "module"]
    assert len(corpus.labels) == 20
    assert corpus.proxy_source == "100 examples: split 'proxy' of stdlib_docs"


def test_text_pairs(tmp_path: Path) -> None:
    rows = [{"question": "Is it so?", "sentence": f"It is {row}.", "label": row % 2} for row in range(20)]
    name = write(tmp_path / "all.jsonl", rows)
    corpus = load_corpus(DataSettings(name=name, text="question", text_pair="sentence"), "text", seed=0)
    assert corpus.train.column_names == ["text", "text_pair", "label"]
    number = int(corpus.train[0]["text_pair"].split()[-1].strip("."))
    assert corpus.train[0] == {"text": "Is it so?", "text_pair": f"It is {number}.", "label": number % 2}


def test_templates_over_columns(tmp_path: Path) -> None:
    rows = [{"do": "Add", "with": None if row else "it", "n": row, "out": "{done}"} for row in range(20)]
    name = write(tmp_path / "all.jsonl", rows)
    settings = DataSettings(name=name, prompt="{{{do}}} {with}: {n}", response="{out}", test_fraction=0.05)
    corpus = load_corpus(settings, "instruction", seed=0, natural="do")
    assert corpus.labels == ()
    assert corpus.train.column_names == ["prompt", "response", "do"]
    everything = datasets.concatenate_datasets([corpus.train, corpus.test])
    assert sorted(everything["prompt"])[-1] == "{Add} it: 0"
    assert {"prompt": "{Add} : 7", "response": "{done}", "do": "Add"} in everything.to_list()


def test_instructions_may_have_labels_for_the_partitioner(tmp_path: Path) -> None:
    rows = [{"instruction": "Do it", "response": "Done", "category": "qa" if row % 2 else "chat"} for row in range(20)]
    settings = DataSettings(name=write(tmp_path / "all.jsonl", rows), label="category")
    corpus = load_corpus(settings, "instruction", seed=0, natural="category")
    assert corpus.labels == ("chat", "qa")
    assert all(corpus.labels[row["label"]] == row["category"] for row in corpus.train.to_list())


def test_templates_have_cells_as_the_file_has_them(tmp_path: Path) -> None:
    cells = ["007,true", "3,x", "3.5,2024-01-02", "1.50,NA"]
    (tmp_path / "train.csv").write_text("q,a\n" + "\n".join(cells))
    write(tmp_path / "all.jsonl", [{"q": 3.5, "a": True}, {"q": 4.0, "a": False}])
    settings = DataSettings(name=str(tmp_path / "train.csv"), prompt="{q},{a}", response="{a}", proxy_examples=0)
    corpus = load_corpus(settings, "instruction", seed=0)
    assert sorted([*corpus.train["prompt"], *corpus.test["prompt"]]) == sorted(cells)
    corpus = load_corpus(replace(settings, name=str(tmp_path / "all.jsonl")), "instruction", seed=0)
    assert sorted([*corpus.train["prompt"], *corpus.test["prompt"]]) == ["3.5,true", "4.0,false"]


def png() -> bytes:
    buffer = io.BytesIO()
    importlib.import_module("PIL.Image").new("RGB", (3, 2)).save(buffer, "png")
    return buffer.getvalue()


def test_bytes_become_images(tmp_path: Path) -> None:
    Dataset.from_dict({"scan": [png()] * 20, "label": [0, 1] * 10}).to_parquet(tmp_path / "all.parquet")
    corpus = load_corpus(DataSettings(name=str(tmp_path), image="scan"), "image", seed=0)
    assert corpus.train.column_names == ["image", "label"]
    assert corpus.train[0]["image"].size == (3, 2)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([b"no image", b"at all"], "column 'image' of .*all.parquet does not hold images .*: set data.image"),
        ([1, 2], "column 'image' of .*all.parquet does not hold images .*: set data.image"),
        ([b"", None], "column 'image' of .*all.parquet does not hold images .*: set data.image"),
    ],
)
def test_what_is_no_image(tmp_path: Path, cells: list[Any], message: str) -> None:
    Dataset.from_dict({"image": cells, "label": [0, 1]}).to_parquet(tmp_path / "all.parquet")
    with pytest.raises(InputError, match=rf"data\.image: {message}"):
        load_corpus(DataSettings(name=str(tmp_path)), "image", seed=0)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        (
            "text",
            {"label": "kind"},
            r"data.label: .*/all.jsonl has no column 'kind' \(it has text, label, .*\): set data.l",
        ),
        ("text", {"text": "words"}, r"data.text: .*/all.jsonl has no column 'words' .*: set data.text"),
        (
            "text",
            {"text": "gap", "strict": True},
            r"data.name: .*/all.jsonl, line 2: its text is empty: mend the data",
        ),
        ("text", {"text": "list"}, r"data.text: .*/all.jsonl, line 1 is \['a'\], not a text"),
        ("text", {"label": "list"}, r"data.label: .*/all.jsonl, line 1 has the label \['a'\], not a whole number or a"),
        (
            "text",
            {"label": "gap", "strict": True},
            r"data.name: .*/all.jsonl, line 2: it has no label: mend the data",
        ),
        (
            "text",
            {"text": "gap", "unusable": 0.04},
            r"data.unusable: 1 of the 20 rows of .*/all.jsonl cannot be used, more than 4% \(1: its text is empty, .*"
            r"all.jsonl, line 2\): mend",
        ),
        ("image", {}, r"data.image: .*/all.jsonl has no column 'image' .*: set data.image"),
        (
            "instruction",
            {"prompt": "{wrods}"},
            r"data.prompt: .* has no column 'wrods' \(it has text, label, .*\): set",
        ),
        ("instruction", {"prompt": "{text"}, r"data.prompt: '{text' is not a template .*: write {{ for a brace"),
        ("instruction", {"prompt": "text"}, r"data.prompt: 'text' is not a text with plain {column} in it"),
        ("instruction", {"prompt": "{text!r}"}, r"data.prompt: '{text!r}' is not a text with plain {column} in it"),
        (
            "instruction",
            {"prompt": "{list}"},
            r"data.prompt: column 'list', .*, line 1, is a list, not a text or a number",
        ),
        ("instruction", {"prompt": "{gap}", "strict": True}, r"data.name: .*/all.jsonl, line 2: its prompt is empty"),
    ],
)
def test_what_is_wrong_where_and_what_to_change(
    tmp_path: Path, columns: Any, settings: dict[str, Any], message: str
) -> None:
    rows = numbered(20, score=0.5, list=["a"], response="yes")
    rows = [{**row, "gap": None if index == 1 else "here"} for index, row in enumerate(rows)]
    name = write(tmp_path / "all.jsonl", rows)
    with pytest.raises(InputError, match=message) as info:
        load_corpus(DataSettings(name=name, **settings), columns, seed=0)
    assert "\n" not in str(info.value)


def test_a_kept_column_must_not_have_the_name_of_another(tmp_path: Path) -> None:
    name = write(tmp_path / "all.jsonl", numbered(20, kind="a"))
    with pytest.raises(InputError, match=r"data\.column: 'label' is a name that hellora gives another column"):
        load_corpus(DataSettings(name=name, label="kind"), "text", seed=0, natural="label")


def test_one_example_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few examples to hold out a test split"):
        load_corpus(DataSettings(name=write(tmp_path / "all.jsonl", numbered(1))), "text", seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name must not be empty"),
        ({"test_fraction": 1.0}, "test_fraction must be between 0 and 1, not 1.0"),
        ({"proxy_examples": -1}, "proxy_examples must not be negative"),
        ({"max_examples": 0}, "max_examples must be at least 1, not 0"),
        ({"clients": 0}, "clients must be at least 1, not 0"),
        ({"validation": 1.0}, "validation must be 0 or a part below 1, not 1.0"),
        ({"validation": -0.1}, "validation must be 0 or a part below 1, not -0.1"),
        ({"evaluate_on": "validation"}, "needs a validation split: set validation"),
        ({"test_split": "train"}, "train_split and test_split must differ, both are 'train'"),
        ({"proxy": "train"}, "proxy must not be the clients' training data, 'train'"),
        ({"proxy": "stdlib_docs"}, "proxy must not be the clients' training data, 'stdlib_docs'"),
        ({"public": "stdlib_docs"}, "public must not be the clients' training data, 'stdlib_docs'"),
        ({"public_examples": 0}, "public_examples must be at least 1, not 0"),
    ],
)
def test_settings_have_ranges(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**fields)


# --- real data -------------------------------------------------------------------------------------------------------

RTE = {"train_split": "rte_train", "test_split": "rte_dev", "text": "sentence1", "text_pair": "sentence2"}
INSTRUCTION = {"prompt": "{definition}\n{input}", "response": "{output}"}


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("columns", "settings", "sizes"),
    [
        ("text", {"name": "banking77", "label": "label_name"}, (10003, 2980, 100, 77)),
        ("text", {"name": "trec", "label": "coarse"}, (5444, 450, 49, 6)),
        ("text", {"name": "glue", **RTE}, (2490, 250, 27, 2)),
        ("instruction", {"name": "dolly15k", "label": "category"}, (13510, 1401, 100, 8)),
        ("instruction", {"name": "natural_instructions", **INSTRUCTION}, (9000, 900, 100, 0)),
        ("image", {"name": "cifar100_lite"}, (10000, 2900, 100, 100)),
    ],
)
def test_real_folders(shared_data: Path, columns: Any, settings: dict[str, str], sizes: tuple[int, ...]) -> None:
    corpus = load_corpus(DataSettings(**{**settings, "name": str(shared_data / settings["name"])}), columns, seed=0)  # type: ignore[arg-type]
    assert (len(corpus.train), len(corpus.test), len(corpus.proxy), len(corpus.labels)) == sizes
