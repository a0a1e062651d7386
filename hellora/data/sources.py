"""Load a data set (hub, local files, what is embedded) into the columns that a task reads.

    text         text, text_pair where there is one, label      image    image (decoded when read), label
    text_numbers, text_labels    the same texts, targets: the numbers, or of each label 1 or 0
    instruction  messages, prompt and response, or text (`forms.py` says which); label where there is one
    tokens       tokens, a list of words, and tags, the class of each (`tags.py`)
    preference   chosen and rejected, and prompt where these are texts (`preferences.py`); label where there is one

A label is the index of its class in `Corpus.labels`. Rows that cannot be used are left out and said. Proxy data and
public data are the server's own, never from the training split. Public data is what the server trains on; its
examples may be UNLABELLED.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from datasets import Dataset

from hellora.core.errors import InputError
from hellora.data.forms import holds_turns
from hellora.data.loading import Split, load_splits
from hellora.data.natural import Groups, cut_within, kept_within, largest
from hellora.data.reader import Reader, unlabelled
from hellora.data.server_data import (
    SAID,
    copies,
    described,
    fingerprint,
    named_split,
    proxy_split,
    repetitions,
    without_copies,
)
from hellora.data.settings import LANGUAGE, ONE_CLASS, Columns, DataSettings
from hellora.data.tags import has_tags

NO_TEST = "not used to test on: "


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
    validation: Dataset | None = None  # examples that were held out to look at while a method is chosen

    @property
    def has_turns(self) -> bool:
        """Return True if the examples are conversations, so that what is learned is to answer in turns."""
        return holds_turns(self.test)


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
    everyone = read_train(settings, reader, source.splits[settings.train_split], natural)
    groups = None if natural is None else Groups(natural)
    test, test_name, train = read_test(settings, reader, source.splits, everyone, groups, seed)
    say_unused(settings, reader, source.splits, test_name)
    own = read_own_of_server(settings, reader, source.splits, test, test_name, train, seed)
    print_of = fingerprint({"train": everyone, "test": test, "proxy": own.proxy, "public": own.public})
    if settings.max_examples is not None:
        train = kept_within(train, settings.max_examples, seed, "max_examples", groups)
    if settings.validation:
        train, validation = cut_within(
            train, max(1, round(settings.validation * len(train))), seed, "validation", groups
        )
        if not len(train) or not len(validation):
            raise InputError(f"data.validation: {settings.name} has too few examples to hold out a validation split")
        say_copies(validation, train, "validation", reader)
        own = replace(own, validation=validation)
        own = replace(own, test=validation) if settings.evaluate_on == "validation" else own
    return replace(own, train=train, notes=tuple(reader.notes), fingerprint=print_of)


def read_train(settings: DataSettings, reader: Reader, split: Split, natural: str | None) -> Dataset:
    """Read the training split; of natural clients those that take part."""
    train = reader.read(split, keep=(natural,) if natural else ())
    reader.check_vanished(train)
    reader.say_oddities(split.where, split.data.column_names)
    if repeated := repetitions(train):
        reader.notes.append(f"{repeated} of the {len(train)} training examples say the same as an earlier one")
    if natural:
        train, note = largest(train, natural, settings.clients)
        reader.notes.extend([note] if note else [])
    return train


def say_unused(settings: DataSettings, reader: Reader, splits: Mapping[str, Split], test_name: str | None) -> None:
    """Note which splits were read and serve nothing, if that is not said already."""
    used = {settings.train_split, test_name, settings.proxy or "proxy", settings.public}
    said = {note.removeprefix(NO_TEST).removesuffix(" (it has no labels)") for note in reader.notes}
    for name, split in splits.items():
        if name not in used and split.where not in said:
            reader.notes.append(f"not used: {split.where}")


def read_test(
    settings: DataSettings,
    reader: Reader,
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
        if reader.index_of is not None and reader.columns not in LANGUAGE and lacks_labels(splits[name], reader):
            reader.notes.append(f"{NO_TEST}{splits[name].where} (it has no labels)")
            continue
        test = reader.read(splits[name])
        check_same_form(reader, train, test, "test_split")
        say_copies(test, train, "test", reader)
        return test, name, train
    if settings.test_split != "test":
        raise InputError(
            f"data.test_split: {settings.name} has no split '{settings.test_split}' with labels (it has "
            f"{', '.join(splits)}): name one of them, or leave it out to hold out a part of the training split"
        )
    rest, test = cut_within(train, max(1, round(settings.test_fraction * len(train))), seed, "test", groups)
    if not len(rest) or not len(test):
        each = f", for each value of '{groups.column}' keeps one" if groups else ""
        raise InputError(f"data.name: {settings.name} has too few examples to hold out a test split{each}")
    say_copies(test, rest, "test", reader)
    return test, None, rest


def lacks_labels(split: Split, reader: Reader) -> bool:
    """Say whether no example of a test split has a label, or it has no column for it."""
    settings, columns = reader.settings, reader.columns
    if columns == "tokens":
        return not has_tags(split, settings)
    if columns in ONE_CLASS and settings.label not in split.data.column_names:
        return True
    return unlabelled(split, settings, columns, reader.index_of or ()) is not None


def check_same_form(reader: Reader, train: Dataset, other: Dataset, setting: str) -> None:
    """Raise InputError where a language model would be measured on examples of another form than it learns from."""
    mine, theirs = (sorted({*SAID} & {*rows.column_names}) for rows in (train, other))
    if reader.columns in LANGUAGE and len(other) and mine != theirs:
        raise InputError(
            f"data.{setting}: its examples are {' and '.join(theirs)}, and those that are learned from "
            f"{' and '.join(mine)}: bring both into one form, such as with data.as_chat = true"
        )


def say_copies(held_out: Dataset, train: Dataset, name: str, reader: Reader) -> None:
    """Note how many of the examples that are held out say the same as a training example."""
    if shared := copies(held_out, train):
        are = "are" if shared > 1 else "is"
        reader.notes.append(f"{shared} of the {len(held_out)} {name} examples {are} among the training examples, too")


def read_own_of_server(
    settings: DataSettings,
    reader: Reader,
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
