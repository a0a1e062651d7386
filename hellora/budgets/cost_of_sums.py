"""A cost model also tells what it costs to sum products of features, which takes forward passes and no training."""

import numpy as np

from hellora.budgets.coefficients import ActivationPolicy
from hellora.budgets.cost import FLOAT, Cost, CostModel
from hellora.core.exchange import Declared
from hellora.core.sums import BATCH

DOUBLE = 8  # bytes of a feature, where it is summed


def cost_of_sums(model: CostModel, examples: int, named: Declared, columns: int) -> Cost:
    """Return what a client pays that sums products of its features (examples, columns).

    The examples of each length fill their last batch up: at most BATCH − 1 more, for no more lengths than tokens.
    """
    n, step = np.array([1.0, BATCH, 0.0, 0.0]), model.steps[ActivationPolicy()]
    block = (step.blocks["off"].forward * n[:, None]).sum(0).max()
    forward = max(n @ step.start, n @ step.enter + block, n @ step.enter + n @ step.head)
    ranks = np.full(model.spec.num_layers, model.spec.max_rank)
    adapter = FLOAT * int(ranks @ model.widths["both"]) + model.weight_item_bytes * int(model.areas.sum())
    summing = DOUBLE * (3 * examples * columns + 4 * columns**2)  # as they are, on the grid; products, twice
    held = model.weights_bytes + model.buffers_bytes + adapter + named.bytes_held + FLOAT * examples * columns
    passed = examples + (BATCH - 1) * min(examples, model.tokens)
    operations = passed * (float(model.block_operations.sum()) + model.head_operations) + 2.0 * examples * columns**2
    return Cost(round(held + max(forward, summing, model.merging_bytes)), operations, named.bytes_up)
