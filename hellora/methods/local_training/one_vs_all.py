"""One against all others, as in OvA-LP (arXiv 2511.05028): each class is a question of its own, yes or no.

    loss = Σ_c BCE(σ(z_c), [y = c])       in place of       CE(softmax(z), y)

The binary losses do not compete: a class that a client lacks gets the answer "no" for each example, and what the others
answer does not depend on it. OvA-LP trains the head alone on a frozen network; here the rule goes with any row.

Predictions are the class of the largest logit, as ever. The loss of an evaluation is that of the task, the
cross-entropy of the softmax over the same logits: it compares runs with each other, and is neither what was minimised
here nor comparable with the loss that clients report, which is a sum over classes. As the logits are not trained to
make a softmax, accuracy says more.
"""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from hellora.core.exchange import Outputs
from hellora.methods.demands import CLASSES, REPLACES_LOSS, Demands
from hellora.methods.local import Local
from hellora.methods.strategies import LocalTraining


@dataclass(frozen=True)
class OneVsAll(LocalTraining):
    """Takes the sum over classes of binary losses in place of the cross-entropy of the softmax."""

    @property
    def demands(self) -> Demands:
        return Demands(needs=frozenset({CLASSES}), takes=frozenset({REPLACES_LOSS}))

    def outputs(self, local: Local, outputs: Outputs) -> Outputs:
        if outputs.logits is None or outputs.labels is None:
            raise ValueError("one_vs_all needs a task that tells logits and labels")
        logits, labels = outputs.logits.float(), outputs.labels
        has_class = labels >= 0
        targets = torch.zeros_like(logits).scatter_(1, labels.clamp(min=0)[:, None], 1.0)
        losses = binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
        return replace(outputs, loss_sums=torch.where(has_class, losses, 0.0))
