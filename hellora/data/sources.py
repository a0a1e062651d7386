"""Load a data set (hub, local files, the embedded corpus) into the columns that a task reads.

    text         text, text_pair where there is one, label      image    image (decoded when read), label
    instruction  prompt, response, label where there is one

A label is the index of its class in `Corpus.labels`. Rows that cannot be used are left out and said. Proxy data and
public data are the server's own, never from the training split. Public data is what the server trains on; its
examples may be UNLABELLED.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from hellora.core.errors import InputError
from hellora.data.cells import Faults, cells_of, filled, images, is_unlabelled, label_cells, named, texts
from hellora.data.labels import in_order
from hellora.data.loading import Split, load_splits
from hellora.data.natural import Groups, cut_within, kept_within, largest
from hellora.data.server_data import (
    UNLABELLED,
    copies,
    described,
    fingerprint,
    named_split,
    proxy_split,
    without_copies,
)
from hellora.data.usable import Tolerance, check_faults

Columns = Literal["text", "image", "instruction"]


@dataclass(frozen=True)
class DataSettings:
    """The [data] table says which data is read and how; the partitioner's own settings are not among these."""

    name: str = "stdlib_docs"  # or a hub id, a local file, a local folder
    subset: str = ""  # configuration of a hub data set
    train_split: str = "train"  # of a folder: the name of its files, or of the folder that they are in
    test_split: str = "test"  # where it is "test" and absent, "validation" or "dev" stands in
    text: str = "text"
    text_pair: str = ""
    label: str = "label"
    image: str = "image"
    prompt: str = "{instruction}"  # a template over columns, as is the response
    response: str = "{response}"
    test_fraction: float = 0.1  # held out where the source has no test split
    proxy: str = (
        ""  # a split or another source; "" = the split "proxy", or where there is none a slice of the test split
    )
    proxy_examples: int = 100  # at most; 0 = no proxy data
    public: str = ""  # a split or another source, for methods that distil on public data
    public_examples: int = 1000  # at most
    max_examples: int | None = None  # of the training split, drawn by seed
    validation: float = 0.0  # part of the training split that is held out before the clients get theirs
    evaluate_on: Literal["test", "validation"] = "test"  # validation: to choose settings without a look at the test
    strict: bool = False  # refuse the first row that cannot be used
    unusable: float = 0.05  # the share of rows that may be left out because they cannot be used
    clients: int | None = None  # 20; of natural clients the most that take part, all where it is not given
    partitioner: str = "dirichlet"

    def __post_init__(self) -> None:
        for name in ("name", "train_split", "test_split", "partitioner"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, not {self.test_fraction}")
        if self.proxy_examples < 0:
            raise ValueError(f"proxy_examples must not be negative, not {self.proxy_examples}")
        for name in ("public_examples", "max_examples", "clients"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.unusable <= 1:
            raise ValueError(f"unusable must be a share of the rows, from 0 to 1, not {self.unusable}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be 0 or a part below 1, not {self.validation}")
        if self.evaluate_on == "validation" and not self.validation:
            raise ValueError("evaluate_on = 'validation' needs a validation split: set validation, such as 0.1")
        if self.train_split == self.test_split:
            raise ValueError(f"train_split and test_split must differ, both are '{self.train_split}'")
        for name in ("proxy", "public"):
            if getattr(self, name) in (self.name, self.train_split):
                raise ValueError(f"{name} must not be the clients' training data, '{getattr(self, name)}'")

    @property
    def num_clients(self) -> int:
        """Return how many clients there are, as far as the settings say; of natural clients there may be others."""
        return 20 if self.clients is None else self.clients

    @property
    def test_names(self) -> tuple[str, ...]:
        """Name the splits that can be the test split, best first."""
        return ("test", "validation", "dev") if self.test_split == "test" else (self.test_split,)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A corpus is all that a run reads, in canonical columns."""

    train: Dataset  # of all clients together
    test: Dataset  # what models are evaluated on: the test split, or the validation split where that is asked for
    proxy: Dataset  # the server's own, to score layers on; may be empty
    public: Dataset  # the server's own, to train on; may be empty, or UNLABELLED
    labels: tuple[str, ...]  # class names; () where there is no label
    proxy_source: str  # one line for the record
    public_source: str  # likewise
    notes: tuple[str, ...] = ()  # what was read, what not, and why; each a line for a person
    fingerprint: str = ""  # sha256 of all rows as they were read


def load_corpus(settings: DataSettings, columns: Columns, seed: int, natural: str | None = None) -> Corpus:
    """Load the splits of a source.

    Args:
        settings: what to read
        columns: the columns that the task reads
        seed: of what is drawn: test and validation examples where no split holds them, and `max_examples`
        natural: a column of the training split that is carried along; each of its values is a client, of whose rows
            some always stay

    Raises:
        InputError: the data are not there, do not fit the settings, or cannot be used.
    """
    others = (*settings.test_names, settings.proxy or "proxy", settings.public)
    wanted = tuple(filter(None, dict.fromkeys(others)))
    source = load_splits(settings.name, settings.subset, settings.train_split, wanted, columns)
    reader = Reader.for_split(source.splits[settings.train_split], settings, columns)
    reader.notes.extend(source.notes)
    train = reader.read(source.splits[settings.train_split], keep=(natural,) if natural else ())
    reader.check_vanished(train)
    if natural:
        train, note = largest(train, natural, settings.clients)
        reader.notes.extend([note] if note else [])
    groups = None if natural is None else Groups(natural)
    test, test_name, rest = read_test(settings, reader, source.splits, train, groups, seed)
    own = read_own_of_server(settings, reader, source.splits, test, test_name, rest, seed)
    print_of = fingerprint({"train": train, "test": test, "proxy": own.proxy, "public": own.public})
    train = rest
    if settings.max_examples is not None:
        train = kept_within(train, settings.max_examples, seed, "max_examples", groups)
    if settings.validation:
        held_out = max(1, round(settings.validation * len(train)))
        train, validation = cut_within(train, held_out, seed, "validation", groups)
        own = replace(own, test=validation) if settings.evaluate_on == "validation" else own
        if not len(train) or not len(validation):
            raise InputError(f"data.validation: {settings.name} has too few examples to hold out a validation split")
    return replace(own, train=train, notes=tuple(reader.notes), fingerprint=print_of)


def read_test(
    settings: DataSettings,
    reader: "Reader",
    splits: Mapping[str, Split],
    train: Dataset,
    groups: Groups | None,
    seed: int,
) -> tuple[Dataset, str | None, Dataset]:
    """Return the test examples, the name of their split, and the training examples that are left.

    A split without labels, as GLUE's test splits are, tests nothing; the next one stands in.
    """
    for name in settings.test_names:
        if name not in splits or name == settings.train_split:
            continue
        if reader.index_of is not None and is_unlabelled(splits[name], settings.label):
            reader.notes.append(f"not used to test on: {splits[name].where} (it has no labels)")
            continue
        test = reader.read(splits[name])
        if shared := copies(test, train):
            are = "are" if shared > 1 else "is"
            reader.notes.append(f"{shared} of the {len(test)} test examples {are} among the training examples, too")
        return test, name, train
    if settings.test_split != "test":
        raise InputError(
            f"data.test_split: {settings.name} has no split '{settings.test_split}' with labels (it has "
            f"{', '.join(splits)}): name one of them, or leave it out to hold out a part of the training split"
        )
    rest, test = cut_within(train, max(1, round(settings.test_fraction * len(train))), seed, "test", groups)
    if not len(rest) or not len(test):
        raise InputError(f"data.name: {settings.name} has too few examples to hold out a test split")
    return test, None, rest


def read_own_of_server(
    settings: DataSettings,
    reader: "Reader",
    splits: Mapping[str, Split],
    test: Dataset,
    test_name: str | None,
    train: Dataset,
    seed: int,
) -> Corpus:
    """Read a corpus without training examples: the test split, and the server's proxy and public data. What of these
    is in `train` is left out."""
    public, public_source = test.select(()), "none"
    if settings.public:
        public_from = named_split(settings.public, "public", splits, settings.train_split, reader.columns)
        public = reader.read(public_from, may_lack_labels=True)
        public = without_copies(
            public, "public", settings.public, train, "the clients' own training examples", reader.notes
        )
        public = without_copies(public, "public", settings.public, test, "the test examples", reader.notes)
        _, public = cut_within(public, settings.public_examples, seed, "public")
        public_source = described(public, public_from)
    proxy_from = proxy_split(settings.proxy, splits, test_name, settings.train_split, reader.columns)
    if proxy_from is not None:
        proxy = reader.read(proxy_from)
        proxy = without_copies(
            proxy, "proxy", settings.proxy or "proxy", train, "the clients' own training examples", reader.notes
        )
        _, proxy = cut_within(proxy, settings.proxy_examples, seed, "proxy")
        proxy_source = proxy_from.where
    else:
        slice_of_test = max(1, len(test) // 10) if len(test) > 1 else 0
        test, proxy = cut_within(test, min(settings.proxy_examples, slice_of_test), seed, "proxy")
        proxy_source = f"a slice of the test split of {settings.name}, removed from it"
    plural = "s" * (len(proxy) > 1)
    proxy_source = f"{len(proxy)} example{plural}: {proxy_source}" if len(proxy) else "none"
    return Corpus(test.select(()), test, proxy, public, reader.labels, proxy_source, public_source)


# --- from a split to canonical columns -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reader:
    """A reader reads splits into canonical columns; the classes are those of the training split."""

    settings: DataSettings
    columns: Columns
    labels: tuple[str, ...]  # the names of the classes
    index_of: Mapping[str, int] | None  # of the classes that occur; None where there is no label
    declared: bool = False  # the classes are those that the source names, in its order
    notes: list[str] = field(default_factory=list)  # what a person should know of what was read

    @staticmethod
    def for_split(train: Split, settings: DataSettings, columns: Columns) -> "Reader":
        """Make the reader of a source, whose classes are those of its training split."""
        if columns == "instruction" and settings.label not in train.data.column_names:
            return Reader(settings, columns, (), None)
        if is_unlabelled(train, settings.label) and columns != "instruction":
            raise InputError(
                f"data.label: {train.where} is unlabelled, for its column '{settings.label}' is -1 or empty in every "
                f"row: name another column or split"
            )
        present = {label for label in label_cells(train, settings.label) if label is not None}
        feature = train.data.features[settings.label]
        declared = isinstance(feature, ClassLabel)
        labels = feature.names if declared else in_order(present)
        index_of = {label: index for index, label in enumerate(labels) if label in present}
        return Reader(settings, columns, tuple(labels), index_of, declared)

    def read(self, split: Split, keep: tuple[str, ...] = (), may_lack_labels: bool = False) -> Dataset:
        """Read the split into canonical columns, and keep the columns `keep` as they are.

        Rows that cannot be used are left out, and noted. A label that is absent or no class of the training split is
        UNLABELLED with `may_lack_labels`; else one that is no class is an error.
        """
        settings, cells, features = self.settings, dict[str, Sequence[Any]](), Features()
        faults: Faults = {}
        if self.columns == "text":
            cells["text"] = texts(cells_of(split, settings.text, "text"), split, "text", faults)
            if settings.text_pair:
                pairs = cells_of(split, settings.text_pair, "text_pair")
                cells["text_pair"] = texts(pairs, split, "text_pair", faults)
        elif self.columns == "instruction":
            cells["prompt"] = texts(filled(settings.prompt, split, "prompt"), split, "prompt", faults)
            cells["response"] = texts(filled(settings.response, split, "response"), split, "response", faults)
        features.update({name: Value("string") for name in cells})
        if self.index_of is not None:
            labels = self._labels_if_any(split) if may_lack_labels else self._labels(split, faults)
            cells["label"], features["label"] = labels, Value("int64")
        for column in keep:
            if column not in cells:
                cells[column], features[column] = cells_of(split, column, "column"), split.data.features[column]
            elif getattr(settings, column) != column:
                raise InputError(f"data.column: '{column}' is a name that hellora gives another column: rename yours")
        data = Dataset.from_dict(cells, features=features)
        if self.columns == "image":
            data = concatenate_datasets([images(split, settings.image, faults), data], axis=1)
        if note := check_faults(faults, split, Tolerance(settings.strict, settings.unusable)):
            self.notes.append(note)
        return data.select([row for row in range(len(data)) if row not in faults]) if faults else data

    def check_vanished(self, train: Dataset) -> None:
        """Raise InputError where no row of a class of the training split can be used."""
        if self.index_of is None or self.columns == "instruction":
            return
        left = set(train["label"][:])
        if gone := [label for label, index in self.index_of.items() if index not in left]:
            raise InputError(
                f"data.name: of the class '{gone[0]}' of {self.settings.name} no row can be used: mend its rows, or "
                f"remove them"
            )

    def _labels(self, split: Split, faults: Faults) -> list[int]:
        """Read the classes; a row without a label is a fault, one with a label that is no class an error."""
        assert self.index_of is not None
        found = label_cells(split, self.settings.label)
        for row, value in enumerate(found):
            if value is None:
                faults.setdefault(row, "it has no label")
            elif value not in self.index_of:
                raise InputError(
                    f"data.label: {split.place(row)} has the label {value!r}, which no training example has: "
                    f"name a split with the same classes"
                )
        return [UNLABELLED if value is None else self.index_of[value] for value in found]

    def _labels_if_any(self, split: Split) -> list[int]:
        """Read the classes; a label that is absent, or none, is UNLABELLED."""
        assert self.index_of is not None
        if self.settings.label not in split.data.column_names:
            return [UNLABELLED] * len(split.data)
        found = named(split.data[self.settings.label][:], split.data.features[self.settings.label])
        return [self.index_of.get(value, UNLABELLED) if isinstance(value, str) else UNLABELLED for value in found]
