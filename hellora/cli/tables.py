"""Predictions, and how well classes are recognised, as tables that fit a terminal. Files have all of it, unrounded."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hellora.core.per_class import confused_pairs
from hellora.runs.answering import broken
from hellora.runs.terminal import printable

MOST_ROWS = 50  # predictions that are shown
TOP = 3  # likeliest classes of each
LINES = 3  # of an answer
TEXT = 24  # columns that a text has at least
SMALLEST = 8  # columns that a class or a number has at least; what has not is left out
GAP = 2  # columns between others
MOST_CLASSES = 20  # whose scores are shown
CELL = 6  # columns that a count of a matrix has at least, with the gap before it
NAME = 20  # columns that a class's name has at most beside a matrix
MOST_PAIRS = 10  # confused pairs that are shown

Row = Mapping[str, Any]  # a prediction, as files have it


def predictions_table(console: Console, predictions: Sequence[Row], texts: Sequence[str]) -> Table:
    """Make a table of the first predictions; `texts` are what was given, cut to what room there is."""
    shown = predictions[:MOST_ROWS]
    if "answer" in shown[0]:
        return answers_table(console, shown)
    plain = [printable(text) for text in texts[: len(shown)]]
    numbers = [str(row["row"]) for row in shown]
    first = longest(["row", *numbers])
    most = max(1, (console.width - first - GAP - TEXT) // (SMALLEST + GAP))
    cells = [[printable(cell) for cell in cells_of(row)][:most] for row in shown]
    headings = headings_of(shown[0], len(cells[0]))
    share = (console.width - first - GAP - TEXT) // len(headings) - GAP
    columns = [[heading, *each] for heading, each in zip(headings, zip(*cells, strict=True), strict=True)]
    widths = [min(max(map(cell_len, each)), max(1, share)) for each in columns]
    room = console.width - first - GAP - sum(GAP + width for width in widths)
    table = bare_table()
    table.add_column("row", justify="right", no_wrap=True)
    given = "file" if "file" in shown[0] else "text"
    table.add_column(given, width=min(room, longest([given, *plain])), no_wrap=True, overflow="ellipsis")
    for heading, width in zip(headings, widths, strict=True):
        table.add_column(heading, width=width, no_wrap=True, overflow="ellipsis")
    for number, text, row in zip(numbers, plain, cells, strict=True):
        table.add_row(number, Text(text), *map(Text, row))
    return table


def answers_table(console: Console, shown: Sequence[Row]) -> Table:
    """Make a table of prompts and answers, each in up to LINES lines."""
    room = console.width - longest(["row", str(shown[-1]["row"])]) - 2 * GAP
    prompt = min(longest([printable(row["prompt"]) for row in shown]), room // 2)
    table = bare_table()
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("prompt", width=max(len("prompt"), prompt), no_wrap=True)
    table.add_column("answer", width=room - max(len("prompt"), prompt), no_wrap=True)
    for row in shown:
        both = ((row["prompt"], prompt), (row["answer"], room - prompt))
        table.add_row(str(row["row"]), *(Text("\n".join(broken(console, text, LINES, width))) for text, width in both))
    return table


def cells_of(row: Row) -> list[str]:
    """Return what is shown of a prediction: its likeliest classes, its numbers, its entities or tags."""
    if "probabilities" in row:
        likeliest = sorted(row["probabilities"].items(), key=lambda each: -each[1])[:TOP]
        said = row.get("labels")
        classes = [f"{p:.2f} {name}" for name, p in likeliest]
        return classes if said is None else [listed(said), *classes]
    if "entities" in row:
        return [listed([f"{each['label']} {each['text']}".strip() for each in row["entities"]])]
    if "tags" in row:
        return [" ".join(tag or "–" for tag in row["tags"])]
    return [f"{value:.4g}" for name, value in row.items() if name not in ("row", "file")]


def headings_of(row: Row, count: int) -> list[str]:
    """Return the headings of as many cells of a prediction."""
    if "probabilities" in row:
        found = [*(["labels"] if "labels" in row else []), "likeliest", "2nd", "3rd"]
    elif "tags" in row:
        found = ["entities" if "entities" in row else "tags"]
    else:
        found = [printable(name) for name in row if name not in ("row", "file")]
    return found[:count]


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "–"


def scores_table(per_class: Mapping[str, Mapping[str, float]]) -> Table:
    """Make a table of how well each class is recognised; of many classes, those of the lowest F1."""
    table = Table("class")
    for heading in ("precision", "recall", "F1", "examples"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = list(per_class.items())
    if len(shown) > MOST_CLASSES:
        shown = sorted(shown, key=lambda each: each[1]["f1"])[:MOST_CLASSES]
    for name, scores in shown:
        numbers = [f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(Text(printable(name), overflow="fold"), *numbers, str(scores["examples"]))
    return table


def confusion_table(found: Mapping[str, Any], width: int) -> Table | None:
    """Make a table of what is taken for what: a matrix where it fits, else the pairs that are confused most; None where
    there is nothing to tell."""
    if "confusion" in found:
        names = [printable(name) for name in found["confusion"]["labels"]]
        beside = min(NAME, max(longest(names), len("class")))
        if (cell := (width - beside) // len(names)) >= CELL:
            return matrix_table(names, found["confusion"]["counts"], beside, cell - GAP)
    pairs = confused_pairs(found)[:MOST_PAIRS]
    if not pairs:
        return None
    table = Table("class", "taken for", title="what is taken for what most often", title_justify="left")
    table.add_column("examples", justify="right", no_wrap=True)
    table.add_column("of the class", justify="right", no_wrap=True)
    for name, other, count in pairs:
        share = f"{count / found['per_class'][name]['examples']:.0%}"
        table.add_row(*(Text(printable(each), overflow="fold") for each in (name, other)), str(count), share)
    return table


def matrix_table(names: Sequence[str], counts: Sequence[Sequence[int]], beside: int, most: int) -> Table:
    """Make a table of how many examples of each class (rows) are taken for each; `most` columns have room for each."""
    table = bare_table(title="how many of each class (a row) are taken for which (a column)", title_justify="left")
    table.add_column("class", width=beside, no_wrap=True, overflow="ellipsis")
    for place, name in enumerate(names):
        needed = max(cell_len(name), *(len(str(row[place])) for row in counts))
        table.add_column(Text(name), width=min(most, needed), justify="right", no_wrap=True, overflow="ellipsis")
    for name, row in zip(names, counts, strict=True):
        table.add_row(Text(name), *(str(count) if count else "·" for count in row))
    return table


def bare_table(**more: Any) -> Table:
    """Make a table without lines between its columns."""
    return Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, **more)


def longest(texts: Sequence[str]) -> int:
    """Return the columns of the longest text, at least one."""
    return max(1, *map(cell_len, texts))
