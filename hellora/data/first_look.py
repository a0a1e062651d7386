"""Take a first look at data that are here: what their columns are called, and what is in them."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from datasets import Dataset

from hellora.core.errors import InputError
from hellora.data.loading import load_splits
from hellora.data.settings import DataSettings

# What the embedded data are like; to load them would take longer than a look may.
KNOWN: Mapping[str, Mapping[str, str]] = {
    "stdlib_docs": {"text": "Return the sum.", "label": "mathematics"},
    "stdlib_questions": {"instruction": "What does it do?", "response": "It returns the sum.", "label": "mathematics"},
}


def first_look(settings: DataSettings) -> Dataset | None:
    """Return the training split of data on this machine, just as it is; None of what is not here or cannot be read."""
    if settings.name in KNOWN:
        return Dataset.from_list([dict(KNOWN[settings.name])])
    if not Path(settings.name).expanduser().exists():
        return None
    others = tuple(dict.fromkeys((*settings.test_names, "validation")))
    for columns in ("image", "tokens"):  # which take folders of images, and files of words with tags, too
        with suppress(InputError):  # which is said when the data are read
            source = load_splits(settings.name, settings.subset, settings.train_split, others, columns)
            return source.splits[settings.train_split].data
    return None
