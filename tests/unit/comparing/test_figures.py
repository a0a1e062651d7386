"""The figures of a comparison, as files."""

import re
from pathlib import Path

from finished_runs import run_of

from hellora.comparing.figures import COLOURS, MARGIN, curves, dots, draw, panels, style_of
from hellora.comparing.runs import Cell
from hellora.comparing.statistics import rows_of

CSS = Path(__file__).parents[3] / "hellora" / "reporting" / "page.css"


def test_every_figure_is_drawn_in_both_formats_with_a_colour_a_method(tmp_path: Path) -> None:
    """The first method has not ended, and keeps its colour; names are shown as they are; one seed has no interval."""
    runs = {
        Cell(f"alpha-{alpha}", method, seed): run_of([0.3, None, 0.5 + 0.1 * seed * (method == "$a_b")])
        for alpha in (1, 2)
        for method, seeds in {"$a_b": 2, "alone": 1}.items()
        for seed in range(seeds)
    }
    rows = rows_of(runs, target=0.55)
    methods = ["lost", "$a_b", "alone"]
    draw(rows, runs, tmp_path / "one", methods=methods, sweep={"data.alpha": [1, 2]}, target=0.55)
    draw(rows, runs, tmp_path / "again", methods=methods, sweep={}, target=None)
    names = ["cost", "curves", "results", "sweep-data.alpha"]
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        f"{n}.{k}" for n in names for k in ("pdf", "svg")
    ]
    for kind in ("pdf", "svg"):  # without a target, the curves are others
        first, again = ((tmp_path / folder / f"results.{kind}").read_bytes() for folder in ("one", "again"))
        assert first == again, "the same results make the same file"
    for name in names:
        svg, pdf = ((tmp_path / "one" / f"{name}.{kind}").read_bytes() for kind in ("svg", "pdf"))
        used = set(re.findall(r"#[0-9a-f]{6}", svg.decode())) & set(COLOURS)
        assert used == set(COLOURS[1:3])
        assert b"<text" not in svg, "letters are outlines, whatever fonts a reader has"
        assert b"<image" not in svg
        assert b"/FontFile2" in pdf
        assert b"/Subtype /Type3" not in pdf
        assert b"/Image" not in pdf.replace(b"/ImageB", b"").replace(b"/ImageC", b"").replace(b"/ImageI", b"")


def test_an_axis_of_accuracies_ends_at_1_and_rounds_are_whole() -> None:
    """Of two seeds an interval may be ten times as wide."""
    runs = {Cell("iid", "a", seed): run_of([0.2, 0.5, 0.3 + 0.6 * seed]) for seed in range(2)}
    rows, styles = rows_of(runs, target=0.25), {"a": style_of(0)}
    drawn = panels(rows, 2.0, lambda axes, mine: curves(axes, mine, runs, styles, 0.25), styles).axes[0]
    assert drawn.get_ylim() == (-MARGIN, 1 + MARGIN)
    assert all(place == int(place) for place in drawn.get_xticks())
    assert panels(rows, 2.0, lambda axes, mine: dots(axes, mine, styles)).axes[0].get_xlim() == (-MARGIN, 1 + MARGIN)


def test_the_colours_are_those_of_the_report() -> None:
    light = CSS.read_text().partition("@media")[0]
    assert tuple(re.findall(r"--colour-\d: (#[0-9a-f]{6})", light)) == COLOURS
