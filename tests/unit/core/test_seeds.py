"""A seed is a function of what it is for."""

import subprocess
import sys

from hellora.core.seeds import rng_for, seed_for


def test_the_same_in_another_process() -> None:
    """Not built on hash(), which differs between processes."""
    code = "from hellora.core.seeds import seed_for; print(seed_for(3, 'train', 7, 11))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == seed_for(3, "train", 7, 11)


def test_pinned_value() -> None:
    """Changing this number changes every result ever reported."""
    assert seed_for(0, "train", 0, 0) == 6_578_950_792_936_650_312


def test_every_part_counts() -> None:
    seeds = {
        seed_for(0),
        seed_for(1),
        seed_for(0, "train"),
        seed_for(0, "train", 1),
        seed_for(0, "train", 1, 2),
        seed_for(0, "train", 2, 1),
        seed_for(0, "train", 12),
        seed_for(0, "cohort", 1, 2),
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_are_fresh() -> None:
    first = rng_for(0, "layers", 3, 4).random(5)
    rng_for(0, "layers", 3, 5).random(7)
    assert rng_for(0, "layers", 3, 4).random(5).tolist() == first.tolist()
    assert rng_for(0, "layers", 4, 3).random(5).tolist() != first.tolist()
