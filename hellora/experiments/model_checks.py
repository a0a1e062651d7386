"""Find out before a run whether the model bears what is asked of its blocks, so that no client is the first to know."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hellora.client.evaluation import autocast, to_device
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import Policy
from hellora.core.types import Adapter, Mask
from hellora.model.resident import BaseModel
from hellora.tasks import Task

ADVICE = "choose another dispatcher or model"


def bypass_check(base: BaseModel, kind: Task, rows: Any) -> None:
    """Raise InputError unless the model works with blocks left out. T5's hand each other more than hidden states."""
    nothing = np.zeros((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    says = "method.dispatcher leaves blocks out, and this model"
    with torch.no_grad():
        if (layer := handed_on(base, kind, rows)) is not None:
            raise InputError(f"{says}'s hand each other more than hidden states ({layer} does): {ADVICE}")
        try:
            step(base, kind, rows, nothing, bypass=True)
        except Exception as error:  # whatever a model's code raises
            raise InputError(f"{says} does not work without ({in_one_line(error)}): {ADVICE}") from error
    if not hears_its_first(base, kind, rows):
        raise InputError(
            f"{says}'s decoder does not hear its encoder without its own, so that who trains none of them learns "
            f"nothing: {ADVICE}"
        )


def hears_its_first(base: BaseModel, kind: Task, rows: Any) -> bool:
    """Say whether the loss depends on the first layer where all others are left out."""
    row, head = np.zeros((base.spec.num_layers, base.spec.max_rank), dtype=bool), base.initial_head()
    row[0] = True
    pairs = {n: p for n, p in new_adapter(base.spec, head, 0).pairs.items() if base.spec.layer_of[n] == 0}
    with base.adapted(Adapter(pairs, head), row, bypass=True):
        return forward(base, kind, rows).requires_grad


def handed_on(base: BaseModel, kind: Task, rows: Any) -> str | None:
    """Name the block that makes, besides hidden states, what a later block is given; None if there is none."""
    made: dict[int, tuple[Tensor, str]] = {}  # by identity; the tensor stays alive, so that no other one gets it
    found: list[str] = []

    def begins(_block: nn.Module, inputs: Any, named: Any) -> None:
        found.extend(made[id(given)][1] for given in tree_leaves((inputs, named)) if id(given) in made)

    def ends(block: nn.Module, inputs: Any, named: Any, answer: Any) -> None:
        given = {id(leaf) for leaf in tree_leaves((inputs, named))}
        others = tree_leaves(answer[1:]) if isinstance(answer, tuple) else []
        made.update({id(t): (t, names[block]) for t in others if isinstance(t, Tensor) and id(t) not in given})

    names = {base.net.get_submodule(name): name for name in base.spec.layers}
    hooks = [block.register_forward_pre_hook(begins, with_kwargs=True) for block in names]
    hooks += [block.register_forward_hook(ends, with_kwargs=True) for block in names]
    try:
        forward(base, kind, rows)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def recompute_check(base: BaseModel, kind: Task, rows: Any, policy: Policy) -> None:
    """Raise InputError unless blocks can be run again in backward, where the policy of all clients asks for it."""
    if policy.recompute == "none":
        return
    lowest = np.zeros((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    lowest[0] = True
    try:
        step(base, kind, rows, lowest, policy=policy)
    except Exception as error:  # whatever a model's code raises
        raise InputError(
            f"policy.use: recompute_{policy.recompute} does not work with this model ({in_one_line(error)}): leave it "
            f"out"
        ) from error


def targets_check(base: BaseModel, kind: Task, rows: Any) -> None:
    """Raise InputError where the model's code reads the weight of a module to adapt, and never calls the module (as
    Mamba's does with `dt_proj`): LoRA would do nothing there."""
    everything = np.ones((base.spec.num_layers, base.spec.max_rank), dtype=bool)
    with torch.no_grad(), base.adapted(new_adapter(base.spec, base.initial_head(), 0), everything) as adapted:
        called: set[str] = set()
        for name, module in adapted.lora.items():
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        try:
            forward(base, kind, rows)
        except Exception:  # the evaluation before the first round says why
            return
        passed_by = [n for n, module in adapted.lora.items() if "weight" in module.asked and n not in called]
    if passed_by:
        raise InputError(
            f"model.targets: this model reads the weight of {passed_by[0]} and does not call it, so that LoRA would do "
            f"nothing there: leave {passed_by[0].rpartition('.')[2]} out"
        )


def step(base: BaseModel, kind: Task, rows: Any, row: Mask, policy: Policy = Policy(), bypass: bool = False) -> None:
    """Take a step on a base that trains `row` (layers, max_rank), without an optimizer."""
    adapter = new_adapter(base.spec, base.initial_head(), 0)
    if bypass:
        adapter = Adapter({}, adapter.head)
    with base.adapted(adapter, row, policy=policy, bypass=bypass):
        loss = forward(base, kind, rows)
        if loss.requires_grad:
            torch.autograd.backward(loss)


def forward(base: BaseModel, kind: Task, rows: Any) -> Tensor:
    """Return the loss of all rows as one batch."""
    encoded = kind.encode(base, rows)
    batch = to_device(kind.collate(base, [encoded.examples[i] for i in range(len(encoded))]), base.device)
    with autocast(base, "fp32"):
        return kind.outputs(base, batch).loss_sums.sum()


def in_one_line(error: Exception) -> str:
    """Say in one line, for a person, what a model's code raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
