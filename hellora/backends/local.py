"""The fast in-process loop, and the same loop spread over processes. Results do not depend on how many there are."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Self

import torch
from torch.multiprocessing import get_context

from hellora.backends.wire import as_received, pack_answer, pack_task, read_answer, unpack_task
from hellora.client import ClientWork
from hellora.protocols import Backend
from hellora.types import ClientFailure, ClientProfile, ClientTask, ClientUpdate, WireFormat


class LocalBackend(Backend):
    """Clients trained one after the other in this process (`workers=1`), or by `workers` processes side by side.

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

    def train(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        if not self.pool:
            for task in tasks:
                yield self.answer(task)
            return
        waiting = sorted(tasks, key=lambda task: self.work.size(task.client))  # the longest starts first
        busy: dict[Connection, tuple[int, ClientTask]] = {}
        idle = list(range(len(self.pool)))
        while waiting or busy:
            while waiting and idle:
                slot, task = idle.pop(0), waiting.pop()
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
        """What a client trained in this process answers, rounded as on a wire."""
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
    """One spawned process that trains the tasks it is sent."""

    def __init__(self, work: ClientWork, device: str, format: WireFormat) -> None:
        context = get_context("spawn")
        self.device, self.format = device, format
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, work, device, torch.get_num_threads(), format), daemon=True
        )
        self.process.start()
        theirs.close()

    def send(self, task: ClientTask) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: reading the answer finds that out
            self.connection.send_bytes(pack_task(task, self.format))

    def stop(self) -> int | None:
        """End the process; its exit status where it had ended by itself."""
        self.connection.close()
        self.process.join(timeout=10)  # an interpreter takes a second or two to end
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
        return status


def serve(connection: Connection, work: ClientWork, device: str, threads: int, format: WireFormat) -> None:
    """The life of a worker process: until the other end is closed, train what arrives."""
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
