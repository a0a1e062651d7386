"""The house: how large its parts are, which rooms it has and what they import, and that every page says so."""

import ast
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from pages import ROOT

PACKAGE = ROOT / "hellora"
IN_THE_ROOT = {"__init__.py", "__main__.py", "py.typed"}
DATA: set[str] = set()  # files that are generated, or hold data, and may be of any length
MOST_LINES, MOST_ROOMS = 300, 22
LONG, MOST_LONG = 40, 5  # lines of a function; functions that are longer
ROOMS = [path.name for path in sorted(PACKAGE.iterdir()) if (path / "__init__.py").is_file()]
CONTRIBUTING, README = (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / "README.md").read_text()
every_room = pytest.mark.parametrize("room", ROOMS)


def order() -> list[str]:
    """The rooms that there are as pyproject.toml has them, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "rooms"]
    names = [layer.strip("()") for layer in layers]
    assert {layer for layer in layers if not layer.startswith("(")} <= set(ROOMS) <= set(names)
    return [name for name in names if name in ROOMS]


def said_of(room: str) -> tuple[str, str]:
    """What its docstring says is inside, and what it imports."""
    words = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    found = re.search(r"It imports (.*?)\.$", " ".join(words.split()))
    assert found, f"the docstring of {room} does not end with what it imports"
    return words.splitlines()[0], found[1]


def imported_by(room: str, graph: grimp.ImportGraph) -> set[str]:
    """The other rooms that its modules import."""
    modules = {f"hellora.{room}"} | graph.find_descendants(f"hellora.{room}")
    found = {name for module in modules for name in graph.find_modules_directly_imported_by(module)}
    assert "hellora" not in found, f"{room} imports the root"
    return {name.split(".")[1] for name in found} - {room}


def long_functions(path: Path) -> Iterator[str]:
    """The functions of a module that have more than LONG lines, decorators left out, by their full names."""
    inside = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    def walk(node: ast.AST, name: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            here = f"{name}.{child.name}" if named else name
            if named and not isinstance(child, ast.ClassDef) and child.end_lineno - child.lineno + 1 > LONG:
                yield here
            yield from walk(child, here)

    return walk(ast.parse(path.read_text()), inside)


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("hellora", cache_dir=None)  # with what is imported for types only


def test_a_file_is_read_in_one_sitting() -> None:
    files = [path for suffix in ("py", "js") for path in PACKAGE.rglob(f"*.{suffix}")]
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > MOST_LINES and name not in DATA} == {}


def test_the_few_long_functions_are_named_with_their_reasons() -> None:
    found = [name for path in sorted(PACKAGE.rglob("*.py")) for name in long_functions(path)]
    (section,) = re.findall(r"^## Functions above 40 lines\n(.*?)^## ", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(hellora\.[\w.]+)`", section)) == set(found)
    assert len(found) <= MOST_LONG


def test_nothing_lies_beside_the_rooms() -> None:
    assert {path.name for path in PACKAGE.iterdir()} - {"__pycache__", *ROOMS} == IN_THE_ROOT
    assert len(ROOMS) <= MOST_ROOMS


def test_no_module_imports_itself_by_way_of_others(graph: grimp.ImportGraph) -> None:
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in graph.modules}).prepare()


@every_room
def test_a_room_says_what_it_imports(room: str, graph: grimp.ImportGraph) -> None:
    below = set(order()[order().index(room) + 1 :])
    _, words = said_of(room)
    if words == "every room below":
        assert imported_by(room, graph) <= below
    else:
        assert set(re.findall(r"\w+", words)) & set(ROOMS) == imported_by(room, graph) <= below


def test_the_pages_have_the_rooms_in_their_order_with_what_they_say_of_themselves() -> None:
    rows = [(room, *said_of(room)) for room in order()]
    table = CONTRIBUTING.partition("| room | ")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (\w+) \| (.+) \| (.+) \|$", table, re.MULTILINE) == rows
    (tree,) = re.findall(r"^hellora/\n((?:  \w+/ +.+\n)+)", README, re.MULTILINE)
    assert re.findall(r"^  (\w+)/ +(.+)$", tree, re.MULTILINE) == [(room, inside) for room, inside, _ in reversed(rows)]
