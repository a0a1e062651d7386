"""One measurement in a process of its own: `python measure.py KIND '{"repeat": 5, ...}'` prints one line of JSON.

overhead.py starts it, and stays small itself: a child's peak memory counts from its parent's size at the fork.
"""

import gc
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import bare_loop
import numpy as np
import torch
from turns import Partner

from hellora.client.batches import shuffled_batches
from hellora.core.seeds import seed_for
from hellora.data.partitioning import client_rows
from hellora.data.sources import load_corpus
from hellora.experiments.config import check
from hellora.experiments.experiment import Experiment
from hellora.experiments.prepare import prepare
from hellora.experiments.setup import Setup
from hellora.model.location import resolve_name
from hellora.server.backend import Backend
from hellora.server.rounds import federate

THREADS = 2
CLOCK = time.perf_counter
CLIENTS = 6  # a multiple of the three capacities and of the two workers
BATCH = 16
ROOMS = (0, 1, 4)  # of what a step holds besides the weights, beyond the least budget
RANK = 8
SMALL_CLIENTS = 10
SEED = 0

Json = dict[str, Any]
Timed = Callable[[], float]  # does its work once and returns the seconds it took


# ----------------------------------------------------------------------------------------------------- the two sides


def experiment(
    steps: int, method: Json, layers: Sequence[int] = (), workers: int = 1, memory: int | None = None
) -> Experiment:
    """A round of `steps` steps at each of the clients, all of them in the cohort."""
    table = {
        "seed": SEED,
        "rounds": 1,
        "cohort": CLIENTS,
        "model": {"name": "minilm", "rank": RANK},
        "data": {"clients": CLIENTS, "partitioner": "iid", "max_examples": CLIENTS * BATCH * steps},
        "fleet": {"layers": list(layers)} if memory is None else {"memory": [f"{memory}B"]},
        "policy": {"may": []},
        "method": method,
        "train": {"lr": 2e-3, "batch_size": BATCH},
        "compute": {"device": "cpu", "workers": workers, "threads": THREADS // workers},
    }
    return check("overhead", table)


def hellora_round(setup: Setup, backend: Backend) -> float:
    """Seconds of one federated round: allocate, dispatch, tokenise, lend, train, give back, validate, aggregate."""
    state = setup.initial_state()
    gc.collect()
    start = CLOCK()
    report = next(federate(state, setup.federation, backend, setup))
    seconds = CLOCK() - start
    steps = sum(metrics["steps"] for metrics in report.client_metrics.values())
    expected = sum(math.ceil(len(part) / BATCH) for part in setup.work.parts)
    if steps != expected or report.counted.missing or report.counted.rejected:
        raise RuntimeError(
            f"the round did {steps} steps, not {expected}; {report.counted.missing} {report.counted.rejected}"
        )
    return seconds


def bare_run(plan: Experiment) -> tuple[Timed, int]:
    """The bare loop in this process, for its peak of memory; and its number of batches."""
    given = bare_input(plan)
    name, rank = given["model"], given["rank"]
    torch.set_num_threads(THREADS)
    tokenizer, examples = bare_loop.tokenize(name, given["texts"], given["labels"], given["max_length"])
    model = bare_loop.Classifier(name, given["classes"], rank)

    def run() -> float:
        gc.collect()
        start = CLOCK()
        bare_loop.train(model, tokenizer, examples, given["batches"], given["lr"])
        return CLOCK() - start

    return run, len(given["batches"])


def bare_input(plan: Experiment) -> Json:
    """What the bare loop is given: texts, and the batches that the clients of `plan` see in round 0, one by one."""
    corpus = load_corpus(plan.data, "text", seed_for(SEED, "data"))
    parts = client_rows(plan.partitioner, corpus.train, CLIENTS, seed_for(SEED, "partition"))
    name = resolve_name("minilm")
    texts, labels, limit = list(corpus.train["text"]), list(corpus.train["label"]), plan.task.max_length
    _, examples = bare_loop.tokenize(name, texts, labels, limit)
    batches = []
    for client, part in enumerate(parts):
        lengths = torch.tensor([len(examples[row]["input_ids"]) for row in part]).numpy()
        seed = seed_for(SEED, "train", 0, client)
        batches += [part[rows].tolist() for rows in shuffled_batches(lengths, len(part), BATCH, seed, 0)]
    return {
        "model": name,
        "rank": RANK,
        "classes": len(corpus.labels),
        "texts": texts,
        "labels": labels,
        "max_length": limit,
        "batches": batches,
        "lr": plan.train.lr,
        "threads": THREADS,
        "cpu": CLOCK is time.process_time,
    }


def interleave(baseline: Timed, others: dict[str, Timed], repeat: int) -> tuple[list[float], dict[str, list[float]]]:
    """Seconds of the baseline, and each other's seconds over the mean of the baselines just before and after it."""
    for timed in (baseline, *others.values()):
        timed()  # warm-up
    seconds = [baseline()]
    ratios: dict[str, list[float]] = {name: [] for name in others}
    for _ in range(repeat):
        for name, other in others.items():
            mine = other()
            seconds.append(baseline())
            ratios[name].append(mine / ((seconds[-2] + seconds[-1]) / 2))
    return seconds, ratios


# ------------------------------------------------------------------------------------------------------- what is asked

EVERYTHING: Json = {"allocator": "everything"}
THIRDS = (2, 4, 6)  # of MiniLM's 6 layers: a third of the clients can train 2, a third 4, a third all
METHODS: tuple[tuple[str, Json, tuple[int, ...]], ...] = (
    ("everything", EVERYTHING, ()),
    ("inverted_triangle", {"allocator": "geometric", "pattern": "inverted_triangle"}, THIRDS),
    ("bottleneck", {"allocator": "geometric", "pattern": "bottleneck"}, THIRDS),
)


def time_of_methods(repeat: int, steps: int) -> Json:
    """Time of a round over time of the bare loop, for each method."""
    given = bare_input(experiment(steps, EVERYTHING))
    rounds: dict[str, Timed] = {}
    for name, method, layers in METHODS:
        setup = prepare(experiment(steps, method, layers))
        rounds[name] = partial(hellora_round, setup, setup.backend())
    with Partner(Path(__file__).with_name("bare_loop.py")) as bare:
        bare.tell(given)
        seconds, ratios = interleave(bare.turn, rounds, repeat)
    return {"ratios": ratios, "baseline_seconds": seconds, "steps": len(given["batches"])}


def serve(steps: int, room: float | None = None, once: bool = False) -> None:
    """Do a round for each line that comes, and print its seconds: how measure.py takes turns with itself.

    With `room`, every client promises bytes: the planner's least for training every layer, and `room` times what a step
    holds besides the weights on top of it. With `once`, only the first round does.
    """
    plain = prepare(experiment(steps, EVERYTHING))
    setup = plain
    if room is not None:
        setup = prepare(experiment(steps, EVERYTHING, memory=2**50))
        planner = setup.federation.planner
        assert planner is not None
        estimate = planner.estimate(setup.federation.fleet[0], np.full(setup.base.spec.num_layers, RANK))
        assert estimate is not None
        least, held = planner.needed_memory_bytes(estimate.cost), estimate.cost.peak_bytes - planner.model.weights_bytes
        setup = prepare(experiment(steps, EVERYTHING, memory=int(least + room * held)))
    torch.set_num_threads(1)  # what is compared is the memory's part; two threads wait for each other on a busy machine
    with setup.backend() as clients:
        for number, _ in enumerate(sys.stdin):
            run = plain if once and number else setup
            print(json.dumps({"seconds": hellora_round(run, clients)}), flush=True)


def time_of_promises(repeat: int, steps: int) -> Json:
    """Time of a round in which every client promises bytes over one that promises none, by the room that is left.

    `after` promised bytes in its first round, of which the time is not taken, and none from then on.
    """
    asked = {f"{room:g}": {"steps": steps, "room": room} for room in ROOMS}
    cpu = CLOCK is time.process_time
    asked["after"] = {"steps": steps, "room": ROOMS[0], "once": True}
    with ExitStack() as stack:
        partners = {
            name: stack.enter_context(Partner(Path(__file__), "serve", json.dumps({**each, "cpu": cpu})))
            for name, each in {"none": {"steps": steps}, **asked}.items()
        }
        seconds, ratios = interleave(partners["none"].turn, {name: partners[name].turn for name in asked}, repeat)
    return {"ratios": ratios, "baseline_seconds": seconds}


def time_of_workers(repeat: int, steps: int) -> Json:
    """Time of a round in one process of two threads over its time in two workers of one thread."""
    one, two = (prepare(experiment(steps, EVERYTHING, workers=workers)) for workers in (1, 2))
    with two.backend() as pair, one.backend() as alone:

        def alone_round() -> float:
            torch.set_num_threads(THREADS)
            return hellora_round(one, alone)

        def pair_round() -> float:
            torch.set_num_threads(1)
            return hellora_round(two, pair)

        seconds, ratios = interleave(pair_round, {"workers": alone_round}, repeat)
    return {"ratios": ratios, "baseline_seconds": seconds}


def time_of_small_clients(repeat: int, images: str) -> Json:
    """Time of a round of many clients that take two steps of 8 images over that of a bare loop of peft; `images` is the
    folder that has the ViT and its data."""
    folder = Path(images).resolve()
    table = {
        "seed": SEED,
        "rounds": 1,
        "cohort": SMALL_CLIENTS,
        "task": {"name": "image_classification"},
        "model": {"name": str(folder / "model_vit_cifar10_4l128"), "rank": RANK},
        "data": {"name": str(folder / "cifar100_lite"), "clients": SMALL_CLIENTS, "partitioner": "iid"},
        "method": EVERYTHING,
        "train": {"lr": 2e-3, "batch_size": 8, "steps": 2},
        "compute": {"device": "cpu", "threads": THREADS},
    }
    setup = prepare(check("overhead", table))
    clients = []
    for client, part in enumerate(setup.work.parts):
        drawn = shuffled_batches(None, len(part), 8, seed_for(SEED, "train", 0, client), 0)
        clients.append([part[rows].tolist() for rows in drawn[:2]])
    given = {
        "model": table["model"]["name"],
        "data": str(next((folder / "cifar100_lite").glob("train*.parquet"))),
        "image": "image",
        "label": setup.experiment.data.label,
        "rank": RANK,
        "targets": sorted({module.name.rpartition(".")[2] for module in setup.base.spec.modules}),
        "classes": len(setup.corpus.labels),
        "clients": clients,
        "lr": 2e-3,
        "threads": THREADS,
        "cpu": CLOCK is time.process_time,
    }
    with Partner(Path(__file__).with_name("bare_images.py")) as bare, setup.backend() as backend:
        bare.tell(given)

        def one_round() -> float:
            gc.collect()
            start = CLOCK()
            report = next(federate(setup.initial_state(), setup.federation, backend, setup))
            seconds = CLOCK() - start
            assert len(report.counted.updated) == SMALL_CLIENTS, report.counted
            return seconds

        seconds, ratios = interleave(bare.turn, {"small": one_round}, repeat)
    return {"ratios": ratios, "baseline_seconds": seconds}


def peak_of_bare(steps: int) -> Json:
    run, _ = bare_run(experiment(steps, EVERYTHING))
    run()
    return peak()


def peak_of_hellora(steps: int) -> Json:
    setup = prepare(experiment(steps, EVERYTHING))
    hellora_round(setup, setup.backend())
    return peak()


def peak_of_fleet(clients: int) -> Json:
    """Three rounds of ten of the clients, two steps each; the same data is shared out, whatever their number.

    Texts are cut to 16 tokens, so that the size of a batch does not depend on which texts a client has.
    """
    table = {
        "seed": SEED,
        "rounds": 3,
        "cohort": 10,
        "task": {"name": "sequence_classification", "max_length": 16},
        "model": {"name": "minilm", "rank": RANK},
        "data": {"clients": clients, "partitioner": "iid"},
        "method": EVERYTHING,
        "train": {"lr": 2e-3, "batch_size": 4, "steps": 2},
        "compute": {"device": "cpu", "threads": THREADS},
    }
    setup = prepare(check("overhead", table))
    for report in federate(setup.initial_state(), setup.federation, setup.backend(), setup):
        if len(report.counted.updated) != 10:
            raise RuntimeError(f"a client failed: {report.counted.missing} {report.counted.rejected}")
    return peak()


def peak() -> Json:
    """The largest resident set of this process so far, in MB."""
    scale = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes there, in KiB elsewhere
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}


KINDS: dict[str, Callable[..., Json]] = {
    "time_of_methods": time_of_methods,
    "time_of_workers": time_of_workers,
    "time_of_promises": time_of_promises,
    "time_of_small_clients": time_of_small_clients,
    "peak_of_bare": peak_of_bare,
    "peak_of_hellora": peak_of_hellora,
    "peak_of_fleet": peak_of_fleet,
}

if __name__ == "__main__":
    kind, arguments = sys.argv[1], json.loads(sys.argv[2])
    if arguments.pop("cpu", False):  # of one thread, for on a busy machine threads wait for each other
        THREADS, CLOCK = 1, time.process_time
    if kind == "serve":
        serve(**arguments)
    else:
        print(json.dumps(KINDS[kind](**arguments)))
