"""The page on threats: each row has a result, what stops it, and a test that there is."""

import ast
import re

import pytest
from pages import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\| .*\|$", PAGE, re.MULTILINE)
]
THREATS = [row for row in ROWS if row[0] != "who"]


def test_the_tables_say_who_does_what() -> None:
    assert ["who", "what", "result", "what stops it", "test"] in ROWS
    assert all(len(row) == 5 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", THREATS, ids=lambda row: f"{row[0]}: {row[1]}"[:60])
def test_a_threat_has_a_test(row: list[str]) -> None:
    named = re.findall(r"`([\w/.]+)::(\w+)`", row[-1])
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
