"""The results as LaTeX, for \\input into a table of a paper: methods × settings, and what it cost to reach a target.

It needs the packages booktabs and, where a method or setting has letters beyond ASCII, an engine that reads UTF-8.
"""

from collections.abc import Mapping, Sequence

from hellora.comparing.statistics import CLIENTS_OWN, Interval, Row
from hellora.comparing.table import value_text
from hellora.comparing.target import COSTS
from hellora.core.metrics import in_words

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SPECIAL |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
SYMBOLS = {"±": r"$\pm$", "≥": r"$\geq$", "–": "--", "×": r"$\times$", "≈": r"$\approx$", "†": r"$\dagger$"}


def as_latex(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Write a tabular of the main metrics and, where a target was asked for, one of its costs, below each other.

    The best of a setting is bold; what is not distinguishable from it is underlined. The notes are comments.
    """
    if not rows:
        return "% no run has ended yet\n"
    marks = ["\\usepackage{booktabs}", "bold: the best of its setting"]
    notes = [note.replace("≈ not", "underlined: not", 1) for note in notes]
    tabulars = [results(rows)]
    if any("rounds_to_target" in row.values for row in rows):
        tabulars.append(costs(rows))
    return "".join(f"% {' '.join(line.split())}\n" for line in (*marks, *notes)) + "\n\n".join(tabulars) + "\n"


def results(rows: Sequence[Row]) -> str:
    """Write the main metric of each method in each setting, which has a column for each metric of its methods."""
    columns = list(dict.fromkeys((row.setting, row.metric, row.evaluated_on) for row in rows))
    found = {(row.method, row.measured): row for row in rows}
    several = len({metric for _, metric, _ in columns}) > 1 or len({setting for setting, *_ in columns}) < len(columns)
    heads = [
        f"{setting} ({in_words(metric)})"[: None if several else len(setting)] + "†" * (evaluated_on == CLIENTS_OWN)
        for setting, metric, evaluated_on in columns
    ]
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        of_method = [found.get((method, column)) for column in columns]
        lines.append([escaped(method), *("--" if row is None else marked(row) for row in of_method)])
    return tabular(["method", *map(escaped, heads)], {"": lines})


def marked(row: Row) -> str:
    """Write the main metric of a row with its marks."""
    text, star = as_math(row.values[row.metric], row.metric), "^{*}" * (row.above_reference is False)
    if row.best:
        return f"$\\mathbf{{{text}}}{star}$"
    return f"$\\underline{{{text}}}{star}$" if row.like_best else f"${text}{star}$"


def as_math(found: Interval, name: str) -> str:
    return value_text(name, found).replace(" ± ", r" \pm ")


def costs(rows: Sequence[Row]) -> str:
    """Write what it cost each method to reach the target, a group of lines for each setting."""
    shown = [name for name in COSTS if any(name in row.values for row in rows)]
    groups: dict[str, list[list[str]]] = {}
    for row in rows:
        spent = [escaped(value_text(name, row.values[name])) if name in row.values else "--" for name in shown]
        groups.setdefault(row.setting, []).append([escaped(row.method), *spent])
    return tabular(["method", *(COSTS[name] for name in shown)], groups)


def tabular(heads: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]]) -> str:
    """Write lines in groups, each under its name unless there is but one."""
    text = [f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "\\toprule", f"{' & '.join(heads)} \\\\"]
    for name, lines in groups.items():
        text.append("\\midrule")
        if len(groups) > 1:
            text.append(f"\\multicolumn{{{len(heads)}}}{{l}}{{\\emph{{{escaped(name)}}}}} \\\\")
        text += [f"{' & '.join(line)} \\\\" for line in lines]
    return "\n".join([*text, "\\bottomrule", "\\end{tabular}"])


def escaped(text: str) -> str:
    """Write text so that LaTeX shows it as it is."""
    return "".join(SPECIAL.get(letter, SYMBOLS.get(letter, letter)) for letter in text)
