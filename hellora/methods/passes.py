"""A head is solved in passes over all clients: those of its start, and two that every start may need.

exponents    how large features are, so that there is a grid for them: before the passes of a start that is exact
losses       what the head costs at each of LOGIT_SCALES: after them, where no logit scale is given; a head that says
             numbers has none
left_out     how many examples it is right about that it was not solved for: last, where a run ends with the better of
             what it trained and what it began with
"""

import torch

from hellora.core.exchange import Declared, TensorSpec
from hellora.core.sums import FIRST, LAST, MOST_BITS, Grid
from hellora.methods.closed_form import HeadShape, Targets, left_out_spec, losses_spec
from hellora.methods.local import prefixed
from hellora.methods.strategies import Method, Start

EXPONENTS, LOSSES, LEFT_OUT = "exponents", "losses", "left_out"


def passes_of(method: Method, targets: Targets) -> list[str]:
    """Return the passes in which a method solves a head, in order."""
    start, auto, compared = method.start, method.logit_scale == "auto", method.ends_with == "better"
    auto &= targets != "numbers"
    return [*[EXPONENTS] * start.exact, *start.passes, *[LOSSES] * auto, *[LEFT_OUT] * compared]


def declared(start: Start, step: str, shape: HeadShape, examples: int, grid: Grid, projected: bool) -> Declared:
    """Return the named tensors of a pass, of a client with so many examples: its own, the grid, the projection."""
    brief = {"projection": TensorSpec((2,), torch.int64, 0)} if projected else {}
    if start.exact and step != EXPONENTS:
        brief["bits"] = TensorSpec((), torch.int64, 1, MOST_BITS)
        brief["scales"] = TensorSpec((shape.on_grid,), torch.float64, 2.0**FIRST, 2.0**LAST)
    if step == EXPONENTS:
        counts = TensorSpec((shape.on_grid, LAST - FIRST + 1), torch.int64, 0, examples)
        own = Declared(report={EXPONENTS: counts})
    elif step == LOSSES:
        own = Declared(brief={"weight": weight_spec(shape)}, report=losses_spec(examples))
    elif step == LEFT_OUT:
        square = TensorSpec((shape.columns, shape.columns), torch.float64)
        own = Declared(brief={"weight": weight_spec(shape), "inverse": square}, report=left_out_spec(examples))
    else:
        own = start.declares(step, shape, examples, grid)
    return prefixed({"start": Declared({**brief, **own.brief}, own.report)})


def weight_spec(shape: HeadShape) -> TensorSpec:
    """Declare a solved head, before its logit scale."""
    return TensorSpec((shape.classes, shape.columns), torch.float64)
