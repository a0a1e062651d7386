"""A seed is a function of (experiment seed, what it is for), never of the order of calls.

Resume needs no saved generator, and a client draws the same numbers on every backend.
"""

import hashlib

import numpy as np


def seed_for(seed: int, *purpose: int | str) -> int:
    """Return a 63-bit seed for one purpose, such as `seed_for(seed, "train", round, client)`."""
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def rng_for(seed: int, *purpose: int | str) -> np.random.Generator:
    """Make a fresh generator for one purpose."""
    return np.random.default_rng(seed_for(seed, *purpose))
