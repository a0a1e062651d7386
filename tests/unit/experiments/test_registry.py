"""From a name to a class."""

import inspect
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from hellora.core.errors import InputError
from hellora.experiments.registry import FOLDERS, find, named, names, nearest, settings_of, summary
from hellora.experiments.sections import SECTIONS, TOP, defaults_of

EVERY = [(kind, name) for kind in FOLDERS for name in names(kind)]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_file_is_a_name_with_a_summary(kind: str, name: str) -> None:
    found = find(kind, name)
    assert issubclass(found, named(FOLDERS[kind][1]))
    assert not inspect.isabstract(found)
    assert found.__module__ == f"{FOLDERS[kind][0]}.{name}"
    line = summary(kind, name)
    assert line.strip() == line
    assert 10 < len(line) <= 110
    assert line == (inspect.getdoc(found) or "").partition("\n")[0], "a dataclass without a docstring"
    assert settings_of(kind, name) == [field.name for field in fields(found)]


@pytest.mark.parametrize("place", [TOP, *SECTIONS.values()])
def test_a_section_is_outlined_as_it_is(place: str) -> None:
    """With the defaults that are literals; of one that is none the outline has none."""
    known = {field.name: None if field.default is MISSING else field.default for field in fields(named(place))}
    found = defaults_of(place)
    assert list(found) == list(known)
    assert all(default in (None, known[name]) for name, default in found.items())


def test_the_names_are_the_files() -> None:
    package = Path(inspect.getfile(find("allocator", "geometric"))).parent
    assert names("allocator") == sorted(p.stem for p in package.glob("*.py") if p.stem != "__init__")
    assert {"fed_hello", "geometric", "everything"} <= set(names("allocator"))
    assert all(names(kind) for kind in FOLDERS)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"^method.allocator: there is no allocator 'fedhello': did you mean 'fed_hello'\?$"
    ):
        find("allocator", "fedhello")
    with pytest.raises(InputError, match=r"^method.dispatcher: there is no dispatcher 'zzz': choose among .*whole"):
        find("dispatcher", "zzz")
    assert nearest("geometrik", ["everything", "geometric"]) == ": did you mean 'geometric'?"
    assert nearest("q", ["b", "a"]) == ": choose among b, a"


def test_a_kind_has_its_own_names() -> None:
    with pytest.raises(InputError, match="there is no aggregator 'fed_hello'"):
        find("aggregator", "fed_hello")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_own_strategies.py").write_text(
        '''
from hellora.methods.allocators.everything import Everything

class Mine(Everything):
    """Everyone, for our paper."""

def a_function(): ...
a_value = 3
'''
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_own_strategies", raising=False)
    return "my_own_strategies"


def test_a_users_own_class(own_module: str) -> None:
    found = find("allocator", f"{own_module}:Mine")
    assert (found.__name__, found.__module__) == ("Mine", own_module)
    assert summary("allocator", f"{own_module}:Mine") == "Everyone, for our paper."


@pytest.mark.parametrize("name", ["a_function", "a_value"])
def test_what_is_no_strategy_is_refused(name: str, own_module: str) -> None:
    with pytest.raises(InputError, match=r"allocator = .* is not a complete subclass of hellora's Allocator"):
        find("allocator", f"{own_module}:{name}")


def test_a_class_of_another_kind_is_refused(own_module: str) -> None:
    with pytest.raises(InputError, match=r"aggregator = .* is not a complete subclass of hellora's Aggregator"):
        find("aggregator", f"{own_module}:Mine")


@pytest.mark.parametrize("name", ["no_such_module:Mine", "my_own_strategies:Absent"])
def test_what_cannot_be_imported_is_refused(name: str, own_module: str) -> None:
    assert own_module == "my_own_strategies"
    with pytest.raises(InputError, match=r"allocator = .* cannot be imported: "):
        find("allocator", name)
