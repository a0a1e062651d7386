"""FedAvg (McMahan et al., arXiv 1602.05629): a client descends on its own loss, and nothing else."""

from dataclasses import dataclass

from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class Plain(LocalTraining):
    """Adds nothing to the loss, and tells nothing but what was trained."""
