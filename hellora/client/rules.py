"""Apply the rules of one client's local training together: losses add up, changes of gradients follow one another, and
every named tensor has the name of its rule in front.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hellora.core.algebra import components, trained_components
from hellora.core.exchange import ClientTask, Named, Outputs, problem_with_named
from hellora.core.state import owned, select
from hellora.core.types import AdapterSpec, LoraPair
from hellora.methods.local import Local, LocalPair, Shapes, prefixed
from hellora.methods.strategies import LocalTraining, rank_shares
from hellora.model.resident import AdaptedModel, BaseModel
from hellora.tasks import Task


class Rules:
    """Rules work on a model that is lent out, each with its own view of it and what it carries along."""

    def __init__(
        self,
        rules: Sequence[LocalTraining],
        task: ClientTask,
        base: BaseModel,
        kind: Task,
        adapted: AdaptedModel,
        labels: Callable[[], Tensor | None],
    ) -> None:
        self.rules, self.rank_shares = list(rules), rank_shares(rules)
        self.learned = partial(kind.learned, labels=labels() if kind.own_loss else None)
        shapes = shapes_of(task, base)
        self.declared = prefixed({rule.name: rule.declares(shapes) for rule in self.rules})
        if reason := problem_with_named(task.brief, self.declared.brief, "the server's brief"):
            raise ValueError(reason)
        pairs = received_pairs(task, adapted, base.spec)
        head = {name: parameter for name, parameter in adapted.head.items() if parameter.requires_grad}
        self.locals = [
            Local(
                shapes=shapes,
                train=task.train,
                pairs=pairs,
                head=head,
                received_head={name: task.adapter.head[name].to(base.device) for name in head},
                brief={name: tensor.to(base.device) for name, tensor in select(task.brief, rule.name).items()},
                kept=select(task.kept, rule.name),
                labels=labels,
            )
            for rule in self.rules
        ]
        self.carries: list[Any] = [rule.begin(local) for rule, local in self.each()]

    def each(self) -> list[tuple[LocalTraining, Local]]:
        return list(zip(self.rules, self.locals, strict=True))

    def outputs(self, outputs: Outputs) -> Outputs:
        """Return the outputs of a forward pass with the losses that the task, and then the rules, make of them."""
        outputs = self.learned(outputs)
        for rule, local in self.each():
            outputs = rule.outputs(local, outputs)
        return outputs

    def change_gradients(self) -> None:
        """Add the gradients of all penalties, then let each rule change what has come together."""
        for rule, local in self.each():
            if (penalty := rule.penalty(local)) is not None:
                torch.autograd.backward(penalty)
        self.carries = [
            rule.gradients(local, carry) for (rule, local), carry in zip(self.each(), self.carries, strict=True)
        ]

    def stepped(self, loss: float, weight: float, share: float) -> None:
        """Count a step, with the sum of its losses, how many examples (or supervised tokens) they were of, and its
        share of the learning rate."""
        for local in self.locals:
            local.stepped(loss, weight, share)

    @torch.no_grad()
    def end(self) -> tuple[Named, Named]:
        """End the training of all rules, and return their (report, kept), on the CPU.

        Raises:
            ValueError: a rule returned what it did not declare.
        """
        report: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        for (rule, local), carry in zip(self.each(), self.carries, strict=True):
            told, keeps = rule.end(local, carry)
            report |= owned(on_cpu(told), rule.name)
            kept |= owned(on_cpu(keeps), rule.name)
        for what, tensors, declared in (
            ("report", report, self.declared.report),
            ("kept tensor", kept, self.declared.kept),
        ):
            if reason := problem_with_named(tensors, declared, what):
                raise ValueError(reason)
        return report, kept


def on_cpu(tensors: Named) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


def shapes_of(task: ClientTask, base: BaseModel) -> Shapes:
    """Describe the task as rules may know it before it is made."""
    head = {} if task.head == "frozen" else task.adapter.head
    return Shapes(base.spec, task.trained, task.factors, {name: tuple(t.shape) for name, t in head.items()})


def received_pairs(task: ClientTask, adapted: AdaptedModel, spec: AdapterSpec) -> Mapping[str, LocalPair]:
    """Return what trains, and how to find out what it was when training began."""

    def received(name: str) -> LoraPair:
        pair, row = task.adapter.pairs[name], task.trained[spec.layer_of[name]]
        part = components(pair, trained_components(pair, row, task.cut))
        device = adapted.lora[name].A.device
        return LoraPair(part.A.to(device), part.B.to(device), part.scale)

    return {
        name: LocalPair(module.A, module.B, module.scale, partial(received, name))
        for name, module in adapted.lora.items()
    }
