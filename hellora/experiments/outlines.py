"""Read what a class of settings says of itself from its source, without importing it.

So that a list of names, or the answer to a wrong name or key, need not wait for torch. The sources are hellora's own.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

COMMENT = re.compile(r"  # (.*)$")
WORDS = {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}


@dataclass(frozen=True)
class Outline:
    """The outline of a dataclass that inherits no fields."""

    text: str  # its docstring
    about: str  # the first paragraph of its module's, which cites what it is of
    defaults: Mapping[str, Any]  # of its fields, in order; None where a field has none, or one that is no literal
    needed: frozenset[str]  # the fields without a default
    types: Mapping[str, str]  # in words
    meanings: Mapping[str, str]  # the comments beside them; "" where there is none

    @property
    def summary(self) -> str:
        """Return the first line of its docstring."""
        return self.text.partition("\n")[0]


@cache
def outline(module: str, name: str = "", base: str = "") -> Outline:
    """Outline the class of a name, or the one of a base, or of a kind of it such as TextTask of Task, in a module."""
    text = source(module)
    tree, lines = ast.parse(text), text.splitlines()
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    (found,) = [each for each in classes if each.name == name or is_of(base, each)]
    fields = {
        each.target.id: each
        for each in found.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not is_class_variable(each)
    }
    return Outline(
        text=ast.get_docstring(found) or "",
        about=(ast.get_docstring(tree) or "").partition("\n\n")[0],
        defaults={key: literal(module, each.value) for key, each in fields.items()},
        needed=frozenset(key for key, each in fields.items() if each.value is None),
        types={key: type_in_words(module, each.annotation) for key, each in fields.items()},
        meanings={key: comment_beside(lines[each.lineno - 1 : each.end_lineno]) for key, each in fields.items()},
    )


def modules(package: str) -> list[str]:
    """Return the names of the modules in a package of hellora, sorted."""
    found = (file.name for file in place(package).iterdir() if file.name.endswith(".py"))
    return sorted(name.removesuffix(".py") for name in found if name != "__init__.py")


def source(module: str) -> str:
    folder, _, name = module.rpartition(".")
    return place(folder).joinpath(f"{name}.py").read_text(encoding="utf-8")


def place(package: str) -> Traversable:
    """Return the folder of a package of hellora; to ask for it by its name would import what is above it."""
    folder, *below = package.split(".")
    return files(folder).joinpath(*below)


def names_of(values: list[ast.expr]) -> list[str]:
    return [value.id for value in values if isinstance(value, ast.Name)]


def is_of(base: str, found: ast.ClassDef) -> bool:
    return bool(base) and any(name.endswith(base) for name in names_of(found.bases))


def is_class_variable(field: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(field.annotation)


def comment_beside(lines: list[str]) -> str:
    """Return the comment beside a field, which may be written over several lines."""
    found = [match[1] for line in lines if (match := COMMENT.search(line))]
    return found[-1] if found else ""


def type_in_words(module: str, kind: ast.expr) -> str:
    """Say what a field of a module takes: "whole number", "list of text", or what to choose among."""
    match kind:
        case ast.BinOp(left=left, right=right):
            parts = [type_in_words(module, each) for each in (left, right) if not is_none(each)]
            return ", or ".join(parts)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=among):
            values = among.elts if isinstance(among, ast.Tuple) else [among]
            return f"one of {', '.join(str(ast.literal_eval(value)) for value in values)}"
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=[each, *_])):
            return f"list of {type_in_words(module, each)}"
        case ast.Name(id=name) if name not in WORDS and (meant := assigned(module, name)) is not None:
            return type_in_words(*meant)
    return WORDS.get(ast.unparse(kind), ast.unparse(kind))


def assigned(module: str, name: str) -> tuple[str, ast.expr] | None:
    """Find the module of hellora that gives a name its value, and the value; follow imports to there."""
    for each in ast.parse(source(module)).body:
        match each:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return module, value
            case ast.ImportFrom(module=str(other), names=imported) if other.startswith("hellora."):
                if name in [alias.name for alias in imported] and is_module(other):
                    return assigned(other, name)
    return None


def is_module(name: str) -> bool:
    folder, _, file = name.rpartition(".")
    return place(folder).joinpath(f"{file}.py").is_file()


def is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def literal(module: str, value: ast.expr | None) -> Any:
    """Return a value that is written out in a module, or there has the name of one; None for any other."""
    if isinstance(value, ast.Name) and (meant := assigned(module, value.id)) is not None:
        return literal(*meant)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
