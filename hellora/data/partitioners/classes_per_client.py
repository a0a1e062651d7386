"""Give each client a fixed number of classes, the Non-IID setting of Fed-HeLLo (Zhang et al., arXiv 2506.12213).

Classes are dealt to clients by shuffled round-robin; a class is then split among its holders by Dir(1).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hellora.core.errors import InputError
from hellora.core.seeds import rng_for
from hellora.data.partitioning import Indices, Partitioner, class_of_row

if TYPE_CHECKING:
    from datasets import Dataset

MIN_SHARE = 10  # examples of a class that each of its holders has at least, where there are that many


@dataclass(frozen=True)
class ClassesPerClient(Partitioner):
    """Every client holds `k` classes, and every class has a holder."""

    k: int = 10  # classes of each client

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, not {self.k}")

    def partition(self, data: "Dataset", clients: int, seed: int) -> list[Indices]:
        classes, class_of, sizes = np.unique(class_of_row(data), return_inverse=True, return_counts=True)
        if self.k > len(classes):
            raise InputError(f"data.k: {self.k} classes per client, but there are {len(classes)}: lower data.k")
        if clients * self.k < len(classes):
            raise InputError(
                f"data.k: {clients} clients of {self.k} classes leave some of the {len(classes)} classes without a "
                f"holder: raise data.k to {-(-len(classes) // clients)}, or data.clients"
            )
        rng = rng_for(seed, "classes_per_client")
        hands = deal(sizes, clients, self.k, rng)
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        for index, size in enumerate(sizes):
            holders = [client for client, hand in enumerate(hands) if index in hand]
            rows = rng.permutation(np.flatnonzero(class_of == index))
            cuts = np.cumsum(shares(int(size), len(holders), rng))[:-1]
            for client, share in zip(holders, np.split(rows, cuts), strict=True):
                parts[client].append(share)
        return [np.sort(np.concatenate(part)) for part in parts]


def deal(sizes: Indices, clients: int, k: int, rng: np.random.Generator) -> list[list[int]]:
    """Deal `k` distinct classes to each client from shuffled decks; a class of n examples has at most n holders.

    Every class has a holder because the first deck is dealt out before another one is opened. A client is short of
    classes only where all classes that it lacks have as many holders as examples.
    """
    room = sizes.copy()  # holders that each class can still take
    deck: list[int] = []
    hands: list[list[int]] = []
    for client in range(clients):
        hand: list[int] = []
        while len(hand) < k:
            card = next((c for c in deck if c not in hand), None)
            if card is not None:
                deck.remove(card)
                hand.append(card)
                continue
            fresh = [int(c) for c in rng.permutation(len(sizes)) if room[c] > 0]
            if set(fresh) <= set(hand):
                break
            room[fresh] -= 1
            deck += fresh
        if not hand:
            raise InputError(f"data.k: no examples are left for client {client}: lower data.clients or data.k")
        hands.append(hand)
    return hands


def shares(size: int, holders: int, rng: np.random.Generator) -> Indices:
    """Say how many of a class's `size` examples each holder gets: its minimum, and a Dir(1) share of the rest."""
    minimum = min(MIN_SHARE, size // holders)
    rest = size - minimum * holders
    edges = np.floor(np.cumsum(rng.dirichlet(np.ones(holders)))[:-1] * rest).astype(np.int64)
    return minimum + np.diff(edges, prepend=0, append=rest)
