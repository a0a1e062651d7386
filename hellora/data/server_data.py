"""Find the server's own data, to score layers on (proxy) and to train on (public), and keep out of it what the clients
or the test hold."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b, sha256
from pathlib import Path

from datasets import Dataset, Image

from hellora.core.errors import InputError
from hellora.core.metrics import UNLABELLED
from hellora.data.loading import Split, load_splits

# The columns by which examples are compared.
SAID = ("text", "text_pair", "tokens", "messages", "prompt", "response", "chosen", "rejected", "image")


def proxy_split(
    name: str, splits: Mapping[str, Split], test_name: str | None, train_name: str, columns: str
) -> Split | None:
    """Find the split for `data.proxy`; None where it has to be a slice of the test split."""
    if name in ("", test_name):
        return None if name else splits.get("proxy")
    return named_split(name, "proxy", splits, train_name, columns)


def named_split(name: str, setting: str, splits: Mapping[str, Split], train_name: str, columns: str) -> Split:
    """Find the split that the setting `data.<setting>` names: one of the source, or the training split of another."""
    if name in splits:
        return splits[name]
    if name == "proxy" and not Path(name).exists():  # a split's usual name, and no data set's
        raise InputError(
            f"data.{setting}: this data has no split 'proxy': set data.{setting} to a file or data set that the "
            f"server may see"
        )
    try:
        return load_splits(name, "", train_name, (), columns).splits[train_name]
    except InputError as error:
        raise InputError(f"data.{setting}: {str(error).removeprefix('data.name: ')}") from error


def without_copies(data: Dataset, setting: str, name: str, taken: Dataset, whose: str, notes: list[str]) -> Dataset:
    """Return the server's data without what the clients or the test hold; raise InputError where that is most of it.

    How many rows that were is added to `notes`.

    Examples are compared by content, so it does not matter by what path they are named.
    """
    held = set(contents(taken))
    own = [row for row, content in enumerate(contents(data)) if content not in held]
    shared = len(data) - len(own)
    if 2 * shared > len(data):
        raise InputError(
            f"data.{setting}: {shared} of the {len(data)} examples in '{name}' are {whose}: "
            f"name data that the server may see"
        )
    if shared:
        notes.append(f"left out: {shared} of the {len(data)} {setting} examples, which are {whose}")
    return data.select(own) if shared else data


def copies(data: Dataset, taken: Dataset) -> int:
    """Count the rows of `data` that say the same as one of `taken`."""
    held = set(contents(taken))
    return sum(content in held for content in contents(data))


def repetitions(data: Dataset) -> int:
    """Count the rows that say the same as an earlier one."""
    return len(data) - len(set(contents(data)))


def fingerprint(splits: Mapping[str, Dataset]) -> str:
    """Return the sha256 of all rows in order, with the names of their columns and splits; of an image its bytes."""
    digest = sha256()
    for split, data in splits.items():
        digest.update(repr((split, len(data), data.column_names)).encode())
        for column in data.column_names:
            if column == "image":
                for image in data.select_columns([column]).cast_column(column, Image(decode=False))[column]:
                    digest.update(image["bytes"] or Path(image["path"]).read_bytes())
            else:
                digest.update(repr(data[column][:]).encode())
    return digest.hexdigest()


def described(public: Dataset, split: Split) -> str:
    """Describe the public data in one line for the record."""
    labels = public["label"][:] if "label" in public.column_names else []
    unlabelled = f", {labels.count(UNLABELLED)} without a label" if UNLABELLED in labels else ""
    return f"{len(public)} examples{unlabelled}: {split.where}"


def contents(data: Dataset) -> Iterator[bytes]:
    """Yield a digest of what each row says, its label aside; of an image, of its bytes."""
    columns = [column for column in SAID if column in data.column_names]
    rows = data.select_columns(columns)
    if "image" in columns:
        rows = rows.cast_column("image", Image(decode=False))
    for row in rows:
        if image := row.get("image"):
            row["image"] = blake2b(image["bytes"] or Path(image["path"]).read_bytes(), digest_size=16).digest()
        yield blake2b(repr(row).encode(), digest_size=16).digest()
