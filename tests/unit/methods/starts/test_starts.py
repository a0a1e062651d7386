"""Heads in closed form, against dense float64 references that see all rows at once."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from hellora.core.errors import RunError
from hellora.core.exchange import Named, problem_with_named
from hellora.core.sums import Grid, exponents, scales_of
from hellora.methods.closed_form import (
    LOGIT_SCALES,
    HeadRows,
    HeadShape,
    Targets,
    gram_of,
    losses_of,
    problem_with_sums,
    projected,
    projection,
    ridge_solution,
    with_constant,
)
from hellora.methods.starts.balanced_ridge import BalancedRidge
from hellora.methods.starts.class_means import ClassMeans
from hellora.methods.starts.fedcof import FedCof
from hellora.methods.starts.ridge import Ridge
from hellora.methods.strategies import Start

ROWS, FEATURES, CLASSES = 700, 6, 4


def data(bias: bool = True, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Features of unequal sizes that tell classes apart, and classes of unequal sizes."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.multinomial(torch.tensor([0.6, 0.25, 0.1, 0.05]), ROWS, replacement=True, generator=generator)
    centres = torch.randn(classes, FEATURES, generator=generator)
    features = centres[labels] + 0.8 * torch.randn(ROWS, FEATURES, generator=generator)
    return with_constant(features * torch.tensor([1.0, 9.0, 0.02, 1.0, 3.0, 0.5]), bias), labels


def parts_of(count: int, seed: int) -> list[Tensor]:
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values for part in order.tensor_split(count)]


def solved(
    start: Start,
    x: Tensor,
    labels: Tensor,
    parts: Sequence[Tensor],
    classes: int = CLASSES,
    targets: Targets = "classes",
) -> Tensor:
    """What server and clients make of rows that are dealt out."""
    shape = HeadShape(FEATURES, classes, x.shape[1] > FEATURES, targets)
    rows = HeadRows(x, labels, shape, Grid(0, torch.ones(shape.on_grid)), 0)
    grid = Grid.for_rows(len(x), scales_of(exponents(rows.gridded)))
    found: dict[str, Named] = {}
    for step in start.passes:
        brief, reports = start.brief(step, found), dict[int, Named]()
        for client, part in enumerate(parts):
            declared = start.declares(step, shape, len(part), grid)
            assert problem_with_named(brief, declared.brief, "brief") is None
            reports[client] = start.sums(step, HeadRows(x[part], labels[part], shape, grid, client), brief)
            assert problem_with_named(reports[client], declared.report, "report") is None
        found[step] = start.gather(step, reports)
    return start.solve(shape, grid, found)


def one_hot(labels: Tensor, classes: int = CLASSES) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).double()


def reference(x: Tensor, labels: Tensor, weights: Tensor, penalty: float) -> Tensor:
    gram = x.T @ (weights[:, None] * x)
    penalised = gram + penalty * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(penalised, x.T @ (weights[:, None] * one_hot(labels))).T


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_is_that_of_all_rows(bias: bool) -> None:
    x, labels = data(bias)
    found = solved(Ridge(penalty=1e-2), x, labels, parts_of(7, 0))
    torch.testing.assert_close(found, reference(x, labels, torch.ones(ROWS), 1e-2), rtol=0, atol=1e-6)


def test_balanced_ridge_weighs_classes_alike() -> None:
    x, labels = data()
    counts = torch.bincount(labels).double()
    found = solved(BalancedRidge(penalty=1e-2), x, labels, parts_of(7, 0))
    weights = ROWS / (CLASSES * counts[labels])
    torch.testing.assert_close(found, reference(x, labels, weights, 1e-2), rtol=0, atol=1e-6)


def test_class_means_are_directions() -> None:
    x, labels = data()
    means = torch.stack([x[labels == c, :FEATURES].mean(0) for c in range(CLASSES)])
    found = solved(ClassMeans(), x, labels, parts_of(7, 0))
    torch.testing.assert_close(found[:, :-1], means / means.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)
    assert not found[:, -1].any()


@pytest.mark.parametrize("start", [Ridge(), BalancedRidge(), ClassMeans()], ids=lambda start: start.name)
def test_heads_do_not_depend_on_who_has_which_row(start: Start) -> None:
    """Not in one bit: IID, ordered by class, one client, one row each."""
    x, labels = data()
    by_class = labels.argsort(stable=True)
    ways = [parts_of(5, 1), parts_of(20, 2), list(by_class.tensor_split(4)), [torch.arange(ROWS)], parts_of(ROWS, 3)]
    first, *others = [solved(start, x, labels, parts) for parts in ways]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", ["labels", "numbers"])
def test_ridge_says_labels_and_numbers_whoever_has_which_row(targets: Targets, bias: bool) -> None:
    """As a dense float64 solution does; not in one bit otherwise for other parts."""
    x, classes = data(bias)
    y = torch.stack([classes * 1234.5 - 7, x[:, 1] ** 2], dim=1).double()  # of unequal sizes, far from whole numbers
    if targets == "labels":
        y = torch.stack([classes > 0, x[:, 1] > 1, classes == 3], dim=1).long() * 2 - 1
    ways = [parts_of(5, 1), list(classes.argsort(stable=True).tensor_split(4)), [torch.arange(ROWS)], parts_of(ROWS, 3)]
    first, *others = [solved(Ridge(penalty=1e-2), x, y, parts, y.shape[1], targets) for parts in ways]
    assert all(torch.equal(first, other) for other in others)
    gram = x.T @ x
    penalised = gram + 1e-2 * gram.trace() / len(gram) * torch.eye(len(gram), dtype=torch.float64)
    expected = torch.linalg.solve(penalised, x.T @ y.double()).T
    torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start", [Ridge(), BalancedRidge(), ClassMeans(), FedCof()], ids=lambda start: start.name)
def test_a_class_that_nobody_has_gets_no_weight(start: Start) -> None:
    x, labels = data()
    found = solved(start, x, labels, parts_of(5, 1), classes=6)
    assert not found[4:].any()
    assert found[:4].abs().amax(1).all()


def test_fedcof_comes_near_to_ridge_where_examples_are_dealt_at_random() -> None:
    """Every class has 80 means of groups, so that covariances are known well."""
    x, labels = data()
    near = solved(FedCof(), x, labels, parts_of(40, 1))
    exact = solved(Ridge(), x, labels, parts_of(40, 1))
    scores, wanted = x @ near.T, x @ exact.T
    assert float((scores - wanted).abs().mean()) < 0.05
    assert float((scores.argmax(1) == wanted.argmax(1)).double().mean()) > 0.95


def test_fedcof_by_hand() -> None:
    """One feature, no bias, two clients of two examples of one class: halves are single examples."""
    x, labels = torch.tensor([[1.0], [3.0], [5.0], [7.0]], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    shape, grid = HeadShape(1, 1, bias=False), Grid(20, torch.ones(1))
    start = FedCof(penalty=1e-8)
    reports = {k: start.sums("means", HeadRows(x[2 * k : 2 * k + 2], labels[:2], shape, grid, k), {}) for k in (0, 1)}
    found = start.solve(shape, grid, {"means": start.gather("means", reports)})
    spread = (9 + 1 + 1 + 9) / 3  # K = 4 means of one example each
    assert float(found) == pytest.approx(16 / (3 * spread + 4 * 16), rel=1e-6)


def test_fedcof_needs_two_examples_of_a_class() -> None:
    x, labels = torch.eye(3, dtype=torch.float64), torch.arange(3)
    start, shape, grid = FedCof(), HeadShape(3, 3, bias=False), Grid(20, torch.ones(3))
    report = start.sums("means", HeadRows(x, labels, shape, grid, 0), {})
    with pytest.raises(RunError, match="two examples at least"):
        start.solve(shape, grid, {"means": start.gather("means", {0: report})})


def test_losses_are_those_of_every_scale() -> None:
    x, labels = data()
    weight = torch.randn(CLASSES, FEATURES + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = losses_of(HeadRows(x, labels, HeadShape(FEATURES, CLASSES, True), Grid(1, torch.ones(7)), 0), weight)
    for scale, loss in zip(LOGIT_SCALES, found["losses"].tolist(), strict=True):
        each = torch.nn.functional.cross_entropy(scale * x @ weight.T, labels, reduction="none").clamp(max=1024)
        assert loss / 2**20 == pytest.approx(float(each.sum()), abs=1e-3)


def test_losses_of_labels_are_binary() -> None:
    x, classes = data()
    labels = torch.stack([classes > 0, classes == 2], dim=1).long() * 2 - 1
    weight = torch.randn(2, FEATURES + 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = HeadRows(x, labels, HeadShape(FEATURES, 2, True, "labels"), Grid(1, torch.ones(7)), 0)
    for scale, loss in zip(LOGIT_SCALES, losses_of(rows, weight)["losses"].tolist(), strict=True):
        each = torch.nn.functional.softplus(-labels * (scale * x @ weight.T)).mean(1).clamp(max=1024)  # −log σ(±z)
        assert loss / 2**20 == pytest.approx(float(each.sum()), abs=1e-3)


def test_a_projection_keeps_lengths_in_the_mean() -> None:
    down, x = projection(5, 64, 300), torch.randn(200, 300, dtype=torch.float64)
    assert float(((x @ down.T).norm(dim=1) / x.norm(dim=1)).mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(down, projection(5, 64, 300))


def test_a_projected_row_does_not_depend_on_what_stands_beside() -> None:
    down, x = projection(5, 48, 384), torch.randn(300, 384, generator=torch.Generator().manual_seed(0)).double()
    whole, order = projected(x, down), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(whole, x @ down.T)
    for count in (1, 7, 200):
        assert torch.equal(projected(x[order[:count]], down), whole[order[:count]])
    assert projected(x[:0], down).shape == (0, 48)


def test_sums_that_are_none_of_features_are_not_solved() -> None:
    """An indefinite G has a solution, which is no regression."""
    gram = torch.diag(torch.tensor([4.0, 3.0, -1.0])).double()
    with pytest.raises(RunError, match="not positive definite"):
        ridge_solution(gram, torch.ones(3, 2).double(), 1e-3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda report: {"counts": report["counts"] + 1}, "its classes have 704 examples, and it summed 700"),
        (lambda report: {"gram": -report["gram"]}, "its products are not those of features"),
        (lambda report: {"gram": report["gram"] + torch.eye(28).long()[1] * 2**58}, "its products are not"),
        (lambda _: {}, ""),
    ],
)
def test_what_no_features_come_to_is_told(spoil: Callable[[Named], Named], words: str) -> None:
    x, labels = data()
    shape, grid = HeadShape(FEATURES, CLASSES, True), Grid.for_rows(len(x), scales_of(exponents(x)))
    report = gram_of(HeadRows(x, labels, shape, grid, 0))
    found = problem_with_sums({**report, **spoil(report)}, ROWS, FEATURES + 1)
    assert found.startswith(words)
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ridge(penalty=0), "penalty must be at least 1e-08, not 0"),
        (lambda: BalancedRidge(penalty=1e-12), "penalty must be at least"),
        (lambda: FedCof(penalty=float("nan")), "penalty must be at least"),
        (lambda: FedCof(shrinkage=-1), "must not be negative"),
    ],
)
def test_settings_are_checked(make: type, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_start_of_ones_own_without_solve_says_what_to_write() -> None:
    with pytest.raises(RunError, match=r"has no solve\(\).*write it"):
        Start().solve(HeadShape(1, 1, bias=False), Grid(1, torch.ones(1)), {})
