"""What clients say of themselves when they join is checked before anything is made of it. A client may send anything;
what is refused here has not joined, and the reason says why.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hellora.core.number_sums import NumberSums
from hellora.core.types import Budget, ClientProfile
from hellora.core.version import __version__
from hellora.data.sides import Classes
from hellora.deployment import NAME

MOST_CLASSES = 1000  # unless model.classes says more
LONGEST_CLASS = 200  # characters

Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Label = Annotated[str, Field(max_length=LONGEST_CLASS)]


@dataclass(frozen=True)
class SaidClasses:
    values: tuple[Label, ...]
    present: tuple[Label, ...]
    declared: Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class SaidBudget:
    layers: Count | None
    rank: Count | None
    memory_bytes: Count | None
    seconds: Positive | None
    uplink_bytes: Count | None


@dataclass(frozen=True)
class SaidSums:
    examples: Annotated[int, Field(strict=True, ge=1, le=2**40)]
    sums: tuple[Finite, ...]
    squares: tuple[Finite, ...]


@dataclass(frozen=True)
class Said:
    """Holds what one client said. `longest` is of its examples, in tokens; known once it has loaded them."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    version: Annotated[str, Field(max_length=40)]  # of its hellora
    examples: Annotated[int, Field(strict=True, ge=1, le=2**40)]
    classes: SaidClasses | None
    budget: SaidBudget
    speed: Positive | None
    link: Positive | None
    longest: int = 1
    numbers: SaidSums | None = None  # of a regression

    def profile(self, client: int) -> ClientProfile:
        """Make the client as the server knows it, under its id."""
        own = self.budget
        budget = Budget(own.layers, own.rank, own.memory_bytes, own.seconds, own.uplink_bytes)
        return ClientProfile(client, self.examples, budget, self.speed, self.link, 1.0)

    def number_sums(self) -> NumberSums | None:
        own = self.numbers
        return None if own is None else NumberSums(own.examples, own.sums, own.squares)

    def own_classes(self) -> Classes | None:
        own = self.classes
        return None if own is None else Classes(own.values, own.present, own.declared)


SAID = TypeAdapter(Said)


def understood_join(fields: Mapping[str, Any], most_classes: int = MOST_CLASSES) -> Said:
    """Read what a client says of itself. Raise ValueError where that cannot be."""
    try:
        said = SAID.validate_json(json.dumps(dict(fields)))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg']}") from error
    if said.version != __version__:
        raise ValueError(f"it has hellora {said.version[:40]}, and this server {__version__}: install the same")
    if (own := said.classes) is not None:
        if len(own.values) > most_classes:
            raise ValueError(f"it has {len(own.values)} classes, at most {most_classes} are taken: see model.classes")
        if len(set(own.values)) < len(own.values) or not set(own.present) <= set(own.values):
            raise ValueError("its classes contradict themselves")
    if (sums := said.number_sums()) is not None and not sums.possible:
        raise ValueError("no numbers have the sums that it tells")
    return said


def owner_of(node: int, admitted: Path) -> str | None:
    """Say whose key the server admitted a node with; None where it does not know, or has revoked the key."""
    keys: Mapping[str, Mapping[str, str]] = json.loads(admitted.read_text()) if admitted.is_file() else {}
    return next((k["name"] for k in keys.values() if k["node"] == str(node) and "revoked" not in k), None)
