"""Read examples to predict or to evaluate on: of a file, a folder, or the test split of what has several."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets import Dataset, Image

from hellora.core.errors import InputError
from hellora.data.loading import Split, load_splits
from hellora.data.sources import Columns, DataSettings, Reader


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows are examples in canonical columns; `files` names each image's file, and is empty for other data."""

    data: Dataset
    files: Sequence[str]


def read_rows(name: str, settings: DataSettings, columns: Columns, labels: Sequence[str], labelled: bool) -> Rows:
    """Read the rows of a source, by the columns that `settings` name.

    Where they need not be labelled, a label may be absent, and a response is not read.

    Raises:
        InputError: there is no such file, a column is absent, or a row has a label that is none of `labels`.
    """
    split = test_split(name, settings)
    if columns == "instruction":
        prompt_alone = settings if labelled else replace(settings, response=settings.prompt)
        return Rows(Reader(prompt_alone, columns, (), None).read(split), ())
    index_of = {label: index for index, label in enumerate(labels)}
    rows = Reader(settings, columns, tuple(labels), index_of).read(split, may_lack_labels=not labelled)
    files: list[str] = []
    if columns == "image":
        images = rows.select_columns(["image"]).cast_column("image", Image(decode=False))
        files = [image["path"] or "" for image in images["image"]]
    return Rows(rows, files)


def test_split(name: str, settings: DataSettings) -> Split:
    """Load the test split of a source, or its only one."""
    why = None
    for split in settings.test_names:
        try:
            return load_splits(name, settings.subset, split, ())[split]
        except InputError as error:
            why = why or str(error).removeprefix("data.name: ").replace("data.train_split", "data.test_split")
    raise InputError(str(why))
