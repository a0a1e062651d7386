"""Rank collapse on a toy that takes seconds: `python benchmarks/collapse.py`.

Eight clients of ranks 2, 2, 2, 4, 4, 8, 16, 16 fit one 40 × 40 matrix each, by gradient descent on ½ ‖ΔW − T_k‖², from
a global adapter of rank 16. Their targets T_k are one matrix of rank 16 with a flat spectrum, each with noise of its
own, so that a global adapter of rank 16 can come near their mean. Printed are the relative distance of the global
adapter from that mean after 60 rounds, and how much of the adapter's energy lies beyond rank 2 and rank 8: where
methods for unequal ranks lose it.

FLoRA and FedEx-LoRA may end with a higher rank than the global adapter's. "SVD at clients": clients factorise what
they trained anew before they send it, as some codes do; for a mean of factors that is worse still.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hellora.core.algebra import components, delta_weight, new_adapter, trained_components, trained_part
from hellora.core.exchange import ClientUpdate, TrainSettings
from hellora.core.low_rank import thin_svd
from hellora.core.state import ServerState
from hellora.core.types import Adapter, AdapterSpec, Budget, ClientProfile, LoraPair, ModuleSpec
from hellora.experiments import registry
from hellora.methods.allocators.everything import Everything
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.server_optimizers.average import Average
from hellora.methods.strategies import Method
from hellora.server.backend import Backend, Order
from hellora.server.federation import Federation
from hellora.server.rounds import federate

SIDE, MAX_RANK = 40, 16
RANKS = (2, 2, 2, 4, 4, 8, 16, 16)
ROUNDS, STEPS, LR = 60, 15, 0.08
SPEC = AdapterSpec((ModuleSpec("matrix", 0, SIDE, SIDE),), ("layer",), MAX_RANK, scale=1.0)

# A name, a dispatcher and an aggregator of the registry.
METHODS = (
    ("zero padding, SVD at clients", "svd", "zero_pad"),
    ("zero padding", "truncate", "zero_pad"),
    ("RBLA", "truncate", "participant_mean"),
    ("FlexLoRA", "truncate", "product_svd"),
    ("raFLoRA", "truncate", "rank_partition"),
    ("update form", "truncate", "product_update"),
    ("update form, folded", "whole", "product_update"),
    ("FLoRA", "truncate", "stack"),
    ("FedEx-LoRA, folded", "whole", "residual"),
)


@dataclass(frozen=True)
class Outcome:
    error: float  # relative distance to the mean target
    beyond_2: float  # share of energy beyond rank 2
    beyond_8: float


def targets(seed: int) -> Tensor:
    """One matrix per client, (clients, SIDE, SIDE)."""
    rng = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(SIDE, SIDE, generator=rng)).Q[:, :MAX_RANK] for _ in range(2))
    common = U * torch.linspace(2.0, 0.6, MAX_RANK) @ V.T
    return common + 0.3 * SIDE**-0.5 * torch.randn(len(RANKS), SIDE, SIDE, generator=rng)


class Clients(Backend):
    """Client k descends towards its own target, on the components that it trains; what else it was sent stays.

    With `refactor` it factorises anew, by SVD, what it trained.
    """

    def __init__(self, wanted: Tensor, refactor: bool = False) -> None:
        self.wanted, self.refactor = wanted, refactor

    def clients(self) -> Sequence[ClientProfile]:
        return [ClientProfile(k, 1, Budget(rank=rank)) for k, rank in enumerate(RANKS)]

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate]:
        for task in (order.make() for order in orders):
            pair = task.adapter.pairs["matrix"]
            frozen = components(pair, ~trained_components(pair, task.trained[0], task.cut))
            own = trained_part(task.adapter, task.trained, SPEC, task.cut).pairs["matrix"]
            rest = self.wanted[task.client] - delta_weight(frozen)
            if "matrix" in task.adapter.residual:
                rest -= delta_weight(task.adapter.residual["matrix"])
            A, B = own.A, own.B
            for _ in range(STEPS):
                gradient = B @ A - rest
                A, B = A - LR * B.T @ gradient, B - LR * gradient @ A.T
            pair = LoraPair(A, B, own.scale)
            if self.refactor:
                U, S, Vh = torch.linalg.svd(B @ A)
                rank, root = own.rank, S.sqrt()
                pair = LoraPair(root[:rank, None] * Vh[:rank], U[:, :rank] * root[:rank], own.scale)
            yield ClientUpdate(task.round, task.client, 1, Adapter({"matrix": pair}))


def outcome(dispatcher: str, aggregator: str, seed: int = 0) -> Outcome:
    """Of all rounds of one method. A mean of factors with SVD dispatch stands for clients that factorise anew."""
    wanted = targets(seed)
    backend = Clients(wanted, refactor=(dispatcher, aggregator) == ("svd", "zero_pad"))
    method = Method(
        sampler=Uniform(),
        allocator=Everything(),
        dispatcher=registry.find("dispatcher", dispatcher)(),
        local_training=(),
        aggregator=registry.find("aggregator", aggregator)(),
        server_optimizer=Average(),
    )
    run = Federation(SPEC, tuple(backend.clients()), method, ROUNDS, len(RANKS), seed, TrainSettings())
    state = ServerState(0, new_adapter(SPEC, {}, seed))
    for report in federate(state, run, backend):
        state = report.state
    acting = [state.adapter.pairs["matrix"], *state.adapter.residual.values()]
    goal, got = wanted.mean(0), torch.stack([delta_weight(pair) for pair in acting]).sum(0)
    energy = thin_svd([(1.0, pair) for pair in acting]).S.square()
    shares = [float(energy[rank:].sum() / energy.sum()) for rank in (2, 8)]
    return Outcome(float((got - goal).norm() / goal.norm()), *shares)


def main() -> None:
    print(f"{'':<30}{'error':>7}{'beyond rank 2':>16}{'beyond rank 8':>16}")
    energy = torch.linalg.svdvals(targets(0).mean(0)).square()
    print(
        f"{'the mean target':<30}{0:7.3f}{energy[2:].sum() / energy.sum():16.3f}{energy[8:].sum() / energy.sum():16.3f}"
    )
    for name, dispatcher, aggregator in METHODS:
        found = outcome(dispatcher, aggregator)
        print(f"{name:<30}{found.error:7.3f}{found.beyond_2:16.3f}{found.beyond_8:16.3f}")


if __name__ == "__main__":
    main()
