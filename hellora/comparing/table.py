"""The table of a comparison is shown on the screen, as Markdown, CSV and JSON, with what a reader has to know of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hellora.comparing.statistics import CLIENTS_OWN, HEAD_ALONE, REFERENCE, Interval, Row
from hellora.comparing.target import COSTS
from hellora.core.metrics import in_words
from hellora.core.units import in_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

LESS = ("rounds", "seconds", "downlink_bytes", "spread", "peak_bytes", "uplink_bytes")  # first to go from a screen
WIDEST = 10_000  # columns of a screen on which everything has room
BYTES = ("peak_bytes", "uplink_bytes", "downlink_bytes", "bytes_to_target")


def headings(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns of one setting's rows, with their headings."""
    shown = {name: in_words(name) for row in rows for name in (row.metric, *row.asked, "worst_client")}
    shown |= {"spread": "best − worst"}
    shown |= group_headings(groups_that_differ(rows))
    shown |= COSTS
    shown |= {
        "kept": "kept of iid",
        "lora_adds": "LoRA adds",
        "peak_bytes": "peak",
        "uplink_bytes": "up",
        "downlink_bytes": "down",
        "seconds": "s",
        "rounds": "rounds",
    }
    present = {name: text for name, text in shown.items() if any(name in row.values for row in rows)}
    return present | ({"tuned": "tuned"} if any(row.tuned for row in rows) else {}) | {"n": "n"}


def groups_that_differ(rows: Sequence[Row]) -> list[str]:
    """Return the columns of groups, unless all groups of each method receive the same model."""
    columns = list(dict.fromkeys(name for row in rows for name in row.values if name.startswith("group ")))
    found = [{row.values[name].mean for name in columns if name in row.values} for row in rows]
    return columns if any(len(means) > 1 for means in found) else []


def group_headings(columns: Sequence[str]) -> dict[str, str]:
    """Name the columns of several groups by what tells them apart; one group says what the main metric says."""
    names = {column: column.removeprefix("group ") for column in columns}
    parts = list(zip_longest(*(name.split(", ") for name in names.values()), fillvalue=""))  # without memory: ""
    differing = [part for part in parts if len(set(part)) > 1]
    short = [", ".join(filter(None, budget)) for budget in zip(*differing, strict=True)]
    return {column: text or names[column] for column, text in zip(columns, short, strict=False)}


def cell_text(row: Row, name: str) -> str:
    """Write a cell as it is shown, less bold type; "–" where there is no number."""
    if name == "tuned":
        return ", ".join(f"{key} {value}" for key, value in row.tuned.items()) or "–"
    if name == "n":
        return str(len(row.seeds))
    if name not in row.values:
        return "–"
    text = value_text(name, row.values[name])
    if name == row.metric:
        text += "*" * (row.above_reference is False) + "†" * (row.evaluated_on == CLIENTS_OWN)
        text = "≈ " * (row.like_best is True) + text
    return text


def value_text(name: str, found: Interval) -> str:
    """Write a number of a column as it is shown, with half its interval but for what is no result."""

    def written(value: float) -> str:
        if name in BYTES:
            return in_bytes(round(value))
        if name.startswith("seconds"):
            return f"{value:.0f}"
        return f"{value:.3g}" if name.startswith("rounds") else f"{value:.3f}"

    no_result = name in ("peak_bytes", "uplink_bytes", "downlink_bytes", "seconds", "rounds")
    half = None if no_result else found.half
    text = written(found.mean) + ("" if half is None else f" ± {written(half)}")
    return f"≥ {text} ({found.n - found.never} of {found.n})" if found.never else text


def footnotes(rows: Sequence[Row], notes: Iterable[str] = ()) -> list[str]:
    """Write what a reader has to know, one sentence a line."""
    lines = ["mean ± half the 95 % interval (Student's t) over n seeds; of one seed there is no interval."]
    if any("worst_client" in row.values for row in rows):
        lines.append(
            "worst client: the lowest accuracy of any client, each by its own mix of classes; "
            "by layers or rank: of the model that a client of that budget receives."
        )
    if any("lora_adds" in row.values for row in rows):
        lines.append(
            f"LoRA adds: to the head alone on the frozen network, as this method solved it or, where it did not, as "
            f"{HEAD_ALONE} did; paired by seed."
        )
    if any(row.like_best for row in rows):
        lines.append(
            "≈ not distinguishable from the best: the 95 % interval of the paired difference over seeds includes 0; "
            "each pair for itself, however many are compared."
        )
    if any("rounds_to_target" in row.values for row in rows):
        lines.append(
            "to target: until the first evaluated round at the target or better; bytes are up and down, seconds those "
            "of simulated devices. ≥ (k of n): k of n seeds reached it; the others count with all that they spent, so "
            "the mean is at least that, and has no interval."
        )
    if any(row.above_reference is False for row in rows):
        lines.append(
            f"* not above {REFERENCE}: the 95 % interval of the paired difference over seeds includes 0 or is below it."
        )
    if any(row.evaluated_on == CLIENTS_OWN for row in rows):
        lines.append(f"† of clients with models of their own, on {CLIENTS_OWN}: not comparable with the test split.")
    return [*lines, *notes]


def on_screen(rows: Sequence[Row], console: Console) -> list[Table]:
    """Make a table per setting, the best mean in bold. Columns for which a terminal has no room are named below it."""
    tables = []
    for setting in dict.fromkeys(row.setting for row in rows):
        mine = [row for row in rows if row.setting == setting]
        columns, wide = headings(mine), console.options.update(width=WIDEST)
        metrics = {row.metric for row in mine}
        others = [name for name in reversed(columns) if name not in COSTS]
        leave = [name for name in (*LESS, *others, *reversed(COSTS)) if name in columns and name not in metrics]
        left_out: list[str] = []
        while leave and Measurement.get(console, wide, screen_table(mine, columns, [])).maximum > console.width:
            if (name := leave.pop(0)) in columns:
                left_out.append(columns.pop(name))
        tables.append(screen_table(mine, columns, left_out))
    return tables


def screen_table(rows: Sequence[Row], columns: Mapping[str, str], left_out: Sequence[str]) -> Table:
    """Make the table of a setting with these columns."""
    table = Table(title=rows[0].setting, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.caption = Text(f"no room for: {', '.join(left_out)}") if left_out else None
    table.add_column("method", overflow="fold")
    for text in columns.values():
        table.add_column(text, justify="right", overflow="fold")
    for row in rows:
        bold = ["bold" if row.best and name == row.metric else "" for name in columns]
        cells = [Text(cell_text(row, name), style) for name, style in zip(columns, bold, strict=True)]
        table.add_row(Text(row.method), *cells)
    return table


def as_markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Write a table per setting, the best mean in bold, and the footnotes."""
    text = ""
    for setting in dict.fromkeys(row.setting for row in rows):
        mine = [row for row in rows if row.setting == setting]
        columns = headings(mine)
        text += f"## {setting}\n\n| method | {' | '.join(columns.values())} |\n|---|{'---|' * len(columns)}\n"
        for row in mine:
            cells = [cell_text(row, name).replace("*", "\\*") for name in columns]
            if row.best:
                cells[0] = f"**{cells[0]}**"
            text += f"| {' | '.join([row.method, *cells])} |\n"
        text += "\n"
    return text + "".join(f"- {note}\n" for note in notes).replace("- *", "- \\*")


def frame(rows: Sequence[Row]) -> "DataFrame":
    """Return a line per setting and method: numbers unrounded, bytes as bytes, half an interval empty if it has none.

    The cost of a target is empty where not all seeds reached it; `reached` says how many did.
    """
    from pandas import DataFrame  # its import takes longer than a wrong name may take to be told

    names = list(dict.fromkeys(name for row in rows for name in row.values))
    marks = ["best", "like best", f"above {REFERENCE}", "evaluated on", "tuned"]
    reached = ["reached"] if "rounds_to_target" in names else []
    columns = ["setting", "method", "n", *(part for name in names for part in (name, f"{name} ±")), *reached, *marks]
    lines: list[list[Any]] = []
    for row in rows:
        numbers: list[float | None] = []
        for name in names:
            found = row.values.get(name)
            numbers += [None if found is None or found.never else found.mean, found.half if found else None]
        came = [len(row.seeds) - row.values["rounds_to_target"].never] if reached else []
        tuned = ", ".join(f"{key}={value}" for key, value in row.tuned.items())
        said = [row.best, row.like_best, row.above_reference, row.evaluated_on, tuned]
        lines.append([row.setting, row.method, len(row.seeds), *numbers, *came, *said])
    return DataFrame(lines, columns=columns)


def as_csv(rows: Sequence[Row]) -> str:
    """Write what `frame` returns."""
    return str(frame(rows).to_csv(index=False, lineterminator="\n"))


def as_table(rows: Sequence[Row], notes: Sequence[str], failed: Mapping[str, str]) -> dict[str, Any]:
    """Return the whole as JSON values."""
    return {"rows": [asdict(row) for row in rows], "notes": list(notes), "failed": dict(failed)}
