"""Sizes as people write them."""

import pytest

from hellora.core.errors import InputError
from hellora.core.units import in_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("6GiB", 6 * 2**30),
        ("500 MB", 500 * 10**6),
        ("1.5 KiB", 1536),
        (" 2kb ", 2000),
        ("1B", 1),
        ("0.5TB", 5 * 10**11),
        ("3 tib", 3 * 2**40),
        ("7mib", 7 * 2**20),
        (".5 GB", 5 * 10**8),
        ("2GB", 2 * 10**9),
        ("8kib", 8192),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text, "here") == count


@pytest.mark.parametrize("text", ["6", "1000000", "2.5"])
def test_a_size_needs_a_unit(text: str) -> None:
    with pytest.raises(InputError, match=r"fleet\.memory: .* has no unit: write a number and KiB"):
        parse_bytes(text, "fleet.memory")


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1 GiB", "1.2.3 MB", "5 Gb/s", "6 parsecs", "0 GiB", "0.1 B", "nan GB", ". B"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match=r"fleet\.memory: .* is no size"):
        parse_bytes(text, "fleet.memory")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (2**40, "1024.0 GiB")],
)
def test_in_words(count: int, text: str) -> None:
    assert in_bytes(count) == text
