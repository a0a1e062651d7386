"""Give each client of a simulation its device: from a table of real ones, or drawn from a named distribution."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hellora.core.errors import InputError, nearest
from hellora.core.seeds import rng_for
from hellora.core.units import UNITS, parse_bytes

COLUMNS = ("client", "memory", "speed", "link", "availability")


@dataclass(frozen=True, slots=True)
class Device:
    """A device is what a client trains on; None = no limit, or not known."""

    memory_bytes: int | None = None
    speed: float | None = None  # operations per second of training
    link: float | None = None  # bytes per second, each way
    availability: float = 1.0  # probability that it can be reached in a round


# -------------------------------------------------------------------------------------------------- named distributions


def cross_device(rng: np.random.Generator) -> Device:
    """Draw a phone.

    The numbers are ours, of a plausible order and not measured: memory of 3, 4, 6, 8 or 12 GiB (shares 0.1, 0.25, 0.25,
    0.3, 0.1), a quarter of it for training; speed log-normal about 20 GFLOP/s (sigma 0.8) and link about 1 MB/s
    (sigma 1). Availability 0.9 is within the 6 to 10 % of devices that drop out of a round in Bonawitz et al.
    (arXiv 1902.01046).
    """
    memory = rng.choice([3, 4, 6, 8, 12], p=[0.1, 0.25, 0.25, 0.3, 0.1]) * UNITS["GIB"] // 4
    return Device(int(memory), rng.lognormal(math.log(2e10), 0.8), rng.lognormal(math.log(1e6), 1.0), 0.9)


def cross_silo(rng: np.random.Generator) -> Device:
    """Draw an institution's device: a fifth have an A100, three tenths a workstation, half a laptop.

    The numbers are ours: memory for training 40, 12 and 6 GiB, sustained speed 1e14, 2e13 and 1e11, link 100, 10 and
    2.5 MB/s; a laptop is there in nine rounds of ten.
    """
    GiB = UNITS["GIB"]
    kinds = (Device(40 * GiB, 1e14, 1e8), Device(12 * GiB, 2e13, 1e7), Device(6 * GiB, 1e11, 2.5e6, 0.9))
    return kinds[rng.choice(3, p=[0.2, 0.3, 0.5])]


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Device]] = {
    "cross_device": cross_device,
    "cross_silo": cross_silo,
}


def check_distribution(name: str) -> None:
    """Raise InputError unless there is such a distribution."""
    if name not in DISTRIBUTIONS:
        raise InputError(f"fleet.distribution: there is no {name!r}{nearest(name, sorted(DISTRIBUTIONS))}")


def drawn_devices(name: str, clients: int, seed: int) -> list[Device]:
    """Draw a device for each client, by id; a client's does not depend on how many there are."""
    return [DISTRIBUTIONS[name](rng_for(seed, "device", client)) for client in range(clients)]


# ---------------------------------------------------------------------------------------------------------------- table


def devices_of_table(path: str, clients: int, seed: int) -> list[Device]:
    """Return the device of each client, by id: its row where the table has a column `client`; else rows are dealt out
    by seed, each as often as any other, to within one.

    Raises:
        InputError: there is no such table, or a header, a cell or a client's row is wrong or absent.
    """
    rows = read_table(path)
    devices = [device_of(row, f"fleet.table: {path}, row {i}") for i, row in enumerate(rows, 1)]
    if "client" not in rows[0]:
        order = rng_for(seed, "table").permutation(len(rows))
        return [devices[order[client % len(rows)]] for client in range(clients)]
    ids = [row["client"] for row in rows]
    for text in ids:
        if not (text.isdecimal() and ids.count(text) == 1):
            raise InputError(f"fleet.table: {path} has the client {text!r}: write each id once, a number from 0 on")
    by_client = {int(text): device for text, device in zip(ids, devices, strict=True)}
    for client in range(clients):
        if client not in by_client:
            raise InputError(
                f"fleet.table: {path} has no row for client {client}, and data.clients = {clients}: "
                f"add one, or remove the column client to deal the rows out by seed"
            )
    return [by_client[client] for client in range(clients)]


def read_table(path: str) -> list[dict[str, str]]:
    """Read the rows of a CSV file, at least one, every cell filled."""
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            header, *lines = [[cell.strip() for cell in line] for line in csv.reader(file) if any(line)] or [[]]
    except OSError as error:
        raise InputError(f"fleet.table: cannot read {path} ({error.strerror}): name a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"fleet.table: {path} is not a CSV file: {error}") from error
    for name in header:
        if name not in COLUMNS:
            raise InputError(f"fleet.table: {path} has a column {name!r}{nearest(name, list(COLUMNS))}")
    if not header or not lines or len(set(header)) < len(header):
        raise InputError(
            f"fleet.table: {path} must begin with a header, each of its names once (memory, speed, link, availability, "
            f"client), with a row per device below"
        )
    for number, line in enumerate(lines, 1):
        if len(line) != len(header) or not all(line):
            raise InputError(
                f"fleet.table: {path}, row {number} has {sum(map(bool, line))} values for {len(header)} columns: "
                f"give one each, or remove a column"
            )
    return [dict(zip(header, line, strict=True)) for line in lines]


def device_of(row: dict[str, str], where: str) -> Device:
    """Return the device that a row of a table describes."""
    return Device(
        memory_bytes=parse_bytes(row["memory"], f"{where}, memory") if "memory" in row else None,
        speed=parse_speed(row["speed"], f"{where}, speed") if "speed" in row else None,
        link=parse_link(row["link"], f"{where}, link") if "link" in row else None,
        availability=parse_availability(row["availability"], f"{where}, availability") if "availability" in row else 1,
    )


def parse_link(text: str, where: str) -> float:
    """Read a link such as "1MB" or "1 MB/s" in bytes per second."""
    return float(parse_bytes(text.strip().removesuffix("/s"), where))


def parse_speed(text: str, where: str) -> float:
    speed = number(text)
    if not 0 < speed < math.inf:
        raise InputError(f"{where}: {text!r} is no number above 0: write operations per second, such as 2e10")
    return speed


def parse_availability(text: str, where: str) -> float:
    availability = number(text)
    if not 0 < availability <= 1:
        raise InputError(f"{where}: {text!r} is no probability: write a number above 0, at most 1")
    return availability


def number(text: str) -> float:
    """Read a number as a person writes it; return nan for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def fully_known(devices: Sequence[Device]) -> bool:
    """Return True if the time of every client can be predicted."""
    return all(device.speed is not None and device.link is not None for device in devices)
