"""Find the cause of a loss that is nan or infinite: what was not finite before it."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from hellora.core.robust import first_not_finite
from hellora.core.types import Adapter
from hellora.model.resident import AdaptedModel, BaseModel
from hellora.tasks import Batch

SHOWN = 5
GROWN = 100.0  # times as large: training that goes well does not get there
Rows = Sequence[int | str]


def in_base(base: BaseModel, besides: Iterable[nn.Parameter] = ()) -> str:
    """Name the first weight of the base that is not finite; those `besides` are none of its own."""
    others = {id(parameter) for parameter in besides}
    weights = ((name, weight) for name, weight in base.net.named_parameters() if id(weight) not in others)
    return first_not_finite((name, weight) for name, weight in weights if name not in base.places)


def in_adapter(adapter: Adapter) -> str:
    """Name the first module of an adapter, or part of its head, that is not finite."""
    pairs = [(name, t) for part in (adapter.pairs, adapter.residual) for name, p in part.items() for t in (p.A, p.B)]
    return first_not_finite([*pairs, *((f"head {name}", value) for name, value in adapter.head.items())])


def in_model(base: BaseModel, adapter: Adapter) -> str:
    """Say what of a base and an adapter on it is not finite, and what to change; "" where all is."""
    if name := in_base(base):
        return f"the base's weight {name} is not finite: load a whole copy of the model"
    if name := in_adapter(adapter):
        return f"the adapter is not finite ({name}), so its training diverged: train again with a lower train.lr"
    return ""


def in_step(
    base: BaseModel,
    adapted: AdaptedModel,
    received: Adapter,
    batch: Batch,
    losses: Tensor,
    rows: Rows,
    lr: str = "train.lr",
) -> str:
    """Say why the losses (batch,) of a step are not finite, and what to change.

    The model is lent out as `adapted`; `rows` has each example's place in the data at hand, and `lr` is the name of
    the learning rate.
    """
    if name := in_adapter(received):
        return f"the adapter that came from the server is not finite ({name})"
    lora = [(name, parameter) for name, module in adapted.lora.items() for parameter in (module.A, module.B)]
    if name := first_not_finite([*lora, *adapted.head.items()]):
        return f"the steps before it made {name} infinite: lower {lr}"
    if name := in_base(base, [parameter for _, parameter in lora]):
        return f"the base's weight {name} is not finite: load a whole copy of the model"
    for name, value in batch.items():
        if places := [row for row, one in zip(rows, value, strict=True) if first_not_finite([(name, one)])]:
            return f"{name} of {in_words(places)} is not finite: mend the data"
    before = largest([t for pair in received.pairs.values() for t in (pair.A, pair.B)] + [*received.head.values()])
    now = largest([*(parameter for _, parameter in lora), *adapted.head.values()])
    if now > GROWN * before:
        return f"the steps before it made numbers of up to {now:.1e} out of {before:.1e} in the adapter: lower {lr}"
    places = [row for row, loss in zip(rows, losses, strict=True) if first_not_finite([("loss", loss)])]
    kind = str(base.dtype).removeprefix("torch.")
    return f"weights, adapter and inputs are finite, and what the model makes of {in_words(places)} in {kind} is not"


def largest(tensors: Iterable[Tensor]) -> float:
    """Return the largest magnitude in any of them."""
    return max((float(t.detach().abs().max()) for t in tensors if t.numel()), default=0.0)


def in_words(rows: Rows) -> str:
    """Name rows of the data at hand."""
    some = ", ".join(map(str, rows[:SHOWN])) + (" and more" if len(rows) > SHOWN else "")
    return f"row{'s' * (len(rows) > 1)} {some}"
