"""The step that FedAdam, FedYogi and FedAdagrad share (Reddi et al., ICLR 2021, arXiv 2003.00295, Algorithm 2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from hellora.core.state import StrategyState
from hellora.core.types import Adapter, Mask
from hellora.methods.context import RoundContext
from hellora.methods.stepping import stepped


def check_adaptive(lr: float, tau: float, **betas: float) -> None:
    """Raise ValueError unless lr and tau are greater than 0 and each β, by its name, is in [0, 1)."""
    if not lr > 0 or not tau > 0:
        raise ValueError("the server's lr and tau must be greater than 0")
    if not all(0 <= beta < 1 for beta in betas.values()):
        raise ValueError(f"{' and '.join(betas)} must be in [0, 1), not {' and '.join(map(str, betas.values()))}")


def adaptive_step(
    context: RoundContext,
    aggregated: Adapter,
    trained: Mask,
    factors: frozenset[str],
    *,
    lr: float,
    beta1: float,
    tau: float,
    second: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Adapter, StrategyState]:
    """Step on the delta Δ = aggregated − adapter, and return the adapter with both moments of every number.

        m ← β₁ m + (1 − β₁) Δ        v ← second(v, Δ²)        adapter ← adapter + lr · m / (√v + τ)

    m begins at 0 and v at τ², as in the paper, without bias correction. What did not train keeps its moments.
    """
    moments = dict(context.state)

    def move(name: str, delta: Tensor, moves: Tensor) -> Tensor:
        m = moments.get(f"m/{name}", torch.zeros_like(delta))
        v = moments.get(f"v/{name}", torch.full_like(delta, tau**2))
        m = moments[f"m/{name}"] = torch.where(moves, beta1 * m + (1 - beta1) * delta, m)
        v = moments[f"v/{name}"] = torch.where(moves, second(v, delta.square()), v)
        return lr * m / (v.sqrt() + tau)

    return stepped(context, aggregated, trained, factors, move), moments
