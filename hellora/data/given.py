"""Tables that are objects in memory: a DataFrame of pandas, a `datasets.Dataset`, a list of dictionaries.

An experiment calls them by their fingerprint, so that a resumed run is given the same ones again or refused.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Features, Image, Value

from hellora.core.errors import InputError, one_line
from hellora.core.given import GIVEN
from hellora.data.server_data import fingerprint
from hellora.data.settings import DataSettings

DIGITS = 16  # of a fingerprint in a name


@dataclass(frozen=True)
class GivenData(DataSettings):
    """The settings of tables that were given, by the names of their splits; `name` is their fingerprint."""

    splits: Mapping[str, Dataset] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(settings: DataSettings, name: str, splits: Mapping[str, Dataset]) -> "GivenData":
        """Return the same settings, of the tables of that name."""
        same = {each.name: getattr(settings, each.name) for each in fields(DataSettings)}
        return GivenData(**{**same, "name": name}, splits=splits)

    @property
    def source(self) -> Mapping[str, Dataset]:
        return self.splits


def is_table(value: Any) -> bool:
    """Tell whether something is a table rather than a setting."""
    return isinstance(value, Dataset) or is_frame(value) or is_records(value)


def is_frame(value: Any) -> bool:
    """Tell whether something is a DataFrame of pandas, which need not be imported for that."""
    return type(value).__name__ == "DataFrame" and type(value).__module__.partition(".")[0] == "pandas"


def is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def table_of(value: Any, what: str) -> Dataset:
    """Return a table as a `datasets.Dataset`, with its texts as files have them; errors call it `what`.

    Raises:
        InputError: it cannot be one, such as a DataFrame with columns of mixed types.
    """
    try:
        if is_frame(value):
            table = Dataset.from_pandas(value, preserve_index=False)
        else:
            table = value if isinstance(value, Dataset) else Dataset.from_list([dict(row) for row in value])
    except Exception as error:  # pyarrow raises almost anything
        raise InputError(f"{what} cannot be read as a table: {one_line(error)[:200]}: mend its columns") from error
    texts = {name: Value("string") for name, feature in table.features.items() if feature == Value("large_string")}
    with without_bars():
        table = table.cast(Features({**table.features, **texts})) if texts else table  # pandas has large ones
    return table.with_format(None)


def name_of(splits: Mapping[str, Dataset]) -> str:
    """Return the name by which an experiment calls tables; of images the bytes or the path count."""
    with without_bars():
        return f"{GIVEN}{fingerprint({split: stored(table) for split, table in splits.items()})[:DIGITS]}"


def stored(table: Dataset) -> Dataset:
    """Return a table with its images as they are stored, and the names of its classes in a column."""
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False)).rename_column(name, f"image {name}")
        elif isinstance(feature, ClassLabel):
            table = table.add_column(f"classes {name}", [str(feature.names)] * len(table))
    return table


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep datasets from drawing bars, which it does for tables of any size."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
