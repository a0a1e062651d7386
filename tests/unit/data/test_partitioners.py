"""What every partitioner promises (disjoint, covering, none empty, a function of the seed) and each one's own rule."""

import importlib
from contextlib import suppress

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hellora.core.errors import InputError
from hellora.data.partitioners.classes_per_client import ClassesPerClient, shares
from hellora.data.partitioners.column import Column
from hellora.data.partitioners.dirichlet import Dirichlet
from hellora.data.partitioners.iid import Iid
from hellora.data.partitioning import Indices, Partitioner, class_of_row, client_rows


def corpus(rows: int, classes: int) -> Dataset:
    """Rows of ever rarer classes; every class occurs."""
    label = [min(row % classes, (row // classes) % classes) if row >= classes else row for row in range(rows)]
    return Dataset.from_dict({"label": label, "author": [f"author {row % 7}" for row in range(rows)]})


def same(a: list[Indices], b: list[Indices]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


PARTITIONERS = [
    pytest.param(Iid(), 9, id="iid"),
    pytest.param(Dirichlet(alpha=0.5), 9, id="dirichlet"),
    pytest.param(ClassesPerClient(k=2), 9, id="classes_per_client"),
    pytest.param(Column("author"), 7, id="column"),
]


@pytest.mark.parametrize(("partitioner", "clients"), PARTITIONERS)
def test_every_row_goes_to_one_client_in_order(partitioner: Partitioner, clients: int) -> None:
    data = corpus(400, 5)
    parts = client_rows(partitioner, data, clients, seed=3)
    assert len(parts) == clients
    assert all(len(part) and np.all(np.diff(part) > 0) for part in parts)
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))


@pytest.mark.parametrize(("partitioner", "clients"), PARTITIONERS)
def test_is_a_function_of_the_seed_alone(partitioner: Partitioner, clients: int) -> None:
    data = corpus(400, 5)
    np.random.seed(0)  # noqa: NPY002  the global generator must not matter
    first = partitioner.partition(data, clients, seed=3)
    np.random.seed(1)  # noqa: NPY002
    assert same(first, partitioner.partition(data, clients, seed=3))
    if not isinstance(partitioner, Column):
        assert not same(first, partitioner.partition(data, clients, seed=4))


@given(rows=st.integers(1, 120), clients=st.integers(1, 120), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=25)
def test_iid_sizes_differ_by_at_most_one(rows: int, clients: int, seed: int) -> None:
    assume(clients <= rows)
    sizes = [len(part) for part in client_rows(Iid(), corpus(rows, 1), clients, seed)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_serves_a_thousand_clients() -> None:
    assert {len(part) for part in client_rows(Iid(), corpus(6000, 20), 1000, seed=0)} == {6}


@given(alpha=st.floats(0.05, 100), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=25)
def test_dirichlet_keeps_the_minimum_or_gives_up(alpha: float, seed: int) -> None:
    with suppress(InputError):  # a small alpha may give no client size that will do
        assert min(len(part) for part in client_rows(Dirichlet(alpha, 5), corpus(300, 4), 10, seed)) >= 5


def test_dirichlet_is_more_skewed_at_a_smaller_alpha() -> None:
    data = corpus(2000, 5)
    labels = np.asarray(data["label"][:])

    def largest_share(alpha: float) -> float:
        parts = client_rows(Dirichlet(alpha), data, 10, seed=0)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert largest_share(0.1) > largest_share(100.0) + 0.2


def test_dirichlet_sends_no_telemetry() -> None:
    telemetry = importlib.import_module("flwr_datasets.common.telemetry")
    client_rows(Dirichlet(), corpus(400, 5), 4, seed=0)
    assert telemetry.state["executor"] is None  # made when the first event is sent


@given(classes=st.integers(1, 12), clients=st.integers(1, 15), k=st.integers(1, 12), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=60)
def test_every_client_holds_k_classes_and_every_class_has_a_holder(
    classes: int, clients: int, k: int, seed: int
) -> None:
    assume(k <= classes <= clients * k)
    labels = np.repeat(np.arange(classes), 15 + np.arange(classes))  # at least as many examples as holders
    parts = client_rows(ClassesPerClient(k), Dataset.from_dict({"label": labels}), clients, seed)
    held = [set(labels[part].tolist()) for part in parts]
    assert {len(hand) for hand in held} == {k}
    assert set().union(*held) == set(range(classes))


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8), clients=st.integers(1, 12), k=st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_classes_with_fewer_examples_than_holders_leave_no_client_empty(sizes: list[int], clients: int, k: int) -> None:
    assume(k <= len(sizes) <= clients * k)
    data = Dataset.from_dict({"label": np.repeat(np.arange(len(sizes)), sizes)})
    with suppress(InputError):  # there may be fewer examples than clients
        assert len(client_rows(ClassesPerClient(k), data, clients, seed=0)) == clients


@given(size=st.integers(1, 500), holders=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_shares_of_a_class_add_up_and_keep_the_minimum(size: int, holders: int, seed: int) -> None:
    counts = shares(size, holders, np.random.default_rng(seed))
    assert counts.sum() == size
    assert len(counts) == holders
    assert counts.min() >= min(10, size // holders)


@pytest.mark.parametrize("kind", [int, str])
def test_column_sorts_its_values(kind: type) -> None:
    """A CSV has numbers as texts."""
    data = Dataset.from_dict({"task": [kind(value) for value in (30, 4, 30, 100, 4)]})
    parts = client_rows(Column("task"), data, 3, seed=0)
    assert [part.tolist() for part in parts] == [[1, 4], [0, 2], [3]]


class Forgetful(Partitioner):
    """Loses the last row."""

    def partition(self, data: Dataset, clients: int, seed: int) -> list[Indices]:
        return np.array_split(np.arange(len(data) - 1), clients)


@pytest.mark.parametrize(
    ("partitioner", "clients", "message"),
    [
        (Iid(), 41, "data.clients: 40 training examples are too few for 41 clients"),
        (Forgetful(), 4, "Forgetful returned 4 parts of 39 rows in all, expected every one of 40 rows once"),
        (
            Dirichlet(),
            5,
            "data.min_examples: 5 clients cannot each have 10 of 40 training examples: lower data.clients or "
            "data.min_examples, or set data.partitioner = 'iid'",
        ),
        (
            Dirichlet(alpha=0.001),
            4,
            "lower data.min_examples or data.clients, raise data.alpha, or set data.partitioner = 'iid'",
        ),
        (ClassesPerClient(k=6), 4, "data.k: 6 classes per client, but there are 5: lower data.k"),
        (ClassesPerClient(k=1), 2, "the 5 classes without a holder: raise data.k to 3, or data.clients"),
        (Column("task"), 4, r"has no column 'task' \(it has label, author\): set data.column"),
        (Column("author"), 4, "column 'author' has 7 values, one client each, not 4: set data.clients = 7"),
    ],
)
def test_what_cannot_work_says_what_to_change(partitioner: Partitioner, clients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        client_rows(partitioner, corpus(40, 5), clients, seed=0)


def test_a_natural_client_needs_a_value_in_every_row() -> None:
    with pytest.raises(InputError, match=r"data\.column: row 1 of 'task' holds None"):
        client_rows(Column("task"), Dataset.from_dict({"task": ["a", None]}), 2, seed=0)


@pytest.mark.parametrize("partitioner", [Dirichlet(), ClassesPerClient()])
def test_going_by_class_needs_labels(partitioner: Partitioner) -> None:
    with pytest.raises(InputError, match=r"data\.label: this partitioner goes by class"):
        client_rows(partitioner, Dataset.from_dict({"prompt": ["a", "b"]}), 2, seed=0)
    with pytest.raises(InputError, match=r"data\.partitioner: .* words have a tag each: set data\.partitioner = 'iid'"):
        client_rows(partitioner, Dataset.from_dict({"tokens": [["a"], ["b"]], "tags": [[0], [1]]}), 2, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dirichlet(alpha=0), "alpha must be greater than 0, not 0"),
        (lambda: Dirichlet(min_examples=0), "min_examples must be at least 1, not 0"),
        (lambda: ClassesPerClient(k=0), "k must be at least 1, not 0"),
    ],
)
def test_fields_have_ranges(make: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_go_by_tenths_and_labels_by_the_rarest() -> None:
    numbers = Dataset.from_dict({"targets": [[float(i), 0.0] for i in reversed(range(100))]})
    assert class_of_row(numbers).tolist() == sorted([*range(10)] * 10, reverse=True)
    labels = Dataset.from_dict({"targets": [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1]]})
    assert class_of_row(labels).tolist() == [0, 1, 3, 2, 2]  # one row has the first, three the second, two the third
    for data in (numbers, labels):
        parts = client_rows(Dirichlet(alpha=1.0, min_examples=1), data, 2, seed=0)
        assert sum(map(len, parts)) == len(data)
