"""Solve a linear head in closed form: what clients sum of their features, and what the server makes of the sums.

    x = (φ, 1)        φ (d,) are the pooled features that the head is given; the 1 stands for its bias, if it has one
    G = Σ x xᵀ        (columns, columns), of which the upper triangle travels
    H = Σ x yᵀ        (columns, classes), y one-hot: the sum over the examples of each class
    n_c               examples of each class

Of labels, of which an example may have several, y is 1 for those that it has and −1 for the others, so that the sign of
what is solved says which. Of numbers, y are the numbers, which are put on the grid as features are.

A client's rows are on a public grid before they are multiplied (`core.sums`), so that the sums over all clients do not
depend on who has which row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from hellora.core.errors import InputError, RunError
from hellora.core.exchange import Named, TensorSpec
from hellora.core.sums import Grid, class_sums, product_sums, symmetric, upper

LOGIT_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # tried where none is given
LOSS_BITS = 20  # of the grid that losses are summed on
MOST_LOSS = 1024.0  # of an example: so that losses of MOST_EXAMPLES add up in 62 bits
MOST_EXAMPLES = 2**32  # of all clients
LEAST_PENALTY = 1e-8  # below it the rounding of sums decides where features are collinear
Targets = Literal["classes", "labels", "numbers"]  # what an example has: one class, several labels, or numbers


@dataclass(frozen=True, slots=True)
class HeadShape:
    """A linear head has this shape, as it is solved."""

    features: int  # d, or what they are projected to
    classes: int  # or labels, or numbers: the rows of its weight
    bias: bool
    targets: Targets = "classes"

    @property
    def columns(self) -> int:
        """Count the numbers of x."""
        return self.features + self.bias

    @property
    def on_grid(self) -> int:
        """Count the numbers of an example that are put on the grid: x and, where they are numbers, y."""
        return self.columns + (self.classes if self.targets == "numbers" else 0)


@dataclass(frozen=True, eq=False)
class HeadRows:
    """A client has these rows: x (rows, columns) in float64, and y: the class of each (rows,), or (rows, classes)."""

    x: Tensor
    labels: Tensor
    shape: HeadShape
    grid: Grid
    seed: int  # of the client's task

    @property
    def gridded(self) -> Tensor:
        """Return what is put on the grid, (rows, shape.on_grid) in float64."""
        return torch.cat([self.x, self.labels.double()], dim=1) if self.shape.targets == "numbers" else self.x


Sums = Mapping[str, Named]  # of all clients, by the name of the pass and their own


def linear_names(shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Return the names of a linear head's weight and, if it has one, its bias, by the shapes of its parameters.

    Raises:
        InputError: it is no linear head.
    """
    names = sorted(shapes, key=lambda name: -len(shapes[name]))
    if [len(shapes[name]) for name in names] in ([2], [2, 1]):
        return tuple(names)
    raise InputError(
        "method.start and method.head_mean = 'by_class' need a head that is one linear layer on pooled features: remove"
        " them"
    )


def with_constant(features: Tensor, bias: bool) -> Tensor:
    """Return x (rows, columns) in float64, of features (rows, d)."""
    x = features.double()
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1) if bias else x


def projection(seed: int, columns: int, features: int) -> Tensor:
    """Draw a random projection (columns, features) in float64, under which lengths stay in the mean."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(columns, features, generator=generator, dtype=torch.float64)
    return drawn / math.sqrt(columns)


def projected(features: Tensor, down: Tensor) -> Tensor:
    """Project features (rows, d) in float64 by `down` (columns, d), row by row: a product of matrices would round a row
    differently beside others.
    """
    return torch.stack([down @ row for row in features]) if len(features) else features.new_zeros(0, len(down))


def check_penalty(penalty: float) -> None:
    """Raise ValueError where a penalty is so small that the rounding of sums would be solved for."""
    if not penalty >= LEAST_PENALTY:
        raise ValueError(f"penalty must be at least {LEAST_PENALTY:g}, not {penalty}")


# ----------------------------------------------------------------------------------------------------- what clients sum


def counts_spec(shape: HeadShape, examples: int) -> dict[str, TensorSpec]:
    """Declare the examples of each class; nothing where examples have none."""
    return {"counts": TensorSpec((shape.classes,), torch.int64, 0, examples)} if shape.targets == "classes" else {}


def moments_spec(shape: HeadShape, examples: int, grid: Grid) -> dict[str, TensorSpec]:
    """Declare H, and the examples of each class."""
    most = examples * grid.one * (grid.one if shape.targets == "numbers" else 1)
    moments = TensorSpec((shape.columns, shape.classes), torch.int64, -most, most)
    return {"moments": moments, **counts_spec(shape, examples)}


def gram_spec(shape: HeadShape, examples: int, grid: Grid) -> dict[str, TensorSpec]:
    """Declare G, H, and the examples of each class."""
    most = examples * grid.one**2
    gram = TensorSpec((shape.columns * (shape.columns + 1) // 2,), torch.int64, -most, most)
    return {"gram": gram, **moments_spec(shape, examples, grid)}


def counts_of(rows: HeadRows) -> dict[str, Tensor]:
    """Count the examples of each class."""
    return {"counts": torch.bincount(rows.labels, minlength=rows.shape.classes)}


def moments_of(rows: HeadRows) -> dict[str, Tensor]:
    """Sum H, and count."""
    shape, integers = rows.shape, rows.grid.integers(rows.gridded)
    if shape.targets == "classes":
        return {"moments": class_sums(integers, rows.labels, shape.classes), **counts_of(rows)}
    if shape.targets == "labels":
        return {"moments": integers.T @ rows.labels.long()}  # whole numbers: exact
    return {"moments": integers[:, : shape.columns].T @ integers[:, shape.columns :]}


def gram_of(rows: HeadRows) -> dict[str, Tensor]:
    """Sum G and H, and count."""
    integers = rows.grid.integers(rows.gridded)[:, : rows.shape.columns]
    return {"gram": upper(product_sums(integers, rows.grid.bits)), **moments_of(rows)}


def losses_spec(examples: int) -> dict[str, TensorSpec]:
    """Declare the loss at each of LOGIT_SCALES."""
    return {"losses": TensorSpec((len(LOGIT_SCALES),), torch.int64, 0, int(examples * MOST_LOSS) * 2**LOSS_BITS)}


def losses_of(rows: HeadRows, weight: Tensor) -> dict[str, Tensor]:
    """Sum the loss of x at each of LOGIT_SCALES, on a grid: the cross-entropy, of labels the mean of their binary ones;
    `weight` is (classes, columns)."""
    scores = rows.x @ weight.double().T
    losses = [loss_of(scale * scores, rows) for scale in LOGIT_SCALES]
    on_grid = (torch.stack(losses).clamp(max=MOST_LOSS) * 2**LOSS_BITS).round().long()
    return {"losses": on_grid.sum(1)}


def loss_of(logits: Tensor, rows: HeadRows) -> Tensor:
    """Return the loss of each row, (rows,), of logits (rows, classes)."""
    if rows.shape.targets == "classes":
        return cross_entropy(logits, rows.labels, reduction="none")
    return binary_cross_entropy_with_logits(logits, (rows.labels > 0).double(), reduction="none").mean(1)


def left_out_spec(examples: int) -> dict[str, TensorSpec]:
    """Declare how many examples there are, and about how many the head is right without them."""
    return {name: TensorSpec((), torch.int64, 0, examples) for name in ("right", "examples")}


def left_out_of(rows: HeadRows, weight: Tensor, inverse: Tensor) -> dict[str, Tensor]:
    """Count the examples that a ridge head would be right about, had each been left out when it was solved.

    ŷ⁽⁻ⁱ⁾ = (ŷ_i − h_i y_i) / (1 − h_i),   h_i = x_iᵀ (G + λ I)⁻¹ x_i     (leave-one-out in closed form)

    `weight` is (classes, columns), `inverse` (G + λ I)⁻¹.
    """
    leverage = ((rows.x @ inverse) * rows.x).sum(1, keepdim=True)
    own = torch.zeros(len(rows.x), rows.shape.classes, dtype=rows.x.dtype).scatter_(1, rows.labels[:, None], 1.0)
    scores = (rows.x @ weight.double().T - leverage * own) / (1 - leverage).clamp(min=1e-9)
    right = (scores.argmax(1) == rows.labels).sum()
    return {"right": right, "examples": torch.tensor(len(rows.x))}


# ------------------------------------------------------------------------------------------- what is made of the sums


def summed(reports: Mapping[int, Named]) -> dict[str, Tensor]:
    """Add up what clients reported, name by name: integers."""
    every = list(reports.values())
    return {name: torch.stack([report[name] for report in every]).sum(0) for name in every[0]}


def problem_with_sums(report: Named, examples: int, columns: int) -> str:
    """Say why what a client reports cannot be sums over so many examples; "" where it may be.

    Classes must come to the examples that it says it summed, and |G_ij|² ≤ G_ii G_jj. This finds what is no sum of
    features, and not who made features up.
    """
    if "counts" in report and int(report["counts"].sum()) != examples:
        return f"its classes have {int(report['counts'].sum())} examples, and it summed {examples}"
    if "gram" in report:
        gram = symmetric(report["gram"], columns).double()
        squares = gram.diagonal()
        if (squares < 0).any() or (gram.square() > squares[:, None] * squares * (1 + 1e-9)).any():
            return "its products are not those of features"
    return ""


def gram_in_numbers(sums: Named, shape: HeadShape, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return G (columns, columns) and H (columns, classes) in float64."""
    of_x = Grid(grid.bits, grid.scales[: shape.columns])
    moments = of_x.numbers(sums["moments"])
    if shape.targets == "numbers":
        moments = moments / grid.one * grid.scales[shape.columns :]
    return of_x.products(symmetric(sums["gram"], shape.columns)), moments


def ridge_solution(gram: Tensor, moments: Tensor, relative: float) -> Tensor:
    """Return W = (G + λ I)⁻¹ H, transposed: (classes, columns), with λ = `relative` · tr(G) / columns.

    Raises:
        RunError: G + λ I is not positive definite, as it is for features, whosever they are; or there is no such W.
    """
    solution = torch.cholesky_solve(moments, penalised_factor(gram, relative))
    if not solution.isfinite().all():
        raise RunError("the head that was solved from what clients summed is not finite: raise the penalty")
    return solution.T.contiguous()


def ridge_inverse(gram: Tensor, relative: float) -> Tensor:
    """Return (G + λ I)⁻¹ (columns, columns). Raise RunError where G is that of no features."""
    return torch.cholesky_inverse(penalised_factor(gram, relative))


def penalised_factor(gram: Tensor, relative: float) -> Tensor:
    """Return the Cholesky factor of G + λ I.

    Raises:
        RunError: it is not positive definite.
    """
    penalty = relative * float(gram.diagonal().sum()) / len(gram)
    factor: Tensor
    factor, problem = torch.linalg.cholesky_ex(gram + penalty * torch.eye(len(gram), dtype=gram.dtype))
    if int(problem):
        raise RunError(
            "the head cannot be solved from what clients summed: these are no sums of features (G is not positive "
            "definite); raise the penalty or, if that does not help, look for a client that sends something else"
        )
    return factor
