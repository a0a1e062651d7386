"""What the reference of the Python API adds to docstrings: the fields of a dataclass, each with the comment that stands
beside it in the code."""

import linecache
import re
from typing import Any

import griffe

COMMENT = re.compile(r"  # (?P<text>.*)$")


class FieldComments(griffe.Extension):
    """`lr: float = 1e-3  # per step` is described as if the docstring had a section "Attributes" that said so."""

    def on_class(self, *, cls: griffe.Class, loader: griffe.GriffeLoader, **_: Any) -> None:
        text = cls.docstring.value if cls.docstring else ""
        comments = {field.name: comment_beside(field) for field in cls.members.values() if is_field(field)}
        if "dataclass" in cls.labels and any(comments.values()) and "Attributes:" not in text:
            lines = ["Attributes:", *(f"    {name}: {comment}" for name, comment in comments.items() if comment)]
            parser = {"parser": loader.docstring_parser, "parser_options": loader.docstring_options}
            cls.docstring = griffe.Docstring("\n".join([text, "", *lines]), parent=cls, **parser)


def is_field(member: griffe.Object | griffe.Alias) -> bool:
    is_value = isinstance(member, griffe.Attribute) and "property" not in member.labels
    return is_value and member.annotation is not None and "ClassVar" not in str(member.annotation)


def comment_beside(field: griffe.Attribute) -> str:
    line = linecache.getline(str(field.filepath), field.endlineno or 0)
    found = COMMENT.search(line.rstrip())
    return found["text"] if found else ""
