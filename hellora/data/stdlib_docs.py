"""The embedded corpus needs no download: it is what the docstrings of Python's standard library say, by topic.

An example is the first paragraph of the docstring of a module, class or function; its label is the topic of its module.
The sources are parsed, never imported, so the corpus depends on nothing but the version of Python.
"""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hellora.core.errors import InputError

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

MIN_WORDS = 5
TESTS = frozenset({"test", "tests", "idle_test"})  # folders that hold tests, not the library

# Top-level modules and packages by topic, for CPython 3.11 to 3.14; one that a version lacks adds nothing.
TOPICS = {
    "archives": "tarfile zipfile gzip bz2 lzma zlib compression _compression zipapp",
    "asyncio": "asyncio",
    "classes": "typing types enum dataclasses abc _py_abc collections _collections_abc weakref _weakrefset copy "
    "copyreg functools contextlib operator heapq bisect queue graphlib reprlib pprint annotationlib",
    "code_analysis": "inspect ast _ast_unparse dis opcode symtable tokenize pyclbr tabnanny pydoc",
    "command_line": "argparse optparse getopt configparser cmd getpass shlex fileinput tomllib curses",
    "concurrency": "multiprocessing threading _threading_local concurrent subprocess sched signal",
    "dates": "datetime _pydatetime calendar _strptime zoneinfo",
    "debugging": "bdb pdb trace traceback tracemalloc profile cProfile pstats timeit cgitb code codeop rlcompleter "
    "profiling _pyrepl faulthandler",
    "email": "email mailbox smtplib imaplib poplib smtpd nntplib mailcap mimetypes quopri uu",
    "files": "pathlib os shutil tempfile glob fnmatch posixpath ntpath genericpath nturl2path stat filecmp linecache "
    "io _pyio",
    "gui": "tkinter idlelib turtle",
    "imports": "importlib pkgutil zipimport runpy modulefinder imp",
    "logging": "logging warnings _py_warnings",
    "numbers": "_pydecimal decimal fractions statistics numbers random",
    "packaging": "distutils venv ensurepip sysconfig compileall py_compile platform _osx_support _aix_support site "
    "_bootsubprocess",
    "serialization": "pickle pickletools json csv shelve dbm sqlite3 plistlib xdrlib base64 hashlib hmac secrets uuid",
    "sockets": "socket socketserver ssl ftplib telnetlib ipaddress asyncore asynchat selectors netrc",
    "testing": "unittest doctest",
    "text": "re difflib textwrap string stringprep locale gettext encodings codecs",
    "web": "http urllib wsgiref xmlrpc cgi xml html _markupbase webbrowser",
}


@cache
def load() -> DatasetDict:
    """Load the splits train, proxy and test (80, 5, 15 %), each with text, label (a topic) and module (top-level)."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "proxy": [], "test": []}
    for key, example in _distinct(Path(sysconfig.get_path("stdlib"))).items():
        splits[split_of(key)].append(example)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(TOPICS)), "module": Value("string")})
    return DatasetDict(
        {
            name: Dataset.from_dict({column: [row[column] for row in rows] for column in features}, features=features)
            for name, rows in splits.items()
        }
    )


def _distinct(stdlib: Path) -> dict[str, dict[str, Any]]:
    """Collect one example per distinct text, by the text in one case; leave out a text that occurs under two topics."""
    found: dict[str, dict[str, Any]] = {}
    ambiguous = set()
    for topic, modules in TOPICS.items():
        for module in sorted(modules.split()):
            for text in _paragraphs(stdlib, module):
                first = found.setdefault(text.casefold(), {"text": text, "label": topic, "module": module})
                if first["label"] != topic:
                    ambiguous.add(text.casefold())
    if not found:
        raise InputError(f"data.name: {stdlib} has no Python sources to make stdlib_docs of: name other data")
    return {key: example for key, example in found.items() if key not in ambiguous}


def _paragraphs(stdlib: Path, module: str) -> Iterator[str]:
    """Yield the first paragraph of every docstring of a module, or of all files of a package, whitespace normalised."""
    for _, tree in parsed(stdlib, module):
        for node in ast.walk(tree):
            if isinstance(node, Documented):
                words = first_paragraph(node).split()
                if len(words) >= MIN_WORDS:
                    yield " ".join(words)


def parsed(stdlib: Path, module: str) -> Iterator[tuple[Path, ast.Module]]:
    """Parse a module, or all files of a package but its tests; yield each with its path from `stdlib`."""
    for path in [stdlib / f"{module}.py", *sorted((stdlib / module).rglob("*.py"))]:
        place = path.relative_to(stdlib)
        if TESTS.intersection(place.parts) or not path.is_file():
            continue
        with warnings.catch_warnings():  # the library's own invalid escapes are not the user's concern
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
        yield place, tree


def first_paragraph(node: Documented) -> str:
    """Return the first paragraph of what the docstring says; "" where there is none."""
    return (ast.get_docstring(node) or "").split("\n\n")[0]


def split_of(key: str) -> str:
    """Return the split of a text, by its hash: the same on every machine."""
    percent = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % 100
    return "train" if percent < 80 else "proxy" if percent < 85 else "test"
