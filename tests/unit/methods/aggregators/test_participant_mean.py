"""participant_mean against a slow, dense reference, and by hand."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch
from factories import aggregated, bits, random_adapter, task_for, tiny_spec, update_of
from hypothesis import given, settings

from hellora.core.exchange import ClientUpdate
from hellora.core.types import Adapter, AdapterSpec, LoraPair, ModuleSpec
from hellora.methods.aggregators.participant_mean import ParticipantMean
from hellora.methods.strategies import Answers

SPEC = tiny_spec()
GLOBAL = random_adapter(SPEC, seed=1000)


def dense_reference(answers: Answers, uniform: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Value by value in float64, from each client's whole adapter as it was before its update was cut out."""
    whole = {
        u.client: {n: t.double().numpy() for n, t in random_adapter(SPEC, u.client).tensors().items()}
        for _, u in answers
    }
    result = {name: tensor.double().numpy().copy() for name, tensor in GLOBAL.tensors().items()}
    for name, values in result.items():
        for place in np.ndindex(values.shape):
            total = weight = 0.0
            for task, update in answers:
                if not name.startswith("head."):
                    layer = int(name.split(".")[1])
                    component = place[0] if name.endswith("lora_A") else place[1]
                    if not task.trained[layer, component]:
                        continue
                w = 1 if uniform else update.num_examples
                total += w * float(whole[update.client][name][place])
                weight += w
            if weight:
                values[place] = total / weight
    return result


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@given(seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=6, derandomize=True, database=None)
def test_mixed_rows_against_the_reference(weighting: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.random((5, SPEC.num_layers, SPEC.max_rank)) < 0.5
    rows[0] = [[True], [False], [True]]  # whole layers
    rows[1] = np.arange(SPEC.max_rank) < 2  # a prefix of the rank components
    rows[2:, 1] = False
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    answers = [
        (task, update_of(task, random_adapter(SPEC, task.client), SPEC, int(rng.integers(1, 99)))) for task in tasks
    ]
    result = aggregated(ParticipantMean(weighting), GLOBAL, answers, SPEC, 0).tensors()  # type: ignore[arg-type]
    expected = dense_reference(answers, uniform=weighting == "uniform")
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result[name].numpy(), values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_by_hand() -> None:
    """Two clients of 1 and 3 examples; both train component 0, only the second trains component 1."""
    spec = AdapterSpec((ModuleSpec("m", 0, d_in=1, d_out=1),), ("layer",), max_rank=3, scale=1.0)

    def adapter(*values: float) -> Adapter:
        return Adapter({"m": LoraPair(torch.tensor([[v] for v in values]), torch.tensor([values]) * 10, 1.0)}, {})

    start = adapter(7.0, 7.0, 7.0)
    tasks = [task_for(i, start, np.array([row])) for i, row in enumerate([[True, False, False], [True, True, False]])]
    answers = [
        (task, ClientUpdate(0, i, n, values))
        for i, (task, n, values) in enumerate(zip(tasks, [1, 3], [adapter(2.0), adapter(6.0, 4.0)], strict=True))
    ]
    by_samples = aggregated(ParticipantMean(), start, answers, spec, 0).pairs["m"]
    assert by_samples.A.flatten().tolist() == [5.0, 4.0, 7.0]
    assert by_samples.B.flatten().tolist() == [50.0, 40.0, 70.0]
    assert aggregated(ParticipantMean("uniform"), start, answers, spec, 0).pairs["m"].A.flatten().tolist() == [
        4.0,
        4.0,
        7.0,
    ]


def test_a_head_that_all_send_unchanged_stays_bit_identical() -> None:
    rows = np.ones((3, SPEC.num_layers, SPEC.max_rank), dtype=bool)
    tasks = [task_for(client, GLOBAL, row) for client, row in enumerate(rows)]
    answers = [(task, update_of(task, GLOBAL, SPEC, n)) for task, n in zip(tasks, [3, 7, 101], strict=True)]
    assert bits(aggregated(ParticipantMean(), GLOBAL, answers, SPEC, 0).head) == bits(GLOBAL.head)


def test_unknown_weighting() -> None:
    with pytest.raises(ValueError, match="weighting must be one of samples, uniform, not 'steps'"):
        ParticipantMean("steps")  # type: ignore[arg-type]


def test_clients_that_count_tokens_are_weighted_by_them() -> None:
    tasks = [task_for(client, GLOBAL, np.ones((SPEC.num_layers, SPEC.max_rank), bool)) for client in (0, 1)]
    by_examples = [
        update_of(t, random_adapter(SPEC, t.client), SPEC, n) for t, n in zip(tasks, (300, 100), strict=True)
    ]
    by_tokens = [replace(u, num_examples=7, num_tokens=u.num_examples) for u in by_examples]
    results = [
        aggregated(ParticipantMean(), GLOBAL, list(zip(tasks, us, strict=True)), SPEC, 0)
        for us in (by_examples, by_tokens)
    ]
    assert bits(results[0].tensors()) == bits(results[1].tensors())
