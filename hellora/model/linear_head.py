"""A head that can be solved in closed form is one linear module on one vector per example: the pooled features."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from hellora.core.errors import InputError
from hellora.model.resident import BaseModel


def linear_head(base: BaseModel) -> tuple[str, nn.Linear]:
    """Return the head, and what stands before its parameters' names in an adapter's head: "" or "<module>.".

    Raises:
        InputError: the head is no single linear module.
    """
    found = {"": base.head} if base.head is not None else {n: base.net.get_submodule(n) for n in base.head_modules}
    if len(found) == 1:
        ((name, module),) = found.items()
        if isinstance(module, nn.Linear):
            return f"{name}." if name else "", module
    kinds = ", ".join(f"{name} ({type(module).__name__})" for name, module in found.items()) or "none"
    raise InputError(
        f"method.start: a head is solved in closed form where it is one linear layer on pooled features, and this "
        f"model's is {kinds}: set method.start = 'none' or, for texts, task.head_type = 'mean_pooling'"
    )


@contextmanager
def head_inputs(module: nn.Linear) -> Iterator[list[Tensor]]:
    """Collect what the head is given in each forward pass: (examples, features)."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()
