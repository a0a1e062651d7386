"""Run the fast in-process loop, or the same loop spread over processes. Results do not depend on their number."""

import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Self

import torch
from torch.multiprocessing import get_context

from hellora.backends.wire import as_received, pack_answer, pack_task, read_answer, unpack_task
from hellora.client.work import ClientWork
from hellora.core.exchange import ClientFailure, ClientTask, ClientUpdate, WireFormat
from hellora.core.types import ClientProfile
from hellora.server.backend import Backend, Order

MOST_SHARED = 240  # weights of a model for forks: each is a file in shared memory, and a fork is handed 251 at most


class LocalBackend(Backend):
    """This backend trains clients one after the other in this process (`workers=1`), or in `workers` processes at once.

    Each process has one resident base; on the CPU all share the same memory for its weights. A process that dies
    leaves its client missing and is replaced. Use as a context manager, so that the processes end with the run.
    """

    def __init__(
        self,
        work: ClientWork,
        profiles: Sequence[ClientProfile],
        workers: int = 1,
        devices: Sequence[str] = ("cpu",),
        format: WireFormat = "fp32",
    ) -> None:
        self.work, self.profiles, self.format = work, tuple(profiles), format
        self.pool: list[Worker] = []
        if workers > 1:
            work.base.share_memory()
            self.pool = [Worker(work, devices[i % len(devices)], format) for i in range(workers)]

    def clients(self) -> Sequence[ClientProfile]:
        return self.profiles

    def train(self, orders: Sequence[Order]) -> Iterator[ClientUpdate | ClientFailure]:
        if not self.pool:
            for order in orders:
                yield self.answer(order.make())
            return
        waiting = sorted(orders, key=lambda order: self.work.size(order.client))  # the longest starts first
        busy: dict[Connection, tuple[int, ClientTask]] = {}
        idle = list(range(len(self.pool)))
        while waiting or busy:
            while waiting and idle:
                slot, task = idle.pop(0), waiting.pop().make()
                busy[self.pool[slot].connection] = (slot, task)
                self.pool[slot].send(task)
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                slot, task = busy.pop(connection)
                try:
                    yield read_answer(connection.recv_bytes(), task, self.work.base.spec)
                except (EOFError, ConnectionResetError):
                    status = self.pool[slot].stop()
                    self.pool[slot] = Worker(self.work, self.pool[slot].device, self.format)
                    yield ClientFailure(task.client, "missing", f"its process died (exit status {status})")
                idle.append(slot)

    def answer(self, task: ClientTask) -> ClientUpdate | ClientFailure:
        """Train a client in this process, and return its answer, rounded as on a wire."""
        if self.format == "fp32":
            return self.work.attempt(task)
        received, spec = as_received(task, self.format), self.work.base.spec
        return read_answer(pack_answer(self.work.attempt(received), received, spec, self.format), task, spec)

    def close(self) -> None:
        for worker in self.pool:
            worker.connection.close()  # all of them begin to end, side by side
        for worker in self.pool:
            worker.stop()
        self.pool = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker:
    """A worker is one process of its own that trains the tasks it is sent."""

    def __init__(self, work: ClientWork, device: str, format: WireFormat) -> None:
        self.device, self.format = device, format
        weights = sum(1 for _ in work.base.net.parameters())
        if sys.platform != "linux" or device != "cpu" or weights > MOST_SHARED:
            self.start(get_context("spawn"), work)
            return
        try:
            self.start(get_context("forkserver"), work)
        except ValueError:  # buffers, and with some tasks examples, are tensors, too, and were too many
            self.start(get_context("spawn"), work)

    def start(self, context: ForkServerContext | SpawnContext, work: ClientWork) -> None:
        if isinstance(context, ForkServerContext):
            context.set_forkserver_preload([__name__, *libraries_of([work.data, *work.base.net.modules()])])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, work, self.device, torch.get_num_threads(), self.format), daemon=True
        )
        self.process.start()
        theirs.close()

    def send(self, task: ClientTask) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: reading the answer finds that out
            self.connection.send_bytes(pack_task(task, self.format))

    def stop(self) -> int | None:
        """End the process; return its exit status where it had ended by itself."""
        self.connection.close()
        self.process.join(timeout=10)  # an interpreter takes a second or two to end
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
        return status


def libraries_of(parts: Iterable[object]) -> list[str]:
    """Name the libraries' modules that workers import to read parts of their work. It takes seconds, once for all that
    are forked from a process that has them; a person's own code is not for that process.
    """
    modules = {type(part).__module__ for part in parts}
    return sorted(module for module in modules if module.startswith(("datasets.", "torch.", "transformers.")))


def serve(connection: Connection, work: ClientWork, device: str, threads: int, format: WireFormat) -> None:
    """Serve as a worker process: train what arrives until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)
    work.base.to(device)
    work.warm_up()
    while True:
        try:
            task = unpack_task(connection.recv_bytes())
            connection.send_bytes(pack_answer(work.attempt(task), task, work.base.spec, format))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
