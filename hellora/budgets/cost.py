"""A cost model tells what a row of an allocation costs its client: bytes held, bytes sent, operations.

    peak(S) = standing + max over moments of the step
    standing  weights + copies of buffers and of weights with frozen components merged in + received adapter
              + trained parameters × (value + gradient + optimizer)
    moments   enter + Σ_{k<j} keep_k + forward_j       for every block j
              enter + Σ_k keep_k + head                from the last block to the loss
              end + Σ_k release_k + head_backward      from the loss to the gradient of the last block
              end + Σ_{k<j} release_k + backward_j     for every block j

What a block keeps depends on its part in the row. `off`: nothing below it trains, nor does it, so autograd keeps
nothing of it. `first`: it trains, and what comes in has no gradient. `frozen`: it trains nothing, and hands a gradient
down. `trained`: it does both. The shallowest trained block therefore decides most of a row's memory (Fed-HeLLo's
geometric patterns differ in it; see docs/budgets.md). Each of these terms (`tracing.py` defines them) is bilinear:

    bytes(examples n, trained rank r) = c_0 + c_1 n + (c_2 + c_3 n) r

whose coefficients are counted once per model, batch shape and precision (`calibration.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hellora.budgets.coefficients import ActivationPolicy, Floats, Part, StepCoefficients
from hellora.budgets.optimizer_states import states_in_8_bits, stepping_bytes
from hellora.core.codec import NUMBER_BYTES, SCALE_BYTES
from hellora.core.exchange import Declared, Factors, Policy, WireFormat
from hellora.core.types import AdapterSpec, Mask, Ranks, Sent

FLOAT = 4  # bytes of an adapter's number


@dataclass(frozen=True, slots=True)
class Work:
    """A client does this in a round: so many examples, in batches of so many, so often."""

    examples: int
    batch_size: int
    epochs: float = 1.0  # passes over the examples

    @property
    def batch(self) -> int:
        """Count the examples in its largest batch."""
        return max(1, min(self.batch_size, self.examples))


@dataclass(frozen=True, slots=True)
class Cost:
    """A client's round costs this."""

    peak_bytes: int  # the most that are held at once
    operations: float
    uplink_bytes: int
    refused: str = ""  # why the model cannot be trained so, whatever the budget


@dataclass(frozen=True, eq=False)
class CostModel:
    """A cost model gives the cost of any row and policy for one model, task, batch shape and method."""

    spec: AdapterSpec
    steps: Mapping[ActivationPolicy, StepCoefficients]
    weights_bytes: int  # of the base, with its head
    weight_item_bytes: int  # of one number of an adapted weight, of which merging makes a copy
    head_sizes: tuple[int, ...]  # numbers of each tensor that trains whole: of a head, of saved modules
    optimizer_numbers: int  # kept per trained parameter: 2 of AdamW, in whatever number of bits
    block_operations: Floats  # (layers,): forward of one example through each block
    head_operations: float  # forward of one example through all the rest
    hidden_bytes: int  # of one example between two blocks
    tokens: int  # per example
    factors: Factors = "both"
    sends: Callable[[Mask], Sent] | None = None  # what a client receives; None = the whole adapter
    declares: Callable[[Mask], Declared] = lambda _: Declared()  # the named tensors of its rules of local training
    travels: tuple[Factors, ...] = ("both",)  # the factors that are sent up, where rounds differ in it each of them
    sends_head: bool = True
    wire: WireFormat = "fp32"  # how the update travels
    head_scales: int = 0  # that the head has as int8
    buffers_bytes: int = 0  # of the weights' bytes, what is lent as a copy
    states_in_8_bits: bool = False  # what AdamW keeps
    trains_below: bool = False  # something below the blocks trains whole: a gradient goes through all of them
    measured: bool = False  # counted in real steps, because the model's steps need values
    passes: int = 1  # over each example in a step, one after the other, so that memory is that of one

    def as_record(self) -> dict[str, Any]:
        """Return JSON values, with the coefficients counted so far: those of 1, n, r and n·r by part and layer."""

        def blocks(coefficients: StepCoefficients) -> dict[str, Any]:
            return {
                part: {name: linear.tolist() for name, linear in vars(held).items()}
                for part, held in coefficients.blocks.items()
            }

        return {
            "weights_bytes": self.weights_bytes,
            "measured": self.measured,
            "head_parameters": self.head_parameters,
            "tokens": self.tokens,
            "operations": {"blocks": self.block_operations.tolist(), "rest": self.head_operations},
            "coefficients": [
                {**asdict(way), "refused": coefficients.refused, "blocks": blocks(coefficients)}
                for way, coefficients in self.steps.items()
            ],
        }

    def cost(self, ranks: Ranks, policy: Policy, work: Work) -> Cost:
        """Return what a client pays that trains `ranks` (layers,) under `policy`."""
        peak, how = self.peak_bytes(ranks, policy, work), self.activation_policy(ranks, policy)
        return Cost(peak, self.operations(ranks, policy, work), self.uplink(ranks), self.steps[how].refused)

    def uplink(self, ranks: Ranks) -> int:
        """Count the bytes of the update: of the trained components the factors that travel, and the head if it does."""
        numbers = max(self.trained_parameters(ranks, factors) for factors in self.travels)
        scales = max(int(ranks @ self.modules) * (2 if factors == "both" else 1) for factors in self.travels)
        if self.sends_head:
            numbers, scales = numbers + self.head_parameters, scales + self.head_scales
        report = self.declares(self.row(ranks)).bytes_up
        return NUMBER_BYTES[self.wire] * numbers + SCALE_BYTES[self.wire] * scales + report

    def row(self, ranks: Ranks) -> Mask:
        """Return the row of an allocation (layers, max_rank) that trains the first `ranks` (layers,) components."""
        row: Mask = np.arange(self.spec.max_rank) < ranks[:, None]
        return row

    def sent(self, ranks: Ranks) -> Sent:
        """Return what a client receives that trains `ranks` (layers,)."""
        if self.sends is None:
            return Sent(np.full(self.spec.num_layers, self.spec.max_rank))
        return self.sends(self.row(ranks))

    def trained_parameters(self, ranks: Ranks, factors: Factors = "both") -> int:
        """Count the numbers in the trained components of all modules; of one factor only where one is asked for."""
        return int(ranks @ self.widths[factors])

    @property
    def head_parameters(self) -> int:
        """Count the numbers that train besides the pairs."""
        return sum(self.head_sizes)

    @cached_property
    def widths(self) -> Mapping[Factors, Ranks]:
        """Count the numbers of one rank component of all modules of each layer, (layers,)."""
        A, B = (self.sums_by_layer([getattr(m, size) for m in self.spec.modules]) for size in ("d_in", "d_out"))
        return {"A": A, "B": B, "both": A + B}

    @cached_property
    def modules(self) -> Ranks:
        """Count the adapted modules of each layer, (layers,)."""
        return self.sums_by_layer([1] * len(self.spec.modules))

    @cached_property
    def areas(self) -> Ranks:
        """Count the numbers of the adapted weights of each layer, (layers,)."""
        return self.sums_by_layer([m.d_in * m.d_out for m in self.spec.modules])

    def sums_by_layer(self, values: Sequence[int]) -> Ranks:
        sums = np.zeros(self.spec.num_layers, dtype=np.int64)
        np.add.at(sums, [module.layer for module in self.spec.modules], values)
        return sums

    # ------------------------------------------------------------------------------------------------------- memory

    def standing_bytes(self, ranks: Ranks, policy: Policy) -> int:
        """Count the bytes that are held all through training."""
        sent = self.sent(ranks).ranks
        received = FLOAT * int(sent @ self.widths["both"])
        copies = self.weight_item_bytes * int((sent > ranks) @ self.areas)
        if not policy.merge:  # copies of the frozen components instead
            copies = FLOAT * int((sent - ranks) @ self.widths["both"])
        moving = self.trained_parameters(ranks, self.factors) + self.head_parameters
        still = self.trained_parameters(ranks) - self.trained_parameters(ranks, self.factors)
        states = FLOAT * moving * self.optimizer_numbers
        if self.states_in_8_bits:
            states = states_in_8_bits(self.trained_sizes(ranks))
        trained = FLOAT * (still + 2 * moving) + states
        named = self.declares(self.row(ranks)).bytes_held
        return self.weights_bytes + self.buffers_bytes + copies + received + trained + named

    def peak_bytes(self, ranks: Ranks, policy: Policy, work: Work) -> int:
        """Return the most bytes held at once: base weights, adapter, gradients, optimizer, activations."""
        examples = min(policy.micro_batch or work.batch, work.batch)
        step = self.step_bytes(ranks, self.steps[self.activation_policy(ranks, policy)], examples)
        step = max(step + self.cached_bytes(ranks, policy, work), self.merging_bytes if policy.merge else 0)
        step = max(step, stepping_bytes(self.trained_sizes(ranks), self.states_in_8_bits))
        return round(self.standing_bytes(ranks, policy) + step)

    def trained_sizes(self, ranks: Ranks) -> list[int]:
        """Return the numbers of each trained tensor of a client that trains `ranks` (layers,)."""
        widths = {"A": ("d_in",), "B": ("d_out",), "both": ("d_in", "d_out")}[self.factors]
        pairs = [int(ranks[m.layer]) * getattr(m, width) for m in self.spec.modules for width in widths]
        return [size for size in pairs if size] + list(self.head_sizes)

    @cached_property
    def merging_bytes(self) -> int:
        """Count what merging holds for a moment, before training: a dense update of the largest module, twice."""
        return 2 * FLOAT * max(module.d_in * module.d_out for module in self.spec.modules)

    def step_bytes(self, ranks: Ranks, coefficients: StepCoefficients, examples: int) -> float:
        """Return the most that one step on so many examples holds besides what is there before and after it."""
        n = np.array([1.0, examples, 0.0, 0.0])
        by_rank = np.stack([np.ones(len(ranks)), np.full(len(ranks), examples), ranks, ranks * examples])
        keep, forward, release, backward = np.zeros((4, len(ranks)))
        bypasses = self.sent(ranks).bypass
        for part, where in self.parts(ranks).items():
            left_out = bypasses and part in ("off", "frozen")  # it only runs once, to see what it returns
            block = coefficients.blocks["off" if left_out else part]
            forward[where] = (block.forward * by_rank).sum(0)[where]
            if not left_out:
                keep[where] = (block.keep * by_rank).sum(0)[where]
                release[where] = (block.release * by_rank).sum(0)[where]
                backward[where] = (block.backward * by_rank).sum(0)[where]
        before = n @ coefficients.enter + np.concatenate([[0.0], np.cumsum(keep)])
        after = n @ coefficients.end + np.concatenate([[0.0], np.cumsum(release)])
        blocks = max((before[:-1] + forward).max(), (after[:-1] + backward).max())
        ends = max(
            n @ coefficients.start, before[-1] + n @ coefficients.head, after[-1] + n @ coefficients.head_backward
        )
        return float(max(blocks, ends))

    def cached_bytes(self, ranks: Ranks, policy: Policy, work: Work) -> int:
        """Count what a prefix cache holds in memory: what it keeps, and the copy that is in use."""
        if not self.caches(ranks, policy, work) or not self.parts(ranks)["off"].any():
            return 0
        in_use = min(policy.micro_batch or work.batch, work.batch) * self.hidden_bytes
        return in_use + (self.kept_bytes(policy, work) if policy.prefix_cache == "memory" else 0)

    def caches(self, ranks: Ranks, policy: Policy, work: Work) -> bool:
        """Return True if a prefix cache is asked for, and of use."""
        return policy.prefix_cache != "none" and work.epochs > 1 and not self.sent(ranks).bypass

    def kept_bytes(self, policy: Policy, work: Work) -> int:
        """Count what a prefix cache keeps, wherever it does."""
        whole = work.examples * self.hidden_bytes
        return whole if policy.prefix_cache_bytes is None else min(whole, policy.prefix_cache_bytes)

    def activation_policy(self, ranks: Ranks, policy: Policy) -> ActivationPolicy:
        """Say which coefficients hold: with no frozen block above the shallowest trained one, none is run again."""
        how = ActivationPolicy.of(policy)
        idle = how.recompute == "frozen" and not self.parts(ranks)["frozen"].any()
        return replace(how, recompute="none") if idle else how

    def parts(self, ranks: Ranks) -> dict[Part, npt.NDArray[np.bool_]]:
        """Say which blocks play which part, (layers,) each. In a row that trains nothing all are off."""
        trains = ranks > 0
        first = -1 if self.trains_below else int(np.argmax(trains)) if trains.any() else len(ranks)
        place = np.arange(len(ranks))
        return {
            "off": place < first,
            "first": place == first,
            "frozen": (place > first) & ~trains,
            "trained": (place > first) & trains,
        }

    # --------------------------------------------------------------------------------------------------------- time

    def operations(self, ranks: Ranks, policy: Policy, work: Work) -> float:
        """Count the operations of a round: backward through a frozen block costs what forward does, a recomputed block
        runs forward twice, a LoRA pair costs a pass forward and two backward."""
        parts, bypasses = self.parts(ranks), self.sent(ranks).bypass
        forward = self.block_operations
        per_example = np.zeros(len(ranks))
        per_example[parts["first"] | parts["trained"]] = 2.0
        if not bypasses:
            per_example[parts["frozen"]] = 2.0
        again = {"none": parts["first"] & False, "frozen": parts["frozen"], "all": ~parts["off"]}[policy.recompute]
        per_example += again * (per_example > 0)
        passes = self.passes * work.epochs
        off_passes = 0.0 if bypasses else passes
        if self.caches(ranks, policy, work):
            kept = self.kept_bytes(policy, work) / (work.examples * self.hidden_bytes)
            off_passes = kept + passes * (1 - kept)
        lora = 6.0 * self.tokens * self.trained_parameters(ranks)
        step = float(forward @ per_example) + lora + 3.0 * self.head_operations
        return work.examples * (passes * step + off_passes * float(forward @ parts["off"]))
