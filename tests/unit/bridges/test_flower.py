"""Hellora as a strategy of Flower's: clients with code of their own, on a grid without the engine."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from fake_grid import FakeGrid, Spoil
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from hellora.bridges.flower import LoraStrategy
from hellora.core.errors import InputError, RunError

pytestmark = pytest.mark.flower
LAYERS, RANK = 3, 4
CLASSES = "classifier.weight"
BUDGETS: dict[str, dict[str, Any]] = {
    "a": {"num-examples": 10, "layers": 1},
    "b": {"num-examples": 30, "layers": 2},
    "c": {"num-examples": 20},
}


def initial() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    arrays: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        arrays[name_of(layer, "A")] = torch.randn(RANK, 6, generator=generator)
        arrays[name_of(layer, "B")] = torch.randn(5, RANK, generator=generator)
    return arrays | {CLASSES: torch.randn(2, 5, generator=generator)}


def name_of(layer: int, factor: str) -> str:
    return f"net.layer.{layer}.query.lora_{factor}.default.weight"


def app_with(budgets: Mapping[str, Mapping[str, Any]]) -> ClientApp:
    """Clients that add to each array what nobody else adds: a thousandth of their examples."""
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        name = str(context.node_config["name"])
        return Message(RecordDict({"budget": ConfigRecord({"name": name, **budgets[name]})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        examples = budgets[str(context.node_config["name"])]["num-examples"]
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        names = message.content.config_records["config"]["train"]
        trained = ArrayRecord({name: arrays[name] + examples / 1000 for name in names})
        return Message(
            RecordDict({"found": trained, "of": MetricRecord({"num-examples": examples, "loss": examples / 10})}),
            reply_to=message,
        )

    return app


def grid_of(budgets: Mapping[str, Mapping[str, Any]], spoil: Spoil = lambda _, answer: answer) -> FakeGrid:
    """Nodes in another order than that of their names."""
    configs = {node: {"name": name} for node, name in enumerate(sorted(budgets, reverse=True), 40)}
    return FakeGrid(configs, app_with(budgets), spoil)


def tasks_of(grid: FakeGrid) -> list[dict[str, RecordDict]]:
    """What clients were sent in each round, by name."""
    rounds: dict[int, dict[str, RecordDict]] = {}
    for message in grid.asked:
        if message.metadata.message_type == "train":
            number = int(message.content.config_records["config"]["server-round"])
            name = grid.configs[message.metadata.dst_node_id]["name"]
            rounds.setdefault(number, {})[name] = message.content
    return [rounds[number] for number in sorted(rounds)]


def strategy_of(source: str, log: Callable[[str], None] = lambda _: None, **settings: Any) -> LoraStrategy:
    changes = {name.replace("__", "."): value for name, value in settings.items()}
    return LoraStrategy(source, {"cohort": 3, **changes}, clients=3, log=log)


def arrays_of(record: ArrayRecord) -> dict[str, Tensor]:
    return dict(record.to_torch_state_dict())


def test_each_client_trains_its_layers_and_each_array_is_the_mean_of_who_trained_it() -> None:
    grid, seen = grid_of(BUDGETS), []
    result = strategy_of("random_layers").start(
        grid,
        ArrayRecord(initial()),
        num_rounds=1,
        train_config=ConfigRecord({"lr": 0.5}),
        evaluate_fn=lambda number, arrays: seen.append((number, len(arrays))),
    )
    ((tasks),) = tasks_of(grid)
    assert list(tasks) == ["a", "b", "c"]
    trained = {name: set(content.config_records["config"]["train"]) for name, content in tasks.items()}
    assert {name: len(names) for name, names in trained.items()} == {"a": 2 + 1, "b": 4 + 1, "c": 6 + 1}
    for content in tasks.values():
        assert content.config_records["config"]["lr"] == 0.5
        assert arrays_of(content.array_records["arrays"]).keys() == initial().keys()
    found = arrays_of(result.arrays)
    assert list(found) == list(initial())
    for name, before in initial().items():
        who = [BUDGETS[client]["num-examples"] for client, names in trained.items() if name in names]
        mean = sum(n * (before.double() + n / 1000) for n in who) / sum(who)
        torch.testing.assert_close(found[name], mean.float(), rtol=0, atol=1e-6)
    assert seen == [(0, 7), (1, 7)]
    metrics = result.train_metrics_clientapp[1]
    assert metrics["num-updates"] == 3
    assert metrics["loss"] == pytest.approx((10 * 1 + 30 * 3 + 20 * 2) / 60)


def test_the_next_round_begins_where_the_last_one_ended() -> None:
    grid = grid_of(BUDGETS)
    result = strategy_of("random_layers").start(grid, ArrayRecord(initial()), num_rounds=2)
    first, second = tasks_of(grid)
    begun = arrays_of(second["c"].array_records["arrays"])
    assert not torch.equal(begun[CLASSES], initial()[CLASSES])
    assert any(
        first[name].config_records["config"]["train"] != second[name].config_records["config"]["train"] for name in "ab"
    )
    again = strategy_of("random_layers").start(grid_of(BUDGETS), ArrayRecord(initial()), num_rounds=2)
    assert all(torch.equal(value, arrays_of(again.arrays)[name]) for name, value in arrays_of(result.arrays).items())


def test_clients_of_smaller_rank_are_sent_arrays_of_their_rank() -> None:
    ranks = {name: {"num-examples": 10, "rank": rank} for name, rank in {"a": 1, "b": 2, "c": 4}.items()}
    grid = grid_of(ranks)
    result = strategy_of("flexlora").start(grid, ArrayRecord(initial()), num_rounds=2)
    for tasks in tasks_of(grid):
        for name, content in tasks.items():
            sent = arrays_of(content.array_records["arrays"])
            assert sent[name_of(2, "A")].shape == (ranks[name]["rank"], 6)
            assert sent[name_of(2, "B")].shape == (5, ranks[name]["rank"])
    assert arrays_of(result.arrays)[name_of(0, "A")].shape == (RANK, 6)


def test_a_factor_that_is_not_trained_does_not_travel_back() -> None:
    grid = grid_of(BUDGETS)
    result = strategy_of("ffa_lora").start(grid, ArrayRecord(initial()), num_rounds=1)
    for content in tasks_of(grid)[0].values():
        assert not [name for name in content.config_records["config"]["train"] if "lora_A" in name]
    found = arrays_of(result.arrays)
    assert torch.equal(found[name_of(1, "A")], initial()[name_of(1, "A")])
    assert not torch.equal(found[name_of(2, "B")], initial()[name_of(2, "B")])


def changed(answer: Message, change: Callable[[RecordDict], None]) -> Message:
    change(answer.content)
    return answer


def put(name: str, value: Tensor) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content.array_records["found"][name] = Array(value.numpy())

    return change


BAD: dict[str, tuple[Callable[[RecordDict], Any], str]] = {
    "unknown": (put("other", torch.ones(1)), "array other is not asked for"),
    "absent": (lambda content: content.array_records["found"].pop(CLASSES), f"array {CLASSES} is absent"),
    "shape": (put(CLASSES, torch.ones(1, 5)), f"head.{CLASSES} is torch.float32 (1, 5), expected torch.float32 (2, 5)"),
    "nan": (put(CLASSES, torch.full((2, 5), np.nan)), f"head.{CLASSES} has nan or infinite values"),
    "empty": (lambda content: content.pop("of"), "it must have one ArrayRecord and one MetricRecord"),
    "examples": (lambda content: content.metric_records["of"].pop("num-examples"), "trained on 0 examples"),
    "more": (lambda content: content.metric_records["of"].update({"num-examples": 99}), "99 examples, but it has 30"),
    "large": (put("other", torch.ones(600_000)), "it has 24"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_does_not_count(case: str) -> None:
    change, words = BAD[case]
    lines: list[str] = []

    def spoil(asked: Message, answer: Message) -> Message:
        bad = asked.metadata.message_type == "train" and asked.metadata.dst_node_id == 41  # which is b
        return changed(answer, change) if bad else answer

    result = strategy_of("random_layers", lines.append).start(
        grid_of(BUDGETS, spoil), ArrayRecord(initial()), num_rounds=1
    )
    assert result.train_metrics_clientapp[1]["num-updates"] == 2
    (line,) = [line for line in lines if line.startswith("round 1: b is rejected: ")]
    assert words in line


def test_with_too_few_answers_the_adapter_stays_as_it_is() -> None:
    lines: list[str] = []

    def spoil(asked: Message, answer: Message) -> Message:
        if asked.metadata.message_type == "train" and asked.metadata.dst_node_id != 40:
            return Message(Error(code=7, reason="out of memory"), reply_to=asked)
        return answer

    strategy = strategy_of("random_layers", lines.append, min_clients=2)
    result = strategy.start(grid_of(BUDGETS, spoil), ArrayRecord(initial()), num_rounds=2)
    assert not result.arrays
    assert strategy.state.round == 2
    assert "round 1: a is missing: out of memory (code 7)" in lines
    assert "round 2 has too few updates, min_clients is 2: nothing changes" in lines


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"layers": 2}, "its budget has no num-examples"),
        (
            {"num-examples": 4, "memory": "2GiB"},
            "its budget has 'memory': it may have name, num-examples, layers and rank",
        ),
        ({"num-examples": 4, "layers": "many"}, "its budget cannot be: "),
    ],
)
def test_who_does_not_say_what_it_can_afford_does_not_take_part(budget: dict[str, Any], words: str) -> None:
    lines: list[str] = []
    grid = grid_of(BUDGETS | {"d": budget})
    strategy_of("random_layers", lines.append).start(grid, ArrayRecord(initial()), num_rounds=1)
    assert [line for line in lines if line.startswith("node 40 did not join: ") and words in line]
    assert list(tasks_of(grid)[0]) == ["a", "b", "c"]


def test_layers_are_scored_by_a_function_of_the_apps() -> None:
    scored = []

    def layer_scores(arrays: ArrayRecord) -> list[float]:
        scored.append(len(arrays))
        return [1.0, 2.0, 9.0]

    settings = {"cohort": 3, "method.warmup": 0}
    with pytest.raises(InputError, match=r"fed_hello: method\.allocator = .* scores layers: give layer_scores"):
        LoraStrategy("fed_hello", settings, clients=3)
    LoraStrategy("fed_hello", settings, clients=3, layer_scores=layer_scores, log=lambda _: None).start(
        grid_of(BUDGETS), ArrayRecord(initial()), num_rounds=1
    )
    assert scored == [7]
    wrong = LoraStrategy("fed_hello", settings, clients=3, layer_scores=lambda _: [1.0], log=lambda _: None)
    with pytest.raises(RunError, match=r"layer_scores gave .* a number for each of"):
        wrong.start(grid_of(BUDGETS), ArrayRecord(initial()), num_rounds=1)


@pytest.mark.parametrize(
    ("source", "settings", "words"),
    [
        ("hetlora", {}, "method.local_training has hetlora"),
        ("ridge_head", {}, "method.start = 'ridge' sums features"),
        ("fedsa_lora", {}, "keep a part at clients"),
        ("flora", {}, "method.aggregator = 'stack' sends more than one adapter"),
        ("helora_kd", {}, "method.aggregator = 'mutual_distillation' sends more than one adapter"),
        ("fedra", {}, "method.dispatcher = 'bypass' leaves blocks out"),
        ("random_layers", {"method.allocator": "budget_value"}, "plans bytes and seconds"),
        ("random_layers", {"wire.format": "int8"}, "wire.format = 'int8' rounds what travels"),
    ],
)
def test_what_takes_more_than_a_clients_training_is_refused(source: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]+$") as refused:
        LoraStrategy(source, settings, clients=1)
    assert words in str(refused.value)


def test_a_part_of_an_array_is_never_asked_for() -> None:
    budgets = {name: {"num-examples": 10, "rank": 2} for name in "abc"}
    with pytest.raises(InputError, match="client 0 is to train 2 of 4 rank components of an array"):
        strategy_of("random_layers").start(grid_of(budgets), ArrayRecord(initial()), num_rounds=1)
