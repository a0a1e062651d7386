"""Budgets in bytes and seconds as a person sets them: `hellora plan --model`, [fleet] memory, `compare --memory`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from tiny_models import save_t5

from hellora.core.exchange import Policy
from hellora.core.types import Mask
from hellora.costing.traced_rows import Tracer
from hellora.costing.tracing import StepTrace
from hellora.experiments.config import check
from hellora.experiments.prepare import prepare

Command = Callable[..., Any]
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
# Each policy has steps of its own to count, for the least memory, which is said with every refusal.
ONLY_PLAIN = ("--set", "policy.may=[]")


@pytest.fixture
def llama_8b(tmp_path: Path) -> Path:
    """The config of meta-llama/Llama-3.1-8B, without weights."""
    folder = tmp_path / "llama-8b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return folder


def check_refusal(answer: Any, *words: str) -> None:
    assert (answer.status, answer.err.count("\n")) == (2, 1), answer
    assert answer.err.startswith("error: ")
    for word in words:
        assert word in answer.err


@pytest.fixture(scope="module")
def peaks(unequal: dict[str, Any]) -> tuple[int, int]:
    """What training every layer plainly is predicted to take, and what training the deepest one plainly is."""
    setup = prepare(check("budgets", {**unequal, "fleet": {"memory": ["1TiB"]}}))
    planner, client = setup.federation.planner, setup.federation.fleet[0]
    assert planner is not None
    rows = np.array([[4, 4, 4, 4], [0, 0, 0, 4]])
    whole, deepest = (planner.model.peak_bytes(row, planner.policy, planner.work(client)) for row in rows)
    return whole, deepest


def written(path: Path, table: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(table))
    return path


# ---------------------------------------------------------------------------------------------- a plan without weights


def test_a_model_of_8_billion_is_planned_from_its_config(hellora: Command, llama_8b: Path) -> None:
    answer = hellora(
        *("plan", "--model", llama_8b, "--memory", "24GiB", "--dtype", "bfloat16", "--batch", 8, "--tokens", 512)
    )
    assert (answer.status, answer.err) == (0, "")
    for pattern in ("triangle", "inverted_triangle", "bottleneck", "uniform", "budget_value"):
        (line,) = [line for line in answer.out.splitlines() if f" {pattern} " in line]
        peak = float(line.split("│")[5].split()[0])
        assert 15.0 < peak < 24.0, "GiB; the weights alone take 15"
    assert "weights 15.0 GiB in bfloat16" in answer.out
    assert "8 × 512 tokens" in answer.out


def test_a_plan_counts_few_steps(hellora: Command, llama_8b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a tenth of a second. No client recomputes here, so that its laws are never counted."""
    step, steps = Tracer.step, []

    def counted(tracer: Tracer, rows: Mask, policy: Policy, examples: int) -> StepTrace:
        steps.append((rows.any(axis=1).tolist(), policy.in_words, examples))
        return step(tracer, rows, policy, examples)

    monkeypatch.setattr(Tracer, "step", counted)
    answer = hellora(
        *("plan", "--model", llama_8b, "--memory", "24GiB", "--dtype", "bfloat16", "--batch", 16, "--tokens", 512)
    )
    assert (answer.status, answer.err) == (0, "")
    assert {(policy, examples) for _, policy, examples in steps} == {("plain", 1), ("plain", 16)}
    assert len(steps) == 10
    assert all(len(trained) == 2 for trained, _, _ in steps), "two blocks of 32"
    assert answer.out.count("micro_batch 2") == 6, "the policy of every row"
    for assumption in ("weights 15.0 GiB in bfloat16", "16 × 512 tokens", "fused kernel", "5%"):
        assert assumption in " ".join(answer.out.split())


def test_without_policies_the_shallowest_layer_decides(hellora: Command, llama_8b: Path) -> None:
    """27 GiB are 12 above the weights: only patterns from the output down find room."""
    answer = hellora(
        *("plan", "--model", llama_8b, "--memory", "27GiB", "--dtype", "bfloat16", "--batch", 4, "--tokens", 512),
        *("--set", "policy.may=[]"),
    )
    assert answer.status == 0, answer.err
    layers = {
        line.split("│")[1].strip(): int(line.split("│")[2]) for line in answer.out.splitlines() if line.count("│") > 5
    }
    assert layers["triangle"] == layers["bottleneck"] == layers["uniform"] == 0
    assert 1 <= layers["inverted_triangle"] < 32
    assert layers["budget_value"] >= layers["inverted_triangle"]


def test_what_is_measured_stands_beside_what_was_predicted(hellora: Command, tiny_bert: Path) -> None:
    answer = hellora("plan", "--model", tiny_bert, "--memory", "1GiB", "--tokens", 16, "--rank", 4, "--measure")
    assert (answer.status, answer.err) == (0, "")
    assert "measured peak" in answer.out
    assert "operations/s" in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "16"], ["fleet.memory", "'16' has no unit", "'6GiB'"]),
        (["--memory", "-6GiB"], ["fleet.memory", "'-6GiB' is no size"]),
        (["--memory", "1MiB"], ["nothing fits a client with memory 1.0 MiB", "the least that would is memory 1"]),
        (["--memory", "6GiB", "--seconds", "60"], ["seconds needs speed"]),
        (["--memory", "6GiB", "--seconds", "-1", "--speed", "1e9"], ["seconds must be greater than 0"]),
        ([*ONLY_PLAIN, "--uplink", "1KB"], ["nothing fits a client with uplink 1000 B", "uplink "]),
        ([*ONLY_PLAIN, "--seconds", "1e-9", "--speed", "1e9"], ["nothing fits a client with 1e-09 s per round"]),
        (["--memory", "6GiB", "--batch", "0"], ["batch_size must be greater than 0"]),
        (["--memory", "6GiB", "--examples", "-5"], ["--examples -5"]),
        (["--memory", "6GiB", "--device", "abacus"], ["compute.device = 'abacus'", "cpu and cuda"]),
        (["--memory", "99GiB", "--device", "cuda:77", "--measure"], ["compute.device = 'cuda:77' cannot be used here"]),
    ],
)
def test_an_absurd_budget_is_refused(hellora: Command, llama_8b: Path, arguments: list[str], words: list[str]) -> None:
    check_refusal(hellora("plan", "--model", llama_8b, "--dtype", "bfloat16", *arguments), *words)


def test_a_plan_is_of_rounds_or_of_a_budget(hellora: Command) -> None:
    check_refusal(hellora("plan"), "name a preset or experiment file, or a --model")
    check_refusal(hellora("plan", "quickstart", "--model", "minilm"), "not both")
    for option in (["--memory", "1GiB"], ["--batch", "4"], ["--rank", "16"], ["--measure"]):
        check_refusal(hellora("plan", "quickstart", *option), f"{option[0]} is of a plan with --model", "write --set")
    check_refusal(hellora("plan", "--model", "minilm", "--memory", "1GiB", "--round", "2"), "--round is of")


# ------------------------------------------------------------------------------------------------------------- a run


def test_clients_train_what_their_memory_allows(
    hellora: Command, unequal: dict[str, Any], peaks: tuple[int, int], tmp_path: Path
) -> None:
    whole, least = peaks
    sizes = [f"{size}B" for size in (int(least * 1.06), (whole + least) // 2, int(whole * 1.06))]
    table = {**unequal, "fleet": {"memory": sizes}, "policy": {"may": []}}
    answer = hellora("run", written(tmp_path / "plain.toml", table), "--out", tmp_path / "plain")
    assert (answer.status, answer.err) == (0, "")
    (line,) = map(json.loads, (tmp_path / "plain" / "rounds.jsonl").read_text().splitlines())
    trained = sorted({sum(map(bool, ranks)) for ranks in line["ranks"].values()})
    assert trained[-1] == 4
    assert len(trained) > 1, "the groups train different numbers of layers"
    assert set(line["policies"].values()) == {"plain"}
    limits = sorted(int(size[:-1]) for size in sizes)
    for client in line["clients"].values():
        assert 0 < client["predicted_peak_bytes"] <= limits[-1]
        assert client["peak_bytes"] > 0
    nothing = {**table, "fleet": {}}
    assert hellora("run", written(tmp_path / "nothing.toml", nothing), "--out", tmp_path / "nothing").status == 0
    (line,) = map(json.loads, (tmp_path / "nothing" / "rounds.jsonl").read_text().splitlines())
    assert not any("peak_bytes" in client for client in line["clients"].values()), "nothing was promised"
    costs = json.loads((tmp_path / "plain" / "costs.json").read_text())
    assert len(costs["operations"]["blocks"]) == 4
    assert np.array(costs["coefficients"][0]["blocks"]["trained"]["keep"]).shape == (4, 4), "coefficients × layers"
    summary = json.loads((tmp_path / "plain" / "summary.json").read_text())
    assert [group["memory_bytes"] for group in summary["groups"]] == limits


def test_a_policy_lets_the_weak_train_more(
    hellora: Command, unequal: dict[str, Any], peaks: tuple[int, int], tmp_path: Path
) -> None:
    whole, deepest = peaks
    fleet = {"memory": [f"{(whole + 2 * deepest) // 3}B"]}
    layers = {}
    for name, policy in (("plain", {"may": []}), ("exact", {})):
        path = written(tmp_path / f"{name}.toml", {**unequal, "fleet": fleet, "policy": policy})
        answer = hellora("run", path, "--out", tmp_path / name)
        assert answer.status == 0, answer.err
        line = json.loads((tmp_path / name / "rounds.jsonl").read_text())
        layers[name] = {sum(map(bool, ranks)) for ranks in line["ranks"].values()}
        assert ("plain" in line["policies"].values()) == (name == "plain")
    assert max(layers["plain"]) < 4
    assert layers["exact"] == {4}


def test_who_is_left_out_is_told_the_least(hellora: Command, unequal: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "one.toml", {**unequal, "cohort": 3, "fleet": {"memory": ["10KiB", "1GiB"]}})
    answer = hellora("run", path, "--out", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert "3 of the clients train nothing: nothing fits a client with memory 10.0 KiB: the least that" in answer.out


def test_a_fleet_in_which_nothing_fits_is_told_the_least(
    hellora: Command, unequal: dict[str, Any], tmp_path: Path
) -> None:
    path = written(tmp_path / "tiny.toml", {**unequal, "fleet": {"memory": ["10KiB"]}})
    check_refusal(hellora("run", path, "--out", tmp_path / "out"), "nothing fits", "memory 10.0 KiB", "the least")
    assert not (tmp_path / "out" / "rounds.jsonl").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (['fleet.memory=["6"]'], ["fleet", "'6' has no unit"]),
        (['fleet.memory=["lots"]'], ["'lots' is no size"]),
        (['fleet.memory=["1GiB", "2GiB"]'], ["layers has 3 groups, memory has 2 groups"]),
        (["fleet.seconds=[1, 2, 3]"], ["seconds needs speed"]),
        (['policy.may=["compress"]'], ["may has 'compress'", "recompute_frozen"]),
        (['policy.use=["micro_batch"]'], ["micro_batch = a number of examples", "set both"]),
        (['policy.use=["prefix_cache"]'], ["train.same_batches = true"]),
        (["fleet.layers=[]", 'fleet.memory=["1GiB"]', "method.aggregator=stack"], ["the aggregator's residual grows"]),
    ],
)
def test_budgets_that_cannot_be_are_refused(
    hellora: Command, small: Path, tmp_path: Path, settings: list[str], words: list[str]
) -> None:
    changes = [part for setting in settings for part in ("--set", setting)]
    check_refusal(hellora("run", small, *changes, "--out", tmp_path / "out"), *words)


# ------------------------------------------------------------------------------------------------------- a comparison


def test_methods_are_compared_at_equal_memory(
    hellora: Command, small: Path, peaks: tuple[int, int], tmp_path: Path
) -> None:
    whole, least = peaks
    sizes = f"{int(least * 1.06)}B,{int(whole * 1.06)}B"
    answer = hellora(
        *(
            "compare",
            small,
            "--method",
            "deep=method.allocator=everything",
            "--method",
            "random_layers=method.allocator=random_layers",
        ),
        *("--memory", sizes, "--seeds", "0", "--set", "rounds=1", "--out", tmp_path / "out"),
    )
    assert answer.status == 0, answer.out + answer.err
    assert "equal memory" in answer.out
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert all(row["values"]["peak_bytes"]["mean"] > 0 for row in table["rows"])
    groups = [name for row in table["rows"] for name in row["values"] if name.startswith("group ")]
    assert len(set(groups)) == 2
    refused = hellora(
        *("compare", small, "--method", "deep=fleet.layers=[1]", "--memory", sizes, "--out", tmp_path / "other")
    )
    check_refusal(refused, "fleet.layers is set more than once")


def test_a_quantised_base_takes_less(hellora: Command, llama_8b: Path) -> None:
    """Of 8.03 billion numbers 6.98 are in the blocks: 0.52 bytes each, not 2; the largest, 4096 × 14336, whole."""
    answer = hellora(
        *("plan", "--model", llama_8b, "--memory", "12GiB", "--dtype", "bfloat16", "--batch", 8, "--tokens", 512),
        *("--set", "model.quantization=4bit"),
    )
    assert (answer.status, answer.err) == (0, "")
    assert "weights 5.4 GiB in 4bit" in answer.out
    assert "beside" in answer.out, "nothing is merged into packed weights"


def test_a_model_whose_steps_need_values_is_measured_instead(hellora: Command, tmp_path: Path) -> None:
    answer = hellora(
        *("plan", "--model", save_t5(tmp_path / "t5"), "--memory", "400KiB", "--tokens", 16),
        *("--set", "task.head_type=own", "--set", "task.name=sequence_classification"),
    )
    assert (answer.status, answer.err) == (0, "")
    assert "measured in real steps" in answer.out
    assert "does not work with this model" not in " ".join(answer.out.split()), "blocks are run again"
    assert " budget_value " in answer.out


@pytest.mark.parametrize(
    ("format", "layers"), [("fp32", 1), pytest.param("bf16", 2, marks=pytest.mark.slow), ("int8", 4)]
)
def test_an_uplink_budget_is_of_bytes_as_they_travel(
    hellora: Command, unequal: dict[str, Any], tmp_path: Path, format: str, layers: int
) -> None:
    """A layer has 512 numbers with 16 scales, the head 99 with 4: of 2500 bytes one layer as fp32, all four as int8."""
    path, out = tmp_path / "uplink.toml", tmp_path / "out"
    table = {**unequal, "fleet": {"uplink": ["2500B"]}, "method": {"allocator": "depth_from_output"}}
    path.write_text(tomli_w.dumps({**table, "wire": {"format": format}}))
    assert hellora("run", path, "--out", out).status == 0
    line = json.loads((out / "rounds.jsonl").read_text())
    assert {sum(rank > 0 for rank in ranks) for ranks in line["ranks"].values()} == {layers}
    assert 6 * 1000 < line["uplink_bytes"] <= 6 * 2500
