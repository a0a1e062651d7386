"""Predicted against measured memory of training: `python benchmarks/memory.py --check` (25 minutes on 2 busy cores).

Random rows under random policies on a vision transformer, MiniLM and decoders of three vocabularies, all but MiniLM
with random weights, plainly and with rules of local training that hold named tensors. The prediction is
`CostModel.peak_bytes`, from the model's config alone. The measurement is two steps of `train_client` on full batches,
in a process of its own for each model: by the resident memory of the process as `train_client` reports it, and by the
bytes of all storages of tensors (`tracing.HeldBytes`). The process first takes the step on nothing that every client
process of hellora takes (`ClientWork.warm_up`), and two steps on one example in bf16 and with int8. Each row is then
trained twice by resident memory. The first time holds what libraries read or set up for it besides: kernels that the
processor's bf16 needs, and their buffers, stay. Gates: the error against resident memory is at most 3 % in the median,
10 % at worst, the second time. Batches are tensors of zeros, so that no decoder of images and no tokenizer takes part.
Then 200 random clients with random budgets get a row from a random allocator, through the planner, and take two real
steps under the policy that it chose. Gate: none holds or sends more than its budget. Their tensors are counted, for a
model so small that the libraries would hide them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hellora.budgets.cost import CostModel, Work
from hellora.budgets.planner import USES, Planner
from hellora.client.train import train_client
from hellora.client.work import ClientWork
from hellora.core.algebra import new_adapter
from hellora.core.errors import InputError
from hellora.core.exchange import ClientTask, Policy, TrainSettings
from hellora.core.types import Adapter, Budget, ClientProfile, Mask, Ranks
from hellora.costing.calibration import calibrate
from hellora.costing.traced_rows import Shape
from hellora.costing.tracing import HeldBytes
from hellora.experiments.budget_plan import Blank
from hellora.experiments.planning import EqualScores
from hellora.experiments.registry import find, names
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.allocators.everything import Everything
from hellora.methods.context import RoundContext, Scores
from hellora.methods.dispatchers.bypass import Bypass
from hellora.methods.dispatchers.truncate import Truncate
from hellora.methods.dispatchers.whole import Whole
from hellora.methods.local import Shapes, prefixed
from hellora.methods.local_training.fed_prox import FedProx
from hellora.methods.local_training.scaffold import Scaffold
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.server_optimizers.average import Average
from hellora.methods.strategies import Dispatcher, LocalTraining, Method
from hellora.model.location import resolve_name
from hellora.model.resident import BaseModel
from hellora.model.settings import ModelSettings
from hellora.tasks import Task
from hellora.tasks.causal_lm import CausalLM
from hellora.tasks.image_classification import ImageClassification
from hellora.tasks.sequence_classification import SequenceClassification

LABELS, RANK, STEPS = ("a", "b", "c", "d"), 8, 2
DISPATCHERS: dict[str, Dispatcher] = {"whole": Whole(), "truncate": Truncate(), "bypass": Bypass()}
Rules = tuple[LocalTraining, ...]
RULES: dict[str, Rules] = {"plain": (), "fed_prox": (FedProx(form="product"),), "scaffold": (Scaffold(),)}
QWEN = {"Qwen 32k": 32 * 2**10, "Qwen 128k": 128 * 2**10}  # by the size of the vocabulary
ORDER = ("plain", "fed_prox", "plain", "scaffold", "plain")  # of the rows


@dataclass(frozen=True)
class RandomScores(EqualScores):
    """In the place of a lent model: layers score at random."""

    def layer_scores(self, adapter: Adapter) -> Scores:
        return np.random.default_rng(3).random(self.spec.num_layers)


POLICIES = (
    Policy(),
    Policy(recompute="frozen"),
    Policy(recompute="all"),
    Policy(micro_batch=2),
    Policy(merge=False),
    Policy(int8_activations=True),
    Policy(bf16=True),
    Policy(prefix_cache="memory"),
    Policy(recompute="all", micro_batch=1, merge=False),
    Policy(recompute="frozen", int8_activations=True),
    Policy(recompute="all", int8_activations=True, bf16=True, micro_batch=2),
    Policy(recompute="frozen", prefix_cache="memory", bf16=True),
)
WARM_UP = (Policy(bf16=True), Policy(int8_activations=True, recompute="all"))
MEDIAN, WORST = 0.03, 0.10  # of the error against resident memory
TRIALS = 200


@dataclass(frozen=True)
class Subject:
    """A model, its task and its largest batch."""

    name: str
    task: Task
    shape: Shape
    rows: int = 1000  # at most: large ones take long

    def folder(self, parent: Path) -> str:
        """A folder with its weights; drawn at random unless it is MiniLM."""
        torch.manual_seed(0)
        folder = parent / self.name
        if self.name == "ViT":
            vit = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
            ViTForImageClassification(vit).save_pretrained(folder)
            ViTImageProcessor().save_pretrained(folder)
        elif self.name == "Llama":
            llama = LlamaConfig(
                vocab_size=8192,
                hidden_size=512,
                num_hidden_layers=8,
                num_attention_heads=8,
                num_key_value_heads=4,
                intermediate_size=1376,
            )
            LlamaForCausalLM(llama).save_pretrained(folder)
            AutoTokenizer.from_pretrained(resolve_name("minilm")).save_pretrained(folder)
        elif self.name in QWEN:
            qwen = Qwen2Config(  # Qwen2.5-0.5B, with 4 of its 24 layers
                vocab_size=QWEN[self.name],
                hidden_size=896,
                num_hidden_layers=4,
                num_attention_heads=14,
                num_key_value_heads=2,
                intermediate_size=4864,
                tie_word_embeddings=True,
            )
            Qwen2ForCausalLM(qwen).save_pretrained(folder)
            AutoTokenizer.from_pretrained(resolve_name("minilm")).save_pretrained(folder)
        elif self.name == "small BERT":
            bert = BertConfig(
                vocab_size=1024, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, intermediate_size=256
            )
            BertModel(bert).save_pretrained(folder)
            AutoTokenizer.from_pretrained(resolve_name("minilm")).save_pretrained(folder)
        else:
            return "minilm"
        return str(folder)

    def load(self, name: str, weights: bool = True) -> BaseModel:
        return self.task.load(ModelSettings(name=name, rank=RANK), LABELS, seed=0, weights=weights)

    def cost(self, name: str, dispatcher: Dispatcher, train: TrainSettings, rules: Rules = ()) -> CostModel:
        method = Method(
            sampler=Uniform(),
            allocator=Everything(),
            dispatcher=dispatcher,
            local_training=rules,
            aggregator=ParticipantMean(),
            server_optimizer=Average(),
        )
        return calibrate(self.load(name, weights=False), self.task, self.shape, method, train)


SUBJECTS = (
    Subject("ViT", ImageClassification(), Shape(4, 1)),
    Subject("MiniLM", SequenceClassification(), Shape(8, 128)),
    Subject("Llama", CausalLM(), Shape(4, 128)),
    *(Subject(name, CausalLM(), Shape(2, 192), rows=6) for name in QWEN),
)
SMALL = Subject("small BERT", SequenceClassification(), Shape(8, 64))


@dataclass(frozen=True)
class Row:
    """One row under one policy: bytes."""

    model: str
    policy: str
    dispatcher: str
    rule: str  # of local training
    ranks: list[int]
    predicted: int
    first: int
    resident: int
    held: int

    @property
    def error_first(self) -> float:
        """Of the prediction against resident memory when such a row is trained for the first time."""
        return self.predicted / self.first - 1

    @property
    def error(self) -> float:
        """Of the prediction against resident memory."""
        return self.predicted / self.resident - 1

    @property
    def error_held(self) -> float:
        """Of the prediction against the storages of tensors."""
        return self.predicted / self.held - 1

    def __str__(self) -> str:
        mib = "".join(f"{count / 2**20:9.1f}" for count in (self.predicted, self.first, self.resident, self.held))
        errors = "".join(f"{error:8.1%}" for error in (self.error_first, self.error, self.error_held))
        ranks = "".join(map(str, self.ranks))
        return f"{self.model:<10}{mib}{errors}  {self.dispatcher:<9}{self.policy:<55}{ranks}"


@dataclass(frozen=True)
class Trial:
    """A client with a budget: bytes predicted, held and sent, and what it may."""

    allocator: str
    policy: str
    predicted: int
    held: int
    memory: int | None
    sent: int
    uplink: int | None

    @property
    def exceeded(self) -> bool:
        return (self.memory is not None and self.held > self.memory) or (
            self.uplink is not None and self.sent > self.uplink
        )

    def __str__(self) -> str:
        part = "" if self.memory is None else f"{self.held / self.memory:7.1%} of its memory"
        return f"{self.allocator:<22}{self.policy:<55}{part}{'  EXCEEDED' if self.exceeded else ''}"


# ---------------------------------------------------------------------------------------------- in a process of its own


def random_ranks(rng: np.random.Generator, layers: int) -> Ranks:
    """The whole model, a few layers, or most; of full or of mixed ranks."""
    share = rng.choice([0.25, 0.6, 1.0])
    ranks: Ranks = np.where(rng.random(layers) < share, rng.integers(1, RANK + 1, layers), 0)
    if rng.random() < 0.5:
        ranks[ranks > 0] = RANK
    if not ranks.any():
        ranks[-1] = RANK
    return ranks


def tensors_of(base: BaseModel) -> list[torch.Tensor]:
    modules = [base.net] if base.head is None else [base.net, base.head]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def client_task(
    base: BaseModel, row: Mask, policy: Policy, dispatcher: Dispatcher, train: TrainSettings, rules: Rules = ()
) -> ClientTask:
    """A task of a new adapter, with named tensors of zeros for its rules of local training."""
    adapter = new_adapter(base.spec, base.initial_head(), 0)
    context = RoundContext(round=0, rounds=1, seed=0, spec=base.spec, fleet=(), adapter=adapter)
    sent = dispatcher.sends(row, base.spec)
    shapes = Shapes(base.spec, row, "both", {name: tuple(t.shape) for name, t in adapter.head.items()})
    declared = prefixed({rule.name: rule.declares(shapes) for rule in rules})
    return ClientTask(
        round=0,
        client=0,
        seed=0,
        adapter=dispatcher.dispatch(context, adapter, row),
        trained=row,
        train=train,
        cut=sent.cut,
        bypass=sent.bypass,
        policy=policy,
        brief={name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in declared.brief.items()},
        kept={name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in declared.kept.items()},
        spare_bytes=0,
        declared=declared,
    )


def prefix_of(ranks: Ranks) -> Mask:
    return np.arange(RANK) < ranks[:, None]


def held_bytes(asked: ClientTask, base: BaseModel, task: Task, examples: int, rules: Rules = ()) -> tuple[int, int]:
    """What the tensors of training take, and what the update does."""
    named = [*asked.brief.values(), *asked.kept.values()]
    counter = HeldBytes([*tensors_of(base), *asked.adapter.tensors().values(), *named])
    with counter:
        update = train_client(asked, base, task, range(examples), rules)
    told = sum(tensor.nbytes for tensor in update.report.values())
    return base.num_bytes + asked.num_bytes + counter.peak, update.adapter.num_bytes + told


def measure_rows(subject: Subject, name: str, count: int) -> Iterator[Row]:
    train = TrainSettings(batch_size=subject.shape.examples, steps=STEPS, same_batches=True)
    costs = {
        (key, rule): subject.cost(name, dispatcher, train, rules)
        for (key, dispatcher), (rule, rules) in product(DISPATCHERS.items(), RULES.items())
    }
    base = subject.load(name)
    task = Blank(subject.task, subject.shape.tokens)
    ClientWork(base, subject.task, None, ()).warm_up()
    for policy in WARM_UP:
        whole = prefix_of(np.full(base.spec.num_layers, RANK))
        train_client(client_task(base, whole, policy, Whole(), train), base, task, [0])
    rng = np.random.default_rng(1)
    for i in range(count):
        ranks, policy = random_ranks(rng, base.spec.num_layers), POLICIES[i % len(POLICIES)]
        key = str(rng.choice(list(DISPATCHERS), p=[0.6, 0.2, 0.2]))
        if policy.prefix_cache != "none":
            ranks[: len(ranks) // 2], key = 0, "whole"
            ranks[-1] = RANK
        rule = ORDER[i % len(ORDER)]
        asked = client_task(base, prefix_of(ranks), policy, DISPATCHERS[key], train, RULES[rule])
        examples = subject.shape.examples
        predicted = costs[key, rule].peak_bytes(ranks, policy, Work(examples, examples, STEPS))
        first, resident = (
            int(train_client(asked, base, task, range(examples), RULES[rule]).metrics["peak_bytes"]) for _ in range(2)
        )
        held, _ = held_bytes(asked, base, task, examples, RULES[rule])
        yield Row(subject.name, policy.in_words, key, rule, ranks.tolist(), predicted, first, resident, held)


def random_budget(rng: np.random.Generator, cost: CostModel, examples: int) -> Budget:
    """Memory between what hardly trains anything and what trains everything; sometimes uplink or seconds besides."""
    layers = cost.spec.num_layers
    work = Work(examples, SMALL.shape.examples)
    full = np.full(layers, RANK)
    most = cost.peak_bytes(full, Policy(), work)
    memory = None if rng.random() < 0.1 else int(cost.weights_bytes + rng.random() ** 2 * (most - cost.weights_bytes))
    uplink = int(rng.random() * cost.uplink(full)) if rng.random() < 0.3 else None
    seconds = float(rng.random()) if rng.random() < 0.3 else None
    return Budget(memory_bytes=memory, uplink_bytes=uplink, seconds=seconds)


def measure_trials(name: str, count: int) -> Iterator[Trial]:
    subject, rng = SMALL, np.random.default_rng(2)
    train = TrainSettings(batch_size=subject.shape.examples, same_batches=True, epochs=2)
    costs = {key: subject.cost(name, dispatcher, train) for key, dispatcher in DISPATCHERS.items()}
    base = subject.load(name)
    task = Blank(subject.task, subject.shape.tokens)
    done = 0
    while done < count:
        key, allocator = str(rng.choice(list(DISPATCHERS))), str(rng.choice(names("allocator")))
        cost, examples = costs[key], int(rng.integers(1, 40))
        own = Policy(prefix_cache="memory") if rng.random() < 0.2 else Policy()
        may = tuple(use for use in USES if rng.random() < 0.5)
        planner = Planner(cost, train, own, may)
        budget = random_budget(rng, cost, examples)
        work = Work(examples, train.batch_size, train.epochs)
        speed = cost.operations(np.full(base.spec.num_layers, RANK), own, work) * 2
        client = ClientProfile(0, examples, budget, speed)
        context = RoundContext(
            round=int(rng.integers(9)),
            rounds=9,
            seed=int(rng.integers(99)),
            spec=base.spec,
            fleet=(client,),
            cohort=(client,),
            able=(client,),
            planner=planner,
            lent=RandomScores(base.spec),
        )
        try:
            allocation, _ = find("allocator", allocator)().allocate(context)
        except InputError:  # nothing of its kind fits
            continue
        ranks = allocation.ranks[0]
        if not ranks.any():
            continue
        planner.check((client,), allocation.mask)
        estimate = planner.estimate(client, ranks)
        assert estimate is not None
        row = allocation.mask[0]
        asked = client_task(base, row, estimate.policy, DISPATCHERS[key], train)
        held, uplink = held_bytes(asked, base, task, examples)
        yield Trial(
            allocator, estimate.policy.in_words, estimate.cost.peak_bytes, held, budget.memory_bytes, uplink,
            budget.uplink_bytes,
        )  # fmt: skip
        done += 1


def child(kind: str, name: str, count: int) -> None:
    torch.set_num_threads(1)
    subject = {subject.name: subject for subject in SUBJECTS}.get(kind)
    for found in measure_trials(name, count) if subject is None else measure_rows(subject, name, count):
        print(json.dumps(asdict(found)), flush=True)


def from_child(kind: str, name: str, count: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, __file__, "--child", kind, name, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"the process that measured {kind} ended with {process.returncode}")


# --------------------------------------------------------------------------------------------------------------- report


def summary(rows: Sequence[Row], of: str) -> dict[str, float]:
    errors = [abs(getattr(row, of)) for row in rows]
    signed = [getattr(row, of) for row in rows]
    return {"median": median(errors), "worst": max(errors), "lowest": min(signed), "highest": max(signed)}


def table(rows: Sequence[Row]) -> str:
    """Errors by model and by policy, as Markdown."""
    lines = [
        "| | rows | resident: median | worst | first time: median | worst | tensors: median | worst | at most below |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {"all": list(rows)}
    for by in ("model", "policy"):
        for row in rows:
            groups.setdefault(getattr(row, by), [])
            groups[getattr(row, by)].append(row)
    for name, group in groups.items():
        found = [summary(group, of) for of in ("error", "error_first", "error_held")]
        numbers = [each[what] for each in found for what in ("median", "worst")] + [max(0.0, -found[-1]["lowest"])]
        lines.append(f"| {name} | {len(group)} | {' | '.join(f'{number:.1%}' for number in numbers)} |")
    return "\n".join(lines)


def write(out: Path, rows: Sequence[Row], trials: Sequence[Trial], seconds: float) -> None:
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "gates": {"median": MEDIAN, "worst": WORST},
        "resident": summary(rows, "error"),
        "first": summary(rows, "error_first"),
        "tensors": summary(rows, "error_held"),
        "rows": [asdict(row) for row in rows],
        "trials": [asdict(trial) for trial in trials],
        "exceeded": sum(trial.exceeded for trial in trials),
    }
    out.write_text(json.dumps(document, indent=1) + "\n")
    words = f"""# Predicted against measured memory

Errors of the prediction, as a share of what was measured: the resident memory of the process, and the storages of its
tensors. First time: such a row was not trained before. The last column is how far a prediction was below the tensors at
most. Made by `python benchmarks/memory.py --check --out benchmarks/results/memory.json`.

{table(rows)}
"""
    if trials:
        over = sum(trial.exceeded for trial in trials)
        used = [trial.held / trial.memory for trial in trials if trial.memory is not None]
        words += (
            f"\n{len(trials)} random budgets: exceeded by {over}. Of its memory a client used {median(used):.0%} in the"
            f" median, {max(used):.1%} at most.\n"
        )
    out.with_suffix(".md").write_text(words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a gate is missed")
    parser.add_argument("--out", type=Path, help="write a JSON file here, and a table beside it")
    parser.add_argument("--rows", type=int, default=21, help="rows of each model")
    parser.add_argument("--only", choices=[subject.name for subject in SUBJECTS], help="this model alone")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], given.child[1], int(given.child[2]))
        return 0
    started = time.perf_counter()
    rows: list[Row] = []
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as parent:
        print("model     predicted    first resident  tensors (MiB)  errors")
        for subject in SUBJECTS if given.only is None else [each for each in SUBJECTS if each.name == given.only]:
            for found in from_child(subject.name, subject.folder(Path(parent)), min(given.rows, subject.rows)):
                rows.append(Row(**found))
                print(rows[-1], flush=True)
            if given.out:
                write(given.out, rows, trials, time.perf_counter() - started)
        for found in from_child(SMALL.name, SMALL.folder(Path(parent)), given.trials):
            trials.append(Trial(**found))
            print(trials[-1], flush=True)
    if given.out:
        write(given.out, rows, trials, time.perf_counter() - started)
    errors, exceeded = summary(rows, "error"), sum(trial.exceeded for trial in trials)
    print(table(rows))
    met = errors["median"] <= MEDIAN and errors["worst"] <= WORST and not exceeded
    print(f"resident: median {errors['median']:.1%}, worst {errors['worst']:.1%}; budgets exceeded: {exceeded}")
    print("ok" if met else "MISSED")
    return int(given.check and not met)


if __name__ == "__main__":
    sys.exit(main())
