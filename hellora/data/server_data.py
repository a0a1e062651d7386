"""Find the server's own data, to score layers on (proxy) and to train on (public), and keep out of it what the clients
or the test hold."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

from datasets import Dataset, Image

from hellora.core.errors import InputError
from hellora.data.loading import Split, load_splits

UNLABELLED = -100  # the label of a public example without one, or with one that is no class of the clients'


def proxy_split(name: str, splits: Mapping[str, Split], test_name: str | None, train_name: str) -> Split | None:
    """Find the split for `data.proxy`; None where it has to be a slice of the test split."""
    if name in ("", test_name):
        return None if name else splits.get("proxy")
    return named_split(name, "proxy", splits, train_name)


def named_split(name: str, setting: str, splits: Mapping[str, Split], train_name: str) -> Split:
    """Find the split that the setting `data.<setting>` names: one of the source, or the training split of another."""
    if name in splits:
        return splits[name]
    if name == "proxy" and not Path(name).exists():  # a split's usual name, and no data set's
        raise InputError(
            f"data.{setting}: this data has no split 'proxy': set data.{setting} to a file or data set that the "
            f"server may see"
        )
    try:
        return load_splits(name, "", train_name, ())[train_name]
    except InputError as error:
        raise InputError(f"data.{setting}: {str(error).removeprefix('data.name: ')}") from error


def without_copies(data: Dataset, setting: str, name: str, taken: Dataset, whose: str) -> Dataset:
    """Return the server's data without what the clients or the test hold; raise InputError where that is most of it.

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
    return data.select(own) if shared else data


def described(public: Dataset, split: Split) -> str:
    """Describe the public data in one line for the record."""
    labels = public["label"][:] if "label" in public.column_names else []
    unlabelled = f", {labels.count(UNLABELLED)} without a label" if UNLABELLED in labels else ""
    return f"{len(public)} examples{unlabelled}: {split.where}"


def contents(data: Dataset) -> Iterator[bytes]:
    """Yield a digest of what each row says, its label aside. An image file on disk is known by where it lies."""
    columns = [column for column in ("text", "text_pair", "prompt", "response", "image") if column in data.column_names]
    rows = data.select_columns(columns)
    if "image" in columns:
        rows = rows.cast_column("image", Image(decode=False))
    for row in rows:
        image = row.get("image") or {}
        if image:
            row["image"] = image["bytes"] or str(Path(image["path"]).resolve())
        yield blake2b(repr(row).encode(), digest_size=16).digest()
