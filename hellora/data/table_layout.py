"""Decide which data files of a folder belong to which split: by the first folder that is one, else by their names."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from hellora.core.errors import InputError
from hellora.data.file_names import (
    COUNTER,
    Layout,
    folder_split,
    format_of,
    split_of,
    split_of_first_word,
    stem_of,
    word_of,
)

Places = dict[tuple[str, ...], dict[str, list[Path]]]  # by the folders above, the files of each split
Rule = Callable[[str, Sequence[str]], str | None]  # from a name to a split


def table_layout(folder: Path, tables: Sequence[Path], wanted: Sequence[str], subset: str) -> Layout:
    """Decide which data files belong to which split."""
    if not tables:
        raise InputError(f"data.name: {folder} holds neither data files nor one folder of images per class")
    layout = Layout()
    places = splits_by_place(folder, tables, wanted, split_of)
    if not any(wanted[0] in splits for splits in places.values()):
        places = splits_by_place(folder, tables, wanted, either) or places
    if not places:
        layout.splits[wanted[0]] = only_data(folder, tables, wanted)
        return layout
    chosen = chosen_places(folder, places, wanted, subset)
    for place in chosen:
        layout.splits |= places[place]
    for other, splits in places.items():
        if other not in chosen:
            why = "not in the folder of the splits that are read"
            layout.unused += [(path, why) for paths in splits.values() for path in paths]
    known = {path for splits in places.values() for paths in splits.values() for path in paths}
    layout.unused += [(path, "its name is no split's") for path in tables if path not in known]
    if wanted[0] not in layout.splits:
        raise no_split(folder, tables, wanted[0])
    check_words(folder, layout, wanted)
    check_counters(folder, layout)
    return layout


def splits_by_place(folder: Path, tables: Sequence[Path], wanted: Sequence[str], rule: Rule) -> Places:
    """Return the files of each split, by the folders above the split."""
    places: Places = {}
    for path in tables:
        place, split = place_and_split(path.relative_to(folder), wanted, rule)
        if split is not None:
            places.setdefault(place, {}).setdefault(split, []).append(path)
    return places


def either(name: str, wanted: Sequence[str]) -> str | None:
    """Return the split of a whole name, or of its first word."""
    return split_of(name, wanted) or split_of_first_word(name, wanted)


def place_and_split(path: PurePath, wanted: Sequence[str], rule: Rule) -> tuple[tuple[str, ...], str | None]:
    """Return the folders above a split, and the split: of the first folder that is one, else of the file's name."""
    folders = path.parts[:-1]
    for depth, name in enumerate(folders):
        if (split := folder_split(name, wanted)) is not None:
            return folders[:depth], split
    return folders, rule(stem_of(path), wanted)


def chosen_places(folder: Path, places: Places, wanted: Sequence[str], subset: str) -> list[tuple[str, ...]]:
    """Return the folders whose splits are read: the one that `data.subset` names, all where no split is twice, else the
    highest with a training split.
    """
    everything = [split for splits in places.values() for split in splits]
    if subset:
        found = [place for place in places if subset in place]
        if not found:
            raise InputError(f"data.subset: {folder} has no splits in a folder '{subset}': correct it")
    elif len(set(everything)) == len(everything):
        return list(places)
    else:
        having = [place for place in places if wanted[0] in places[place]] or list(places)
        found = [place for place in having if len(place) == min(map(len, having))]
    if len(found) != 1:
        names = ", ".join(sorted("/".join(place) or "." for place in places))
        raise InputError(f"data.subset: {folder} has splits in several folders ({names}): name one of them")
    return found


def only_data(folder: Path, tables: Sequence[Path], wanted: Sequence[str]) -> list[Path]:
    """Return the files of a folder in which no name is a split's: one file, or the numbered parts of one."""
    data = [path for path in tables if format_of(path) != ".json"] or list(tables)
    bases = {(path.parent, re.sub(COUNTER + "$", "", stem_of(path)), format_of(path)) for path in data}
    if len(bases) > 1:
        raise no_split(folder, tables, wanted[0])
    return data


def no_split(folder: Path, tables: Sequence[Path], split: str) -> InputError:
    """Make the error of a folder without the split that is asked for."""
    names = [str(path.relative_to(folder)) for path in tables]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")
    return InputError(
        f"data.train_split: no file or folder in {folder} is named '{split}' (it has {shown}): set "
        f"data.train_split and data.test_split to the names, or data.name to one of the files"
    )


def check_words(folder: Path, layout: Layout, wanted: Sequence[str]) -> None:
    """Raise InputError where files with different names, such as val.csv and dev.csv, would be one split."""
    for split, paths in layout.splits.items():
        words = {word_of(name_of_split(path.relative_to(folder), wanted), wanted) for path in paths}
        if len(words) > 1 and split.lower() not in words:
            raise InputError(
                f"data.test_split: {folder} has {' and '.join(sorted(words))}, which both mean '{split}': name one"
            )
        if len(words) > 1:  # the one that has the split's own name is it
            for path in [
                path
                for path in paths
                if word_of(name_of_split(path.relative_to(folder), wanted), wanted) != split.lower()
            ]:
                paths.remove(path)
                layout.unused.append((path, f"'{split}' is there by its own name"))


def name_of_split(path: PurePath, wanted: Sequence[str]) -> str:
    """Return the name by which a file is of its split: of its first folder that is one, else its own."""
    return next((part for part in path.parts[:-1] if folder_split(part, wanted)), stem_of(path))


def check_counters(folder: Path, layout: Layout) -> None:
    """Raise InputError where names say how many files a split has, and some are missing."""
    for split, paths in layout.splits.items():
        counted = [
            (path, match) for path in paths if (match := re.search(r"(\d+)[-_. ]?of[-_. ]?(\d+)", stem_of(path)))
        ]
        for path, match in counted:
            there = {each[1] for _, each in counted if each[2] == match[2]}
            if len(there) < int(match[2]):
                raise InputError(
                    f"data.name: of the {int(match[2])} files of '{split}' that {path.name} tells of, {folder} has "
                    f"{len(there)}: bring the others"
                )
