"""Keep what the blocks below the shallowest trained one make of a batch, over a client's local epochs.

Those blocks train nothing and run in eval mode, so the same batch comes out of them the same, bit for bit. It is kept
whole: the last bits of an example's hidden states depend on how many examples and how much padding stand beside it, for
kernels sum in another order for another shape, and training with the cache has to be training without it, bit for bit.
Epochs that are dealt anew seldom have a batch twice; `TrainSettings.same_batches` makes them come again.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hellora.core.exchange import ClientTask, Policy, TrainSettings
from hellora.core.types import Mask
from hellora.model.policies import forward_replaced


class TensorStore(ABC):
    """A store keeps tensors by name, up to `limit` bytes of them. What is kept is never replaced."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self.num_bytes = limit, 0

    def put(self, name: bytes, tensor: Tensor) -> bool:
        """Keep a copy of a contiguous tensor if it fits; say whether it does."""
        fits = self.limit is None or self.num_bytes + tensor.nbytes <= self.limit
        if fits:
            self.write(name, tensor)
            self.num_bytes += tensor.nbytes
        return fits

    @abstractmethod
    def write(self, name: bytes, tensor: Tensor) -> None:
        """Keep a copy of a contiguous tensor."""

    @abstractmethod
    def get(self, name: bytes) -> Tensor | None:
        """Return a copy of what was kept, on its device; None if nothing was."""


class InMemory(TensorStore):
    """This store leaves tensors on the device where they are."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(limit)
        self.tensors: dict[bytes, Tensor] = {}

    def write(self, name: bytes, tensor: Tensor) -> None:
        self.tensors[name] = tensor.clone()

    def get(self, name: bytes) -> Tensor | None:
        found = self.tensors.get(name)
        return None if found is None else found.clone()  # the model may write into it


class OnDisk(TensorStore):
    """This store writes tensors to one file, end to end."""

    def __init__(self, file: IO[bytes], limit: int | None = None) -> None:
        super().__init__(limit)
        self.file = file
        self.places: dict[bytes, tuple[int, torch.Size, torch.dtype, torch.device]] = {}

    def write(self, name: bytes, tensor: Tensor) -> None:
        place = self.file.seek(0, 2)
        self.file.write(as_bytes(tensor.cpu()))
        self.places[name] = place, tensor.shape, tensor.dtype, tensor.device

    def get(self, name: bytes) -> Tensor | None:
        if name not in self.places:
            return None
        place, shape, dtype, device = self.places[name]
        tensor = torch.empty(shape, dtype=dtype)
        self.file.seek(place)
        self.file.readinto(as_bytes(tensor))  # type: ignore[attr-defined]  # typing.IO lacks it
        return tensor.to(device)


def as_bytes(tensor: Tensor) -> memoryview:
    """View a contiguous tensor on the CPU as bytes, without a copy."""
    return tensor.flatten().view(torch.uint8).numpy().data


@contextmanager
def store_of(policy: Policy) -> Iterator[TensorStore]:
    """Lend an empty store of the policy's kind and size.

    A store's file has no name: it is gone however the process ends.
    """
    if policy.prefix_cache == "disk":
        with TemporaryFile() as file:
            yield OnDisk(file, policy.prefix_cache_bytes)
    else:
        yield InMemory(policy.prefix_cache_bytes)


class PrefixCache:
    """A prefix cache stands before each block of a frozen prefix. A batch that came before skips them all: the last
    block answers with what it said then, the others with what they are given.

    That is right where the blocks are a chain: each runs once in a pass, in order, and gets the very tensor that the
    one before it returned; nothing but that tensor comes out of a block; and nothing before the prefix trains. No
    config says so of a model: some hand a block's output to a later one as well, run one block twice, change the tensor
    between two blocks, or have several streams. So every pass that runs the blocks is watched. Once one is otherwise
    (`chain` is then False), the blocks just run.
    """

    def __init__(self, blocks: Sequence[nn.Module], store: TensorStore) -> None:
        self.blocks, self.store = blocks, store
        self.chain = True
        self.others: dict[int, tuple[None, ...]] = {}  # of blocks that answer with a tuple: what follows the tensor
        self.name = b""  # of this batch
        self.found: Tensor | None = None  # what the prefix makes of this batch, if it is known
        self.done = 0  # else: how many blocks have run in this pass
        self.returned: Any = None  # and what the last of them returned

    @contextmanager
    def batch(self, indices: npt.NDArray[np.int64]) -> Iterator[None]:
        """Serve one forward pass over the examples `indices`."""
        self.name, self.done = indices.tobytes(), 0
        self.found = self.store.get(self.name) if self.chain else None
        yield
        self.found = self.returned = None

    def run(self, place: int, forward: Callable[..., Any], /, *rest: Any, **named: Any) -> Any:
        """Return what the block at `place` answers; `forward` is its own."""
        given = rest[0] if rest else named.get("hidden_states")
        if self.found is not None:
            returned = self.found if place == len(self.blocks) - 1 else given
            return (returned, *self.others[place]) if place in self.others else returned
        answer = forward(*rest, **named)
        if self.chain:
            self.watch(place, given, answer)
        if self.chain and self.done == len(self.blocks):
            self.store.put(self.name, self.returned)  # at once: the model may write into it
        return answer

    def watch(self, place: int, given: Any, answer: Any) -> None:
        """Find out whether the blocks are a chain."""
        # The very tensor, not an equal one: whatever a model does between two blocks would be left out from then on.
        follows = place == self.done and (place == 0 or given is self.returned)
        self.returned, *others = answer if isinstance(answer, tuple) else (answer,)
        # A gradient would flow back from here into what trains before the prefix, such as embeddings.
        constant = isinstance(self.returned, Tensor) and not self.returned.requires_grad
        # A copy of what is not contiguous has other strides, so that other kernels might read it.
        self.chain = follows and constant and self.returned.is_contiguous() and all(other is None for other in others)
        self.done += 1
        if isinstance(answer, tuple):
            self.others[place] = (None,) * len(others)


@contextmanager
def prefix_cache(net: nn.Module, task: ClientTask, layers: Sequence[str], count: int) -> Iterator[PrefixCache]:
    """Put a cache before the frozen prefix of `net`, as the task's policy asks for.

    `layers` are the network's blocks, `count` is the number of examples. The cache keeps nothing where no batch comes
    again, or where the client leaves frozen blocks out anyway. On leaving, the blocks are as they were.
    """
    policy = task.policy
    wanted = policy.prefix_cache != "none" and passes(task.train, count) > 1 and not task.bypass
    blocks = [net.get_submodule(name) for name in frozen_prefix(layers, task.trained)] if wanted else []
    places = {block: place for place, block in enumerate(blocks)}
    with store_of(policy) as store:
        cache = PrefixCache(blocks, store)
        with forward_replaced(blocks, lambda block: partial(cache.run, places[block], block.forward)):
            yield cache


def frozen_prefix(layers: Sequence[str], trained: Mask) -> Sequence[str]:
    """Return the layers below the shallowest that `trained` (layers, max_rank) trains: all, if it trains none."""
    rows = np.flatnonzero(trained.any(axis=1))
    return layers[: rows[0]] if len(rows) else layers


def passes(settings: TrainSettings, count: int) -> float:
    """Say how often training goes through its `count` examples."""
    return settings.epochs if settings.steps is None else settings.steps / math.ceil(count / settings.batch_size)
