"""Count what an optimizer keeps of trained tensors, and what it holds for a moment while it steps.

AdamW keeps two numbers for each that trains, SGD with momentum one. In 8 bits (Dettmers et al., ICLR 2022, arXiv
2110.02861) each of AdamW's takes a byte, and every block of them a scale; a small tensor's stay as they are.
"""

import math
from collections.abc import Sequence

FLOAT = 4  # bytes of a number
SMALLEST = 4096  # numbers of a tensor whose states are in 8 bits
BLOCK = 256  # numbers that have a scale together
TABLES = 2 * 256 * FLOAT  # bytes of what the 256 values of each state stand for, once


def states_in_8_bits(sizes: Sequence[int]) -> int:
    """Count the bytes of AdamW's states in 8 bits, of trained tensors of these numbers."""
    small = sum(size for size in sizes if size < SMALLEST)
    large = [size for size in sizes if size >= SMALLEST]
    scales = sum(math.ceil(size / BLOCK) for size in large)
    return 2 * (FLOAT * small + sum(large) + FLOAT * scales) + TABLES * bool(large)


def stepping_bytes(sizes: Sequence[int], in_8_bits: bool) -> int:
    """Count what a step of the optimizer holds for a moment, of the largest tensor: AdamW two copies, and with states
    in 8 bits five (both states as numbers, the gradient, and two copies), as on the CPU; kernels of a GPU need less."""
    return (5 if in_8_bits else 2) * FLOAT * max(sizes, default=0)
