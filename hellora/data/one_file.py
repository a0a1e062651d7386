"""Read examples to predict or to evaluate on: of a file, a folder, or the test split of what has several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from datasets import Dataset, Image

from hellora.core.errors import InputError
from hellora.data.loading import Split, load_splits
from hellora.data.reader import Reader
from hellora.data.settings import LANGUAGE, Columns, DataSettings


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows are examples in canonical columns; `files` names each image's file, and is empty for other data."""

    data: Dataset
    files: Sequence[str]
    notes: Sequence[str] = ()  # what a person should know of what was read


def read_rows(
    name: str | Mapping[str, Dataset], settings: DataSettings, columns: Columns, labels: Sequence[str], labelled: bool
) -> Rows:
    """Read the rows of a source, or of tables that are here, by the columns that `settings` name.

    Where they need not be labelled, a label may be absent, a response is not read, and every row must be usable, so
    that there is an answer for each.

    Raises:
        InputError: there is no such file, a column is absent, or a row has a label that is none of `labels`.
    """
    settings = settings if labelled else replace(settings, strict=True)
    split, notes = test_split(name, settings, columns)
    if columns in LANGUAGE:
        reader = Reader(settings, columns, (), None, notes=notes)
        return Rows(reader.read(split, prompts_alone=not labelled), (), reader.notes)
    index_of = {label: index for index, label in enumerate(labels)}
    reader = Reader(settings, columns, tuple(labels), index_of, notes=notes)
    rows = reader.read(split, may_lack_labels=not labelled, prompts_alone=not labelled)
    files: list[str] = []
    if columns == "image":
        images = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
        files = [image["path"] or "" for image in images["image"]]
    return Rows(rows, files, reader.notes)


def test_split(name: str | Mapping[str, Dataset], settings: DataSettings, columns: Columns) -> tuple[Split, list[str]]:
    """Load the test split of a source, or its only one; and what is to be said of what was read."""
    why = None
    for split in settings.test_names:
        try:
            source = load_splits(name, settings.subset, split, (), columns)
            return source.splits[split], list(source.notes)
        except InputError as error:
            why = why or str(error).removeprefix("data.name: ").replace("data.train_split: ", "data.test_split: ", 1)
    raise InputError(str(why))
