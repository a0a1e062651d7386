"""What the names of files and folders say: a format, a compression, a split; for tables and images alike.

A split is the *whole* name of a top folder or of a file, in any case: `train/…`, `Test.CSV`. Numbers that count the
files of a split belong to no name: `train-00000-of-00002.parquet`. Parts of names say nothing, but for the first
word of a file's name where no file is named like the training split: `train_100pc.csv`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from hellora.core.errors import InputError

FORMATS = (".parquet", ".jsonl", ".csv", ".tsv", ".json")
DELIMITERS = {".csv": "", ".tsv": "\t"}  # of .csv, what its heading row has
TAGGED = (".conll", ".bio", ".iob", ".iob2", ".txt")  # a word and its tag a line; read by tasks that tag words
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
IMAGES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".avif",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".jp2",
)
SYNONYMS = (
    frozenset({"train", "training"}),
    frozenset({"validation", "valid", "val", "dev", "eval"}),
    frozenset({"test", "testing"}),
)
DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}  # of `datasets`' folders
COUNTER = r"([-_. ]?\d+([-_. ]?of[-_. ]?\d+)?)?"  # of the files of one split


@dataclass
class Layout:
    """A layout says which files are read: of a split its files and, of images, each one's class."""

    splits: dict[str, list[Path]] = field(default_factory=dict)
    declared: bool = False  # by the source itself
    images: bool = False
    classes: dict[Path, str] = field(default_factory=dict)  # of an image; {} where folders name no class
    roots: dict[str, Path] = field(default_factory=dict)  # the folder of a split of images
    metadata: dict[str, Path] = field(default_factory=dict)  # of a split's images
    unused: list[tuple[Path, str]] = field(default_factory=list)  # and why


def check_here(source: str) -> None:
    """Raise InputError unless there is a file or folder with data on this machine; a model is none."""
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(
            f"there is no file or folder {source}: correct the path; for data of the hub, hellora run quickstart "
            f"--set data.name={source}"
        )
    if (path / "config.json").is_file():
        raise InputError(f"{source} is a model: name the data, and --model {source}")


def format_of(path: PurePath) -> str | None:
    """Return the format of a data file by its suffix, in any case and under any compression; None where it is none."""
    name = path.name.lower().removesuffix(compression_of(path))
    return next((suffix for suffix in FORMATS if name.endswith(suffix) and name != suffix), None)


def is_tagged(path: PurePath) -> bool:
    """Say whether a file has words and tags in columns, by its suffix, in any case and under any compression."""
    return PurePath(path.name.lower().removesuffix(compression_of(path))).suffix in TAGGED


def has_rows(path: PurePath, columns: str) -> bool:
    """Say whether a file has rows that a task with these columns can read, by its name."""
    return format_of(path) is not None or (columns == "tokens" and is_tagged(path))


def formats_read(columns: str) -> str:
    """List, for a person, in what the names of files end that a task with these columns can read."""
    known = (*FORMATS, *TAGGED) if columns == "tokens" else FORMATS
    return f"{', '.join(known)}, nor in one of these and {', '.join(COMPRESSIONS)}"


def compression_of(path: PurePath) -> str:
    """Return the suffix of a compressed file; "" where it is not compressed."""
    return next((suffix for suffix in COMPRESSIONS if path.name.lower().endswith(suffix)), "")


def stem_of(path: PurePath) -> str:
    """Return the name of a data file without its suffixes."""
    bare = path.name[: len(path.name) - len(compression_of(path))]
    return bare[: len(bare) - len(format_of(path) or PurePath(bare).suffix)]


def split_of(name: str, wanted: Sequence[str]) -> str | None:
    """Return the split that a whole name means: one that is wanted, by its own name or by a synonym; else None.

    A synonym of no wanted split is a split too, under its own name, and never anything else.
    """
    low = name.lower()
    for split in wanted:
        # After a name that ends in a digit no bare number counts files: fold1 is not fold11.
        counter = COUNTER if not split[-1].isdigit() else r"([-_. ]\d+[-_. ]?of[-_. ]?\d+)?"
        if re.fullmatch(re.escape(split.lower()) + counter, low):
            return split
    for group in SYNONYMS:
        word = next((word for word in sorted(group) if re.fullmatch(word + COUNTER, low)), None)
        if word is not None:
            return next((split for split in wanted if split.lower() in group), word)
    return None


def split_of_first_word(name: str, wanted: Sequence[str]) -> str | None:
    """Return the split that the first word of a name means, as in `train_100pc`; None where another follows it."""
    words = re.split(r"[-_. ]+", name.lower())
    for count in range(len(words) - 1, 0, -1):
        split = split_of(name[: len("_".join(words[:count]))], wanted)
        if split is not None:
            return None if any(split_of(word, wanted) for word in words[count:]) else split
    return None


def folder_split(name: str, wanted: Sequence[str]) -> str | None:
    """Return the split that the name of a folder means. Folders are not counted: `train2` is no split."""
    low = name.lower()
    known = low in {split.lower() for split in wanted} or any(low in group for group in SYNONYMS)
    return split_of(name, wanted) if known else None


def word_of(name: str, wanted: Sequence[str]) -> str:
    """Return the word for its split with which a name begins, in small letters."""
    words = (*(split.lower() for split in wanted), *(word for group in SYNONYMS for word in sorted(group)))
    return max((word for word in words if name.lower().startswith(word)), key=len)
