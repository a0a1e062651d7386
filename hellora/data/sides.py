"""Each side of a deployment reads its own data: a client its rows, the server its test, proxy and public data.

Nobody sees all the data, so the classes are agreed on: each client says which labels it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from datasets import Dataset

from hellora.core.errors import InputError
from hellora.data.labels import in_order
from hellora.data.loading import Source, Split, load_splits
from hellora.data.reader import Reader
from hellora.data.server_data import fingerprint
from hellora.data.settings import LANGUAGE, Columns, DataSettings
from hellora.data.sources import Corpus, read_own_of_server


@dataclass(frozen=True)
class Classes:
    """A client's classes are all labels that its source declares, in their order, or those that occur, sorted."""

    values: tuple[str, ...]
    present: tuple[str, ...]  # sorted
    declared: bool


def own_split(settings: DataSettings, columns: Columns, allowed: Sequence[str] = ()) -> Split:
    """Load a client's own rows, as they are in its source; where names say what is read, with `allowed` columns only,
    unless there are none."""
    split = load_splits(settings.name, settings.subset, settings.train_split, (), columns).splits[settings.train_split]
    by_name = settings.found_by_name if columns in LANGUAGE else columns == "tokens"
    if not (allowed and by_name):
        return split
    label = settings.label if columns in LANGUAGE else ""
    seen = [name for name in split.data.column_names if name in (*allowed, label)]
    if not seen:
        has = ", ".join(split.data.column_names)
        raise InputError(f"--columns: {split.where} has none of {', '.join(allowed)} (it has {has}): name what it has")
    return replace(split, data=split.data.select_columns(seen))


def own_classes(split: Split, settings: DataSettings, columns: Columns) -> Classes | None:
    """Return the classes of a client's rows; None where they have no labels."""
    reader = Reader.for_split(split, settings, columns)
    if reader.index_of is None:
        return None
    return Classes(reader.labels, tuple(sorted(reader.index_of)), reader.declared)


def agreed(lists: Sequence[Classes]) -> Classes:
    """Return the classes of all clients together: those that all declare alike, or all that occur, sorted."""
    present = {label for classes in lists for label in classes.present}
    values = lists[0].values
    if not all(classes.declared and classes.values == values for classes in lists):
        values = tuple(in_order(present))
    return Classes(values, tuple(sorted(present)), declared=True)


def read_own(
    split: Split, settings: DataSettings, columns: Columns, classes: Classes | None
) -> tuple[Dataset, list[str]]:
    """Read a client's rows into canonical columns; and what is to be said of them, to nobody but this client."""
    reader = reader_of(settings, columns, classes)
    return reader.read(split), reader.notes


def reader_of(settings: DataSettings, columns: Columns, classes: Classes | None) -> Reader:
    """Make the reader of rows whose classes are agreed on."""
    if classes is None:
        return Reader(settings, columns, (), None)
    index_of = {value: index for index, value in enumerate(classes.values) if value in classes.present}
    return Reader(settings, columns, classes.values, index_of)


def server_corpus(settings: DataSettings, columns: Columns, seed: int, classes: Classes | None) -> Corpus:
    """Read the server's own data; `train` is empty, `test` is the test split of the source, or its only one.

    Raises:
        InputError: a setting or a row is wrong.
    """
    test_name, source = server_splits(settings, columns)
    reader = reader_of(settings, columns, classes)
    reader.notes.extend(source.notes)
    reader.say_oddities("the clients")
    test = reader.read(source.splits[test_name])
    own = read_own_of_server(settings, reader, source.splits, test, test_name, test.select(()), seed)
    print_of = fingerprint({"test": test, "proxy": own.proxy, "public": own.public})
    return replace(own, notes=tuple(reader.notes), fingerprint=print_of)


def server_splits(settings: DataSettings, columns: Columns) -> tuple[str, Source]:
    """Load the splits of the server's source, and name the one to test on."""
    others = ("proxy", settings.proxy, settings.public)
    why = None
    for name in settings.test_names:
        try:
            wanted = tuple(filter(None, dict.fromkeys(others)))
            return name, load_splits(settings.name, settings.subset, name, wanted, columns)
        except InputError as error:
            why = why or error
    assert why is not None
    reason = str(why).removeprefix("data.train_split: ").removeprefix("data.name: ")
    raise InputError(f"data.name: the server's own test data cannot be read: {reason}") from why
