"""The table of a comparison is shown on the screen, as Markdown, CSV and JSON, with what a reader has to know of it."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

from rich.table import Table
from rich.text import Text

from hellora.comparing.statistics import CLIENTS_OWN, HEAD_ALONE, REFERENCE, Row
from hellora.core.metrics import in_words
from hellora.core.units import in_bytes


def headings(rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns of one setting's rows, with their headings."""
    shown = {name: in_words(name) for row in rows for name in (row.metric, *row.asked, "worst_client")}
    shown |= {"spread": "best − worst"}
    shown |= group_headings(list(dict.fromkeys(n for row in rows for n in row.values if n.startswith("group "))))
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
    found = row.values[name]
    if name in ("peak_bytes", "uplink_bytes", "downlink_bytes"):
        return in_bytes(round(found.mean))
    if name in ("seconds", "rounds"):
        return f"{found.mean:.0f}" if name == "seconds" else f"{found.mean:g}"
    text = f"{found.mean:.3f}" + (f" ± {found.half:.3f}" if found.half is not None else "")
    if name == row.metric:
        text += "*" * (row.above_reference is False) + "†" * (row.evaluated_on == CLIENTS_OWN)
    return text


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
    if any(row.above_reference is False for row in rows):
        lines.append(
            f"* not above {REFERENCE}: the 95 % interval of the paired difference over seeds includes 0 or is below it."
        )
    if any(row.evaluated_on == CLIENTS_OWN for row in rows):
        lines.append(f"† of clients with models of their own, on {CLIENTS_OWN}: not comparable with the test split.")
    return [*lines, *notes]


def on_screen(rows: Sequence[Row]) -> list[Table]:
    """Make a table per setting, the best mean in bold."""
    tables = []
    for setting in dict.fromkeys(row.setting for row in rows):
        mine = [row for row in rows if row.setting == setting]
        columns = headings(mine)
        table = Table("method", title=setting, title_justify="left")
        for text in columns.values():
            table.add_column(text, justify="right")
        for row in mine:
            bold = ["bold" if row.best and name == row.metric else "" for name in columns]
            cells = [Text(cell_text(row, name), style) for name, style in zip(columns, bold, strict=True)]
            table.add_row(Text(row.method), *cells)
        tables.append(table)
    return tables


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


def as_csv(rows: Sequence[Row]) -> str:
    """Write a line per setting and method: numbers unrounded, bytes as bytes, half an interval empty if it has none."""
    names = list(dict.fromkeys(name for row in rows for name in row.values))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    columns = [part for name in names for part in (name, f"{name} ±")]
    writer.writerow(["setting", "method", "n", *columns, "best", f"above {REFERENCE}", "evaluated on", "tuned"])
    for row in rows:
        numbers: list[Any] = []
        for name in names:
            found = row.values.get(name)
            numbers += [found.mean, found.half] if found else [None, None]
        tuned = ", ".join(f"{key}={value}" for key, value in row.tuned.items())
        marks = [row.best, row.above_reference, row.evaluated_on, tuned]
        writer.writerow([row.setting, row.method, len(row.seeds), *numbers, *marks])
    return file.getvalue()


def as_table(rows: Sequence[Row], notes: Sequence[str], failed: Mapping[str, str]) -> dict[str, Any]:
    """Return the whole as JSON values."""
    return {"rows": [asdict(row) for row in rows], "notes": list(notes), "failed": dict(failed)}
