"""The figures of docs/methods/: who trains what in a round of each preset, and what was measured of each.

    python benchmarks/method_figures.py                      # writes docs/figures/methods/*.svg, a few seconds

The first kind is planned by hellora from the preset itself: its allocator, its dispatcher, its factors. The second is
drawn from the tables in benchmarks/results/. A few show what strategies make of a toy. A test holds the committed files
to what this writes.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hellora.core.algebra import new_adapter
from hellora.core.exchange import ClientTask, ClientUpdate, TrainSettings
from hellora.core.state import ServerState
from hellora.core.types import Adapter, AdapterSpec, Budget, ClientProfile, LoraPair, Mask, ModuleSpec
from hellora.experiments.config import own_table, read_experiment
from hellora.experiments.planning import EqualScores, plan
from hellora.experiments.presets import presets
from hellora.methods.aggregators.clipped_mean import ClippedMean
from hellora.methods.aggregators.coordinate_median import CoordinateMedian
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.aggregators.trimmed_mean import TrimmedMean
from hellora.methods.context import RoundContext, Scores
from hellora.methods.local import Local, Shapes
from hellora.methods.local_training.fed_prox import FedProx
from hellora.methods.local_training.plain import Plain
from hellora.methods.local_training.scaffold import Scaffold
from hellora.methods.samplers.by_availability import ByAvailability
from hellora.methods.samplers.uniform import Uniform
from hellora.methods.server_optimizers.average import Average
from hellora.methods.server_optimizers.fed_adagrad import FedAdagrad
from hellora.methods.server_optimizers.fed_adam import FedAdam
from hellora.methods.server_optimizers.fed_yogi import FedYogi
from hellora.methods.strategies import LocalTraining
from hellora.server.rounds import allocate

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures" / "methods"
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 380
ROUND = 2  # its cohort has clients of each kind
TEXT, LINE = "#718096", "#94a3b8"
TEAL, ORANGE, VIOLET = "#0d9488", "#ea580c", "#8b5cf6"
FACTORS = {"both": (TEAL, "trains A and B"), "B": (ORANGE, "trains B"), "A": (VIOLET, "trains A")}

# Γ of the 6 layers of MiniLM in round 2 of `hellora run fed_hello` (seed 0), which the plan alone cannot know.
SCORES = (0.81, 0.95, 1.51, 3.36, 3.54, 3.99)


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, svg in figures().items():
        (FIGURES / name).write_text(svg)


def figures() -> dict[str, str]:
    """Every figure, by the name of its file."""
    drawn = {f"{name}.svg": picture([panel(name)]) for name in methods()}
    drawn["fed_hello.svg"] = picture(
        [
            panel("fed_hello", 1, "round 1: warm-up, probabilities by depth"),
            panel("fed_hello", 2, "round 2: probabilities by Fisher information", scores=SCORES),
        ]
    )
    drawn["rolora.svg"] = picture([panel("rolora", 2), panel("rolora", 3)])
    patterns = ("triangle", "inverted_triangle", "bottleneck", "uniform")
    drawn["geometric.svg"] = picture(
        [panel("quickstart", ROUND, p, **{"method.allocator": "geometric", "method.pattern": p}) for p in patterns]
    )
    drawn["baselines.svg"] = picture(
        [panel("quickstart", ROUND, a, **{"method.allocator": a}) for a in ("exclusive", "straggler")]
    )
    drawn["budget_value.svg"] = picture(
        [
            panel("quickstart", ROUND, "plain training", **BYTES, **{"policy.may": []}),
            panel("quickstart", ROUND, "may recompute, and split its batches", **BYTES),
        ]
    )
    drawn["robust.svg"] = one_number()
    drawn["samplers.svg"] = asked()
    drawn["closed_form.svg"] = numbers_sent()
    drawn["local_training.svg"] = pulled_apart()
    drawn["server_optimizers.svg"] = steps_of_servers()
    trec = [*table("trec"), *(row for row in table("trec_more") if row.method != "random_layers")]
    drawn["all.measured.svg"] = measured(trec, [], "random_layers")
    for name in (row.method for row in trec):
        drawn[f"{name}.measured.svg"] = measured(trec, [name], "random_layers")
    memory = table("trec_memory")
    drawn["budget_value.measured.svg"] = measured(memory, ["planner"], "random_layers")
    drawn["baselines.measured.svg"] = measured(memory, ["exclusive", "straggler"], "random_layers")
    return drawn


def methods() -> list[str]:
    """The presets that are a method on the quickstart."""
    return [name for name in presets() if own_table(name).get("base") == "quickstart"]


# ------------------------------------------------------------------------------------------------------ who trains what

LEFT, CELL, GAP, ROW = 112, 41, 3, 18  # of a panel: the labels, a cell's width, between cells, a row's height
BYTES = {  # three groups of clients with so much memory each, for `budget_value`
    "method.allocator": "budget_value",
    "fleet.layers": [],
    "fleet.memory": ["200MiB", "300MiB", "480MiB"],
}


@dataclass(frozen=True)
class Panel:
    """A round: of each client what it trains, what else it was sent, and how it is called."""

    title: str
    factors: str
    labels: Sequence[str]
    trained: Mask  # (clients, layers, max_rank)
    sent: Mask  # the same shape: what acts at the client


@dataclass(frozen=True)
class GivenScores(EqualScores):
    """In the place of a lent model: layer scores that are known already, (layers,)."""

    scores: Scores

    def layer_scores(self, adapter: Adapter) -> Scores:
        return self.scores


def round_of(adapter: Adapter, spec: AdapterSpec) -> RoundContext:
    """A round without clients, as a dispatcher or an aggregator sees it."""
    return RoundContext(round=0, rounds=1, seed=0, spec=spec, fleet=(), adapter=adapter)


def panel(
    name: str, round: int = ROUND, title: str = "", scores: Sequence[float] | None = None, **settings: Any
) -> Panel:
    """A round of a preset, as `hellora plan` reckons it; `scores` (layers,) stand for the Fisher pass."""
    experiment = read_experiment(name, settings)
    run, allocation = plan(experiment, min(round, experiment.run.rounds - 1))
    if scores is not None:
        _, allocation, _ = allocate(run, ServerState(round, Adapter({})), GivenScores(run.spec, np.array(scores)))
    global_pair = new_adapter(run.spec, {}, 0)
    clients = sorted((budget_label(run.fleet[c], run.spec), c) for c in allocation.clients)
    rows = np.array([allocation.row(c) for _, c in clients])
    context = round_of(global_pair, run.spec)
    sent = np.array([arrives(run.method.dispatcher.dispatch(context, global_pair, row), row, run.spec) for row in rows])
    labels = [f"client {c}{', ' * bool(text)}{text}" for (_, text), c in clients]
    return Panel(title or f"round {round}", run.method.factors(round), labels, rows, sent)


def budget_label(client: Any, spec: AdapterSpec) -> tuple[int, str]:
    """What a client can afford, in order and in words."""
    budget = client.budget
    if budget.memory_bytes is not None:
        return budget.memory_bytes, f"{budget.memory_bytes >> 20} MiB"
    if budget.layers is not None:
        return (layers := budget.capacity(spec.num_layers)), f"{layers} layers"
    return (0, "") if budget.rank is None else (budget.rank, f"rank {budget.rank}")


def arrives(adapter: Adapter, row: Mask, spec: AdapterSpec) -> Mask:
    """Which components of each layer a client was sent, (layers, max_rank)."""
    sent = np.zeros_like(row)
    for module in spec.modules:
        if pair := adapter.pairs.get(module.name):
            sent[module.layer] = True if pair.rank == spec.max_rank else row[module.layer]
    return sent


def picture(panels: Sequence[Panel]) -> str:
    """Clients × layers, panel below panel; within a cell a strip for each rank component."""
    parts: list[str] = []
    top = 0
    for each in panels:
        parts += [f'<g transform="translate(0 {top})">', *drawn_panel(each), "</g>"]
        top += 38 + ROW * len(each.labels)
    states = {FACTORS[p.factors] for p in panels}
    legend = [(colour, text, 1.0) for _, (colour, text) in FACTORS.items() if (colour, text) in states]
    if any((p.sent & ~p.trained).any() for p in panels):
        legend.append((LINE, "frozen, acts", 0.4))
    if any((~p.sent).any() for p in panels):
        legend.append(("none", "not sent", 1.0))
    x = 4.0
    for colour, text, opacity in legend:
        parts.append(
            f'<rect x="{x:g}" y="{top + 4}" width="12" height="10" fill="{colour}" fill-opacity="{opacity:g}" '
            f'stroke="{LINE}" stroke-width=".5"/>'
        )
        parts.append(words(x + 17, top + 13, text))
        x += 34 + 6 * len(text)
    return svg(top + 22, parts)


def drawn_panel(panel: Panel) -> Iterator[str]:
    num_layers, max_rank = panel.trained.shape[1:]
    yield words(4, 14, panel.title, weight=600)
    yield words(LEFT - 6, 29, "layer", anchor="end")
    for layer in range(num_layers):
        yield words(LEFT + layer * (CELL + GAP) + CELL / 2, 29, str(layer), anchor="middle")
    outlines, frozen, trained = "", "", ""
    for client, label in enumerate(panel.labels):
        y = 34 + ROW * client
        yield words(4, y + 12, label)
        for layer in range(num_layers):
            x, row, sent = LEFT + layer * (CELL + GAP), panel.trained[client, layer], panel.sent[client, layer]
            outlines += box(x, y, CELL)
            for start, end in runs(row):
                trained += box(x + start * CELL / max_rank, y, (end - start) * CELL / max_rank)
            for start, end in runs(sent & ~row):
                frozen += box(x + start * CELL / max_rank, y, (end - start) * CELL / max_rank)
    yield f'<path d="{frozen}" fill="{LINE}" fill-opacity=".4"/>' if frozen else ""
    yield f'<path d="{trained}" fill="{FACTORS[panel.factors][0]}"/>'
    yield f'<path d="{outlines}" fill="none" stroke="{LINE}" stroke-width=".5"/>'


def runs(row: Mask) -> Iterator[tuple[int, int]]:
    """Where `row` is True, as intervals: from, to (not included)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(int)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def box(x: float, y: float, width: float) -> str:
    height = ROW - GAP
    return f"M{x:.6g} {y:g}h{width:.3g}v{height}h-{width:.3g}z"


# ---------------------------------------------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class Row:
    """A method's mean accuracy and half of its 95 % interval."""

    method: str
    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half:.3f}"


def table(name: str, setting: str = "dirichlet") -> list[Row]:
    """The methods of a comparison in results/; those that were measured on data of their own are left out."""
    rows: Sequence[Mapping[str, Any]] = json.loads((RESULTS / name / "table.json").read_text())["rows"]
    usual = rows[0]["evaluated_on"]
    return [
        Row(row["method"], row["values"]["accuracy"]["mean"], row["values"]["accuracy"]["half"])
        for row in rows
        if row["setting"] in (setting, "base") and row["evaluated_on"] == usual
    ]


def measured(rows: Sequence[Row], shown: Sequence[str], control: str) -> str:
    """Means as dots with their intervals, cut at 0 and 1; the methods in `shown` stand out."""
    left, right, height = 106, 282, 15
    (reference,) = (row.mean for row in rows if row.method == control)

    def at(value: float) -> float:
        return left + (right - left) * min(1.0, max(0.0, value))

    ordered = sorted(rows, key=lambda row: (-row.mean, row.method))
    bottom = 12 + height * len(rows)
    parts = [
        f'<path d="M{at(reference):.4g} 8V{bottom}" stroke="{TEXT}" stroke-width=".7" stroke-dasharray="3 3"/>',
        f'<path d="M{left} {bottom}H{right}" stroke="{TEXT}" stroke-width=".7"/>',
    ]
    for place, row in enumerate(ordered):
        y = 18 + height * place
        mine = row.method in shown
        colour, weight = (ORANGE, 700) if mine else (TEXT, 400)
        low, high = at(row.mean - row.half), at(row.mean + row.half)
        parts += [
            words(left - 6, y + 4, row.method, anchor="end", weight=weight, colour=colour),
            f'<path d="M{low:.4g} {y}H{high:.4g}" stroke="{colour}" stroke-width="{2 if mine else 1}"/>',
            f'<circle cx="{at(row.mean):.4g}" cy="{y}" r="{4 if mine else 3}" fill="{colour}"/>',
            words(right + 8, y + 4, str(row), weight=weight, colour=colour),
        ]
    parts += [words(at(tick), bottom + 13, f"{tick:g}", anchor="middle") for tick in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(words(right + 8, bottom + 13, "accuracy"))
    return svg(bottom + 20, parts)


# ------------------------------------------------------------------------------------------------- one dishonest client


def one_number() -> str:
    """One number of an adapter, as seven clients returned it, one of them far off; where each aggregator puts it."""
    values = (0.1, 0.2, 0.25, 0.3, 0.35, 0.5, 4.0)
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=1, d_out=1),), ("layer",), max_rank=1, scale=1.0)
    trained = np.ones((1, 1), dtype=bool)

    def adapter(B: float) -> Adapter:
        return Adapter({"m": LoraPair(torch.ones(1, 1), torch.full((1, 1), B), 1.0)})

    tasks = [ClientTask(0, client, 0, adapter(0.0), trained, TrainSettings()) for client in range(len(values))]
    answers = [(task, ClientUpdate(0, task.client, 10, adapter(v))) for task, v in zip(tasks, values, strict=True)]
    rules = {
        "participant_mean": ParticipantMean(),
        "clipped_mean, max_norm 0.5": ClippedMean(max_norm=0.5),
        "trimmed_mean, trim 0.2": TrimmedMean(),
        "coordinate_median": CoordinateMedian(),
    }

    def at(value: float) -> float:
        return 168 + 200 * value / 4

    parts = [words(4, 22, "returned by 7 clients"), f'<path d="M{at(0):g} 18H{at(4):g}" stroke="{LINE}"/>']
    parts += [f'<circle cx="{at(v):.4g}" cy="18" r="3.5" fill="{ORANGE if v > 1 else TEXT}"/>' for v in values]
    for place, (name, rule) in enumerate(rules.items()):
        y = 40 + 20 * place
        found = float(rule.aggregate(round_of(adapter(0.0), spec), answers)[0].pairs["m"].B)
        parts += [
            words(4, y + 4, name),
            f'<path d="M{at(0):g} {y}H{at(found):.4g}" stroke="{LINE}"/>',
            f'<circle cx="{at(found):.4g}" cy="{y}" r="4.5" fill="{TEAL}"/>',
            words(at(found) + 9, y + 4, f"{found:.2f}"),
        ]
    parts += [words(at(tick), 40 + 20 * len(rules), str(tick), anchor="middle") for tick in range(5)]
    return svg(50 + 20 * len(rules), parts)


# -------------------------------------------------------------------------------- samplers, rules and server optimizers


def asked(rounds: int = 400) -> str:
    """How often each of eight clients is asked when a round asks three, by each sampler."""
    fleet = tuple(
        ClientProfile(i, 1, Budget(), availability=each)
        for i, each in enumerate((1, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.1))
    )
    spec = AdapterSpec((), ("layer",), max_rank=1, scale=1.0)
    shares = []
    for sampler in (Uniform(), ByAvailability()):
        contexts = (RoundContext(t, rounds, 0, spec, fleet, able=fleet, asked=3) for t in range(rounds))
        times = Counter(client.id for context in contexts for client in sampler.sample(context)[0])
        shares.append([times[client.id] / rounds for client in fleet])
    parts = [words(4, 14, f"share of {rounds} rounds in which a client is asked, 3 of 8 in each", weight=600)]
    for client, row in zip(fleet, zip(*shares, strict=True), strict=True):
        y = 24 + 24 * client.id
        parts.append(words(4, y + 14, f"availability {client.availability:g}"))
        for place, (share, colour) in enumerate(zip(row, (LINE, TEAL), strict=True)):
            parts.append(
                f'<rect x="110" y="{y + 10 * place}" width="{220 * share:.4g}" height="8" fill="{colour}"/>'
                + words(114 + 220 * share, y + 8 + 10 * place, f"{share:.2f}")
            )
    bottom = 24 + 24 * len(fleet)
    for x, colour, name in ((110, LINE, "uniform"), (190, TEAL, "by_availability")):
        parts += [f'<rect x="{x}" y="{bottom + 4}" width="12" height="8" fill="{colour}"/>']
        parts += [words(x + 17, bottom + 12, name)]
    return svg(bottom + 20, parts)


def numbers_sent(features: int = 384) -> str:
    """How many numbers a client sends once, by start and number of classes."""
    columns = features + 1
    sent = {
        "ridge": lambda classes: columns * (columns + 1) // 2 + columns * classes,
        "class_means": lambda classes: columns * classes,
        "fedcof": lambda classes: 2 * columns * classes,
    }
    parts = [words(4, 14, f"thousands of numbers that a client sends, of {features} features", weight=600)]
    y = 24
    for classes in (6, 77, 150):
        parts.append(words(4, y + 14, f"{classes} classes"))
        for (name, count), colour in zip(sent.items(), (TEAL, ORANGE, VIOLET), strict=True):
            width = count(classes) / 700
            parts.append(
                f'<rect x="90" y="{y + 4}" width="{width:.4g}" height="10" fill="{colour}"/>'
                + words(95 + width, y + 13, f"{name} {count(classes) / 1000:.0f}")
            )
            y += 16
        y += 8
    return svg(y + 4, parts)


def pulled_apart(rounds: int = 12) -> str:
    """One number that two clients pull to 0 and to 1, one of them eight times as hard: how far it is from where their
    losses together are least, by rule of local training."""
    rules = {"plain": Plain(), "fed_prox, mu 1": FedProx(mu=1.0), "scaffold": Scaffold()}
    found = {name: [abs(value - 1 / 9) for value in trajectory(rule, rounds)] for name, rule in rules.items()}
    return curves("distance from the best, after each round", found)


def trajectory(rule: LocalTraining, rounds: int) -> list[float]:
    """The number after each round: a head of one parameter, ten steps of 0.1 per client and round."""
    pulls = ((4.0, 0.0), (0.5, 1.0))  # of each client: how hard, and where to
    spec = AdapterSpec((), ("layer",), max_rank=1, scale=1.0)
    fleet = tuple(ClientProfile(i, 1, Budget()) for i in range(len(pulls)))
    shapes = Shapes(spec, np.zeros((1, 1), dtype=bool), head={"w": (1,)})
    train = TrainSettings(optimizer="sgd", lr=0.1, weight_decay=0.0)
    theta, state, kept, seen = torch.ones(1), {}, [{}, {}], []
    for t in range(rounds):
        context = RoundContext(t, rounds, 0, spec, fleet, able=fleet, adapter=Adapter({}, {"w": theta}), state=state)
        trained, reports = [], {}
        for client, (hard, goal) in zip(fleet, pulls, strict=True):
            weight = nn.Parameter(theta.clone())
            brief = rule.brief(context, client, shapes)
            local = Local(shapes, train, {}, {"w": weight}, {"w": theta}, brief, kept[client.id])
            carry = rule.begin(local)
            for _ in range(10):
                penalty = rule.penalty(local)
                loss = hard / 2 * (weight - goal).square().sum() + (0.0 if penalty is None else penalty)
                (weight.grad,) = torch.autograd.grad(loss, weight)
                carry = rule.gradients(local, carry)
                with torch.no_grad():
                    weight -= train.lr * weight.grad
                local.stepped()
            reports[client.id], kept[client.id] = rule.end(local, carry)
            trained.append(weight.detach())
        theta = torch.stack(trained).mean(dim=0)
        rows = {client.id: shapes.trained for client in fleet}
        state = rule.remember(replace(context, reports=reports, trained=rows))
        seen.append(float(theta))
    return seen


def steps_of_servers() -> str:
    """How far one number moves in each round, when the clients' delta is 0.1 in eight rounds and 0.01 in four more."""
    spec = AdapterSpec((), ("layer",), max_rank=1, scale=1.0)
    optimizers = {
        "average": Average(),
        "momentum 0.5": Average(momentum=0.5),
        "fed_adam, lr 0.1": FedAdam(lr=0.1),
        "fed_yogi, lr 0.1": FedYogi(lr=0.1),
        "fed_adagrad, lr 0.1": FedAdagrad(lr=0.1),
    }
    found: dict[str, list[float]] = {}
    for name, optimizer in optimizers.items():
        value, state = torch.zeros(1), {}
        for t, delta in enumerate([0.1] * 8 + [0.01] * 4):
            context = RoundContext(t, 12, 0, spec, (), adapter=Adapter({}, {"w": value}), state=state)
            aggregated = Adapter({}, {"w": value + delta})
            stepped, state = optimizer.step(context, aggregated, np.ones((1, 1), dtype=bool), frozenset("AB"))
            found.setdefault(name, []).append(float(stepped.head["w"] - value))
            value = stepped.head["w"]
    return curves("step of one number in each round", found)


def curves(title: str, series: Mapping[str, Sequence[float]]) -> str:
    """Lines over rounds, from 0 to the largest value."""
    left, right, top, bottom = 40, 370, 26, 150
    largest = max(map(max, series.values()))
    count = max(map(len, series.values()))

    def at(place: int, value: float) -> str:
        return f"{left + (right - left) * place / (count - 1):.4g} {bottom - (bottom - top) * value / largest:.4g}"

    parts = [words(4, 14, title, weight=600), f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{LINE}"/>']
    parts += [words(left - 4, bottom, "0", anchor="end"), words(left - 4, top + 8, f"{largest:.2f}", anchor="end")]
    parts += [words(left, bottom + 14, "round 0"), words(right, bottom + 14, str(count - 1), anchor="end")]
    colours = (TEXT, ORANGE, TEAL, VIOLET, "#0284c7")
    for place, ((name, values), colour) in enumerate(zip(series.items(), colours, strict=False)):
        path = "L".join(at(i, value) for i, value in enumerate(values))
        x, y = left + 165 * (place % 2), bottom + 30 + 16 * (place // 2)
        parts += [
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<path d="M{x} {y - 4}h14" stroke="{colour}" stroke-width="2"/>',
            words(x + 19, y, name),
        ]
    return svg(bottom + 36 + 16 * ((len(series) - 1) // 2), parts)


# ------------------------------------------------------------------------------------------------------------------ SVG


def words(x: float, y: float, text: str, anchor: str = "start", weight: int = 400, colour: str = TEXT) -> str:
    extra = "" if anchor == "start" else f' text-anchor="{anchor}"'
    extra += "" if weight == 400 else f' font-weight="{weight}"'
    extra += "" if colour == TEXT else f' fill="{colour}"'
    return f'<text x="{x:.4g}" y="{y:g}"{extra}>{text}</text>'


def svg(height: float, parts: Sequence[str]) -> str:
    """A picture without a background, legible on white and on black."""
    body = "\n".join(part for part in parts if part)
    return (
        f"<!-- python benchmarks/method_figures.py -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif" font-size="11" fill="{TEXT}">\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
