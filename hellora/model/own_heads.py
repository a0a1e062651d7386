"""A checkpoint's own head has its classes in an order of its own.

Its rows are put into the order of the data's classes, by name; where names do not agree, the head is drawn anew, with a
word.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NO_NAME = re.compile(r"LABEL_\d+")  # what transformers calls the classes of a model that names none
OTHER_SIZE = "the model's own head has weights of another size than its config.json says: the head is drawn anew"
SHOWN = 4


@dataclass(frozen=True)
class Match:
    """A match says which row of a checkpoint's head is whose: of class i, `rows[i]`, or None for a row drawn anew."""

    rows: tuple[int | None, ...]
    word: str = ""  # to a person, where names do not settle it

    @property
    def drawn(self) -> bool:
        """Return True if nothing of the head is kept."""
        return all(row is None for row in self.rows)


def match(theirs: Sequence[str], names: Sequence[str], known: int) -> Match:
    """Match a head of the classes `theirs`, in its order, to the classes `names`, of which the first `known` are the
    data's; the others are places to spare.

    Names agree as they are written, or without regard to case and to what stands between words. Where the checkpoint
    has no names, or the data has numbers for names, as many classes as rows are taken in their order.
    """
    data = names[:known]
    for write in (str, folded):
        place = {write(name): row for row, name in enumerate(theirs)}
        wanted = [write(name) for name in names]
        apart = len(place) == len(theirs) and len(set(wanted)) == len(wanted)
        if apart and place.keys() >= set(wanted[:known]):
            return Match(tuple(place.get(name) for name in wanted))
    unnamed = all(NO_NAME.fullmatch(name) for name in theirs)
    numbered = [str(row) for row in range(len(theirs))]
    if unnamed and set(data) <= set(numbered):
        return Match((*map(int, data), *[None] * (len(names) - known)))
    if len(names) == len(theirs) and (unnamed or list(data) == numbered):
        pairs = ", ".join(f"{name} = {own}" for name, own in zip(data[:SHOWN], theirs, strict=False))
        return Match(
            tuple(range(len(theirs))),
            f"the model's own head and the data name their classes differently; they are taken in order: {pairs}"
            + ", …" * (len(data) > SHOWN),
        )
    lacking = [name for name in data if folded(name) not in {folded(own) for own in theirs}]
    return Match(
        (None,) * len(names),
        f"the model's own head is for other classes ({shown(theirs)}) than the data's (it has none for "
        f"{shown(lacking or data)}): the head is drawn anew",
    )


def class_names(labels: Sequence[str], count: int) -> tuple[str, ...]:
    """Name each of `count` classes, of which `labels` are the first."""
    return (*labels, *(f"class {i}" for i in range(len(labels), count)))


def sizes_of(classes: Sequence[str]) -> dict[str, Any]:
    """Return what gives a config these classes; () leaves it as it is."""
    return {"id2label": dict(enumerate(classes)), "label2id": {v: k for k, v in enumerate(classes)}} if classes else {}


def folded(name: str) -> str:
    """Write a name without case, and with one space for whatever stands between its words."""
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " "))) or name


def shown(names: Sequence[str]) -> str:
    """Name a few."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def own_head(net: Any, new: Sequence[str]) -> tuple[str, ...]:
    """Return the modules of a classification model's head: those outside its base model, and the new ones inside."""
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    base = net.base_model_prefix
    if base not in sizes:  # CLIP's classifier has the vision model of a "clip" that is not there
        base = max(sizes, key=lambda name: sizes[name])
    outside = [name for name, size in sizes.items() if size and name != base]
    inside = [".".join(name.split(".")[:2]) for name in new if name.startswith(f"{base}.")]
    return tuple(dict.fromkeys([*outside, *inside]))


def settle_head(
    net: Any, found: Match, rows: int, new: frozenset[str], one_more: Callable[[], nn.Module], seed: int
) -> str:
    """Put the head of a checkpoint into the order that was found; return what a person should know of it.

    The head has `rows`, in whatever order; the parameters `new` are not the checkpoint's. `one_more` builds the same
    model with one class more, by which the parameters of the head that have a place for each class are told.
    """
    inside = tuple(f"{name}." for name in own_head(net, ()))
    head = {name: parameter for name, parameter in net.named_parameters() if name.startswith(inside)}
    in_order = found.rows == tuple(range(rows))
    if in_order and not found.word:
        return ""
    if len(found.rows) == rows and not any(rows in p.shape for name, p in head.items() if name not in new):
        return ""  # all of it is new
    sizes = {name: parameter.shape for name, parameter in one_more().named_parameters()}
    differing = {name: [d for d, size in enumerate(p.shape) if size != sizes[name][d]] for name, p in head.items()}
    dimensions = {name: places[0] for name, places in differing.items() if places}
    if not in_order and (len(found.rows) != rows or not new.issuperset(dimensions)):
        reorder(net, dimensions, found.rows, seed)
    return "" if new.issuperset(dimensions) else found.word


def reorder(net: Any, dimensions: Mapping[str, int], rows: Sequence[int | None], seed: int) -> None:
    """Give each parameter with a place for every class the rows of a match; those of None are drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(net.config, "initializer_range", None) or 0.02
    for name, dimension in dimensions.items():
        place, _, leaf = name.rpartition(".")
        owner, old = net.get_submodule(place), net.get_parameter(name).detach()
        put = nn.Parameter(with_rows(old, dimension, rows, std, generator), requires_grad=False)
        setattr(owner, leaf, put)
        if isinstance(owner, nn.Linear):
            owner.out_features = owner.weight.shape[0]
    if hasattr(net, "num_labels"):
        net.num_labels = len(rows)


def with_rows(
    old: Tensor, dimension: int, rows: Sequence[int | None], std: float, generator: torch.Generator
) -> Tensor:
    """Return a parameter with these rows of `old`; of a weight the others are drawn, of a bias they are 0."""
    shape = [*old.shape]
    shape[dimension] = len(rows)
    drawn = std * torch.randn(shape, generator=generator) if old.ndim > 1 else torch.zeros(shape)
    kept = torch.tensor([place for place, row in enumerate(rows) if row is not None], dtype=torch.long)
    taken = torch.tensor([row for row in rows if row is not None], dtype=torch.long)
    return drawn.to(old.dtype).index_copy(dimension, kept, old.index_select(dimension, taken))
