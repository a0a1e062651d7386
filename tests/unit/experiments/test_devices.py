"""What clients train on: groups, a table, a named distribution."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hellora.core.errors import InputError
from hellora.core.types import Budget
from hellora.experiments.config import check
from hellora.experiments.devices import DISTRIBUTIONS, Device, devices_of_table, drawn_devices
from hellora.experiments.experiment import Experiment
from hellora.experiments.planning import fleet
from hellora.experiments.settings import FleetSettings, RunSettings

MiB, GiB = 2**20, 2**30
TABLE = """\
memory, speed, link, availability
6GiB, 2e10, 1MB/s, 0.9
512 MiB, 1e9, 250KB, 1

80GiB, 1e14, 100MB, 0.5
"""
DEVICES = [Device(6 * GiB, 2e10, 1e6, 0.9), Device(512 * MiB, 1e9, 250e3), Device(80 * GiB, 1e14, 1e8, 0.5)]


def table_of(folder: Path, text: str) -> str:
    path = folder / "devices.csv"
    path.write_text(text)
    return str(path)


def experiment_of(clients: int = 20, run: dict[str, Any] | None = None, **settings: Any) -> Experiment:
    return check("mine", {**(run or {}), "data": {"clients": clients}, "fleet": settings})


# --------------------------------------------------------------------------------------------------------------- groups


def test_groups_have_links_and_availabilities() -> None:
    settings = FleetSettings(
        layers=(2, 4), memory=("1GiB", "2GiB"), speed=(1e9, 2e9), link=("1MB/s", "500 KB"), availability=(0.5, 1.0)
    )
    devices = settings.devices(8, seed=3)
    expected = {2: Device(GiB, 1e9, 1e6, 0.5), 4: Device(2 * GiB, 2e9, 5e5, 1.0)}
    for device, budget in zip(devices, settings.budgets(8, seed=3), strict=True):
        assert budget.layers is not None
        assert device == expected[budget.layers]
        assert budget.memory_bytes == device.memory_bytes
    assert Counter(devices) == dict.fromkeys(expected.values(), 4)
    assert FleetSettings().devices(3, seed=0) == [Device()] * 3


def test_profiles_are_those_of_the_devices(tmp_path: Path) -> None:
    experiment = experiment_of(3, {"cohort": 2}, table=table_of(tmp_path, TABLE), seconds=[90.0], uplink=["1MB"])
    assert experiment.fleet.in_bytes_or_seconds
    profiles = fleet(experiment, [5, 6, 7])
    assert [p.num_examples for p in profiles] == [5, 6, 7]
    found = [Device(p.budget.memory_bytes, p.speed, p.link, p.availability) for p in profiles]
    assert sorted(found, key=lambda d: d.speed or 0) == sorted(DEVICES, key=lambda d: d.speed or 0)
    assert all((p.budget.seconds, p.budget.uplink_bytes) == (90.0, 10**6) for p in profiles)


@pytest.mark.parametrize("settings", [{"speed": [1e9]}, {"distribution": "cross_silo"}, {"memory": ["1GiB"]}])
def test_what_needs_predictions_gets_a_planner(settings: dict[str, Any]) -> None:
    assert experiment_of(**settings).fleet.in_bytes_or_seconds
    assert not experiment_of(layers=[2, 4], link=["1MB", "2MB"]).fleet.in_bytes_or_seconds


# ---------------------------------------------------------------------------------------------------------------- table


def test_rows_are_dealt_out_by_seed(tmp_path: Path) -> None:
    path = table_of(tmp_path, TABLE)
    hands = [devices_of_table(path, 8, seed) for seed in (0, 0, 1, 2)]
    assert hands[0] == hands[1]
    assert not all(hand == hands[0] for hand in hands)
    for hand in hands:
        assert set(hand) == set(DEVICES)
        assert sorted(Counter(hand).values()) == [2, 3, 3]  # each as often as any other, to within one


def test_a_client_gets_its_own_row(tmp_path: Path) -> None:
    path = table_of(tmp_path, "\ufeffclient,link\n2,3MB\n0,1MB\n7,8MB\n1,2MB\n")
    assert devices_of_table(path, 3, seed=5) == [Device(link=1e6), Device(link=2e6), Device(link=3e6)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must begin with a header"),
        ("memory,speed\n", "with a row per device"),
        ("memory,memory\n1GiB,1GiB\n", "each of its names once"),
        ("memory,sped\n1GiB,1\n", "has a column 'sped': did you mean 'speed'"),
        ("memory,speed\n1GiB,1\n1GiB\n", "row 2 has 1 values for 2 columns: give one each, or remove a column"),
        ("memory,speed\n1GiB,\n", "row 1 has 1 values for 2 columns"),
        ("memory\n6\n", "row 1, memory: '6' has no unit"),
        ("speed\nfast\n", "row 1, speed: 'fast' is no number above 0: write operations per second, such as 2e10"),
        ("speed\ninf\n", "row 1, speed: 'inf' is no number above 0"),
        ("link\n1e6\n", "row 1, link: '1e6'"),
        ("availability\n0\n", "row 1, availability: '0' is no probability"),
        ("availability\n1.1\n", "row 1, availability: '1.1' is no probability"),
        ("client,link\n0,1MB\n0,1MB\n", "has the client '0': write each id once"),
        ("client,link\nzero,1MB\n", "has the client 'zero'"),
        ("client,link\n0,1MB\n2,1MB\n", "has no row for client 1, and data.clients = 20: add one, or remove"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=r"^fleet.table: ") as refusal:
        experiment_of(table=table_of(tmp_path, text))
    assert words in str(refusal.value)


def test_a_table_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fleet.table: cannot read .*absent.csv \(No such file or directory\)"):
        experiment_of(table=str(tmp_path / "absent.csv"))
    (tmp_path / "image.csv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match=r"fleet.table: .*image.csv is not a CSV file"):
        experiment_of(table=str(tmp_path / "image.csv"))


# -------------------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_a_client_keeps_its_device_in_a_larger_fleet(name: str) -> None:
    few, many, others = drawn_devices(name, 5, 0), drawn_devices(name, 50, 0), drawn_devices(name, 50, 1)
    assert many[:5] == few
    assert many != others
    assert len(set(many)) >= 3


def test_phones_are_as_described() -> None:
    devices = drawn_devices("cross_device", 2000, 0)
    shares = Counter(device.memory_bytes for device in devices)
    for gib, share in {3: 0.1, 4: 0.25, 6: 0.25, 8: 0.3, 12: 0.1}.items():
        assert shares[gib * GiB // 4] / 2000 == pytest.approx(share, abs=0.04)
    for values, median, sigma in (([d.speed for d in devices], 2e10, 0.8), ([d.link for d in devices], 1e6, 1.0)):
        logs = np.log(np.array(values, dtype=float))
        assert np.median(logs) == pytest.approx(np.log(median), abs=0.1)
        assert logs.std() == pytest.approx(sigma, abs=0.05)
    assert {device.availability for device in devices} == {0.9}


def test_silos_are_as_described() -> None:
    found = Counter(drawn_devices("cross_silo", 2000, 0))
    for device, share in {
        Device(40 * GiB, 1e14, 1e8): 0.2,
        Device(12 * GiB, 2e13, 1e7): 0.3,
        Device(6 * GiB, 1e11, 2.5e6, 0.9): 0.5,
    }.items():
        assert found[device] / 2000 == pytest.approx(share, abs=0.04)
    assert sum(found.values()) == 2000


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"distribution": "phones"}, "fleet.distribution: there is no 'phones': choose among cross_device, cross_silo"),
        ({"distribution": "cross_devices"}, "did you mean 'cross_device'"),
        (
            {"distribution": "cross_silo", "table": "a.csv"},
            "table and distribution say what clients train on: keep one",
        ),
        ({"distribution": "cross_silo", "speed": [1.0]}, "distribution and speed say what clients train on: keep one"),
        ({"table": "a.csv", "memory": ["1GiB"]}, "table and memory say what clients train on: keep one"),
        ({"link": ["fast"]}, "fleet.link: 'fast' is no size"),
        ({"availability": [0.0]}, "availability must be above 0 and at most 1"),
        ({"availability": [1.5]}, "availability must be above 0 and at most 1"),
        ({"layers": [2, 4], "link": ["1MB"]}, "layers has 2 groups, link has 1 groups"),
    ],
)
def test_devices_that_are_not_described_once_and_well(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        experiment_of(**settings)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("run", "settings", "words"),
    [
        ({"deadline": 9.0}, {}, "deadline goes by simulated time: give fleet.speed and fleet.link"),
        ({"deadline": 9.0}, {"speed": [1e9]}, "deadline goes by simulated time"),
        ({"over_select": 1.5}, {"link": ["1MB"]}, "over_select goes by simulated time"),
        ({"over_select": 3.0}, {"distribution": "cross_silo"}, "asks 24 clients, but data.clients = 20: lower it"),
        ({"over_select": 0.9}, {}, "over_select must be at least 1"),
        ({"deadline": 0.0}, {}, "deadline must be greater than 0"),
    ],
)
def test_a_deadline_and_over_selection_need_times(run: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        experiment_of(20, run, **settings)
    assert words in str(refusal.value)
    assert experiment_of(20, {"deadline": 9.0, "over_select": 1.5}, speed=[1e9], link=["1MB"]).run.asked == 12


def test_seconds_need_a_speed_in_the_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fleet.seconds needs the speed of every device: give .* a column speed"):
        experiment_of(table=table_of(tmp_path, "link\n1MB\n"), seconds=[5.0])
    assert experiment_of(distribution="cross_silo", seconds=[5.0]).fleet.budget(0) == Budget(seconds=5.0)


@pytest.mark.parametrize(
    ("cohort", "over_select", "asked"), [(8, 1.0, 8), (50, 1.1, 55), (10, 1.3, 13), (8, 1.3, 11), (3, 1.01, 4)]
)
def test_how_many_are_asked(cohort: int, over_select: float, asked: int) -> None:
    """⌈cohort × over_select⌉, in which 50 × 1.1 is 55 and no hair more."""
    assert RunSettings(cohort=cohort, over_select=over_select).asked == asked
