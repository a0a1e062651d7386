"""Questions and answers need no download: they are asked of what Python's standard library says of itself, by topic.

    What does `os.path.join` do in Python?  →  Join two or more pathname components, inserting '/' as needed.

An answer is the first paragraph of the docstring of a public module, class or function; its label is the topic of its
module, as in `stdlib_docs`. It depends on nothing but the version of Python.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hellora.core.errors import InputError
from hellora.data.stdlib_docs import MIN_WORDS, TOPICS, Documented, first_paragraph, parsed, split_of

MAX_WORDS = 60
# Modules by the name that people know; of all others, one whose name begins with _ is private.
KNOWN_AS = {
    "posixpath": "os.path",
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
}
LEFT_OUT = frozenset(
    {"idlelib", "encodings", "ntpath", "genericpath", "nturl2path", "pydoc"}
)  # programs, tables, twins
ROLE = re.compile(r":(?:\w+:)+`([^`]*)`")  # as in :func:`open`
SIGNATURE = re.compile(r"[\w.]+\s*\(|.*->|.*>>>")
FORMS = {
    ast.Module: "What is the Python module `{}` for?",
    ast.ClassDef: "What is `{}` in Python?",
    ast.FunctionDef: "What does `{}` do in Python?",
    ast.AsyncFunctionDef: "What does `{}` do in Python?",
}


@cache
def load() -> DatasetDict:
    """Load the splits train, proxy and test (80, 5, 15 %), each with instruction, response, label (a topic) and module
    (top-level). An answer is in one split only."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "proxy": [], "test": []}
    stdlib = Path(sysconfig.get_path("stdlib"))
    for key, example in _distinct(stdlib).items():
        splits[split_of(key)].append(example)
    if not all(splits.values()):
        raise InputError(f"data.name: {stdlib} has no Python sources to make stdlib_questions of: name other data")
    texts = {name: Value("string") for name in ("instruction", "response", "module")}
    features = Features({**texts, "label": ClassLabel(names=list(TOPICS))})
    return DatasetDict(
        {
            name: Dataset.from_dict({column: [row[column] for row in rows] for column in features}, features=features)
            for name, rows in splits.items()
        }
    )


def _distinct(stdlib: Path) -> dict[str, dict[str, Any]]:
    """Collect one example per distinct question and distinct answer, by the answer in one case: the first one."""
    found: dict[str, dict[str, Any]] = {}
    asked = set()
    for topic, modules in TOPICS.items():
        for module in sorted(modules.split()):
            for question, answer in _pairs(stdlib, module):
                if question not in asked and answer.casefold() not in found:
                    asked.add(question)
                    row = {"instruction": question, "response": answer, "label": topic, "module": module}
                    found[answer.casefold()] = row
    return found


def _pairs(stdlib: Path, module: str) -> Iterator[tuple[str, str]]:
    """Yield question and answer for all that is public in a module, or in all files of a package."""
    if module in LEFT_OUT:
        return
    for path, tree in parsed(stdlib, module):
        first, *others = path.with_suffix("").parts
        parts = [KNOWN_AS.get(first, first), *(part for part in others if part != "__init__")]
        if any(part.startswith("_") for part in parts):
            continue
        for name, node in [(".".join(parts), tree), *_public(tree, ".".join(parts))]:
            if answer := _answer(first_paragraph(node)):
                yield FORMS[type(node)].format(name), answer


def _public(node: ast.AST, name: str) -> Iterator[tuple[str, Documented]]:
    """Yield the public classes, functions and methods inside a module or class, by name; inside functions there are
    none."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_"):
                continue
            yield f"{name}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from _public(child, f"{name}.{child.name}")
        else:  # such as `if sys.platform == …:`
            yield from _public(child, name)


def _answer(paragraph: str) -> str:
    """Return a paragraph as one line of plain text that ends; "" where it is no answer: a signature, code, the lead of
    a list that follows, too short or too long."""
    text = " ".join(ROLE.sub(r"`\1`", paragraph).replace("``", "`").split())
    words = len(text.split())
    if not MIN_WORDS <= words <= MAX_WORDS or text[-1] in ":," or SIGNATURE.match(text):
        return ""
    return text if text[-1] in ".!?" else f"{text}."
