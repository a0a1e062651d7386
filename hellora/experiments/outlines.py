"""Read what a class of settings says of itself from its source, without importing it.

So that a list of names, or the answer to a wrong name or key, need not wait for torch. The sources are hellora's own.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any


@dataclass(frozen=True)
class Outline:
    """The outline of a dataclass that inherits no fields."""

    summary: str  # the first line of its docstring
    defaults: Mapping[str, Any]  # of its fields, in order; None where a field has none, or one that is no literal


@cache
def outline(module: str, name: str = "", base: str = "") -> Outline:
    """Outline the class of a name, or the one of a base, or of a kind of it such as TextTask of Task, in a module."""
    classes = [each for each in ast.parse(source(module)).body if isinstance(each, ast.ClassDef)]
    (found,) = [each for each in classes if each.name == name or is_of(base, each)]
    fields = [each for each in found.body if isinstance(each, ast.AnnAssign) and not is_class_variable(each)]
    return Outline(
        summary=(ast.get_docstring(found) or "").partition("\n")[0],
        defaults={each.target.id: literal(each.value) for each in fields if isinstance(each.target, ast.Name)},
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


def literal(value: ast.expr | None) -> Any:
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None
