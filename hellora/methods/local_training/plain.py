"""FedAvg (McMahan et al., arXiv 1602.05629): a client descends on its own loss, and nothing else."""

from dataclasses import dataclass

from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class Plain(LocalTraining):
    """Nothing is added to the loss, nothing is told but what was trained."""
