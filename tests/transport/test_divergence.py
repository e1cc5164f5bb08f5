"""Transport losses against closed forms, finite differences and unrolled iterations; invariances."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport.costs import L1, AutogradCost, Cost, MixedCost, SquaredEuclidean
from dp_sinkhorn.transport.divergence import (
    entropic_ot,
    semi_debiased_loss,
    sinkhorn_divergence,
    split_debias,
    transport_between,
    within_class_weights,
)
from dp_sinkhorn.transport.sinkhorn import Sinkhorn

N, M, D = 5, 6, 3
REG = 3.0
SOLVER = Sinkhorn(reg=REG, iterations=150)
UNCHECKED = Sinkhorn(reg=REG, iterations=150, check=False)  # as for private images
X_LABELS, Y_LABELS = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 1, 2, 2])
LABELS = (X_LABELS, Y_LABELS)


def quartic(x: Tensor, y: Tensor) -> Tensor:
    """A user's own cost."""
    return (x.unsqueeze(1) - y.unsqueeze(0)).pow(4).sum(2) / 8.0


COSTS: list[Cost] = [SquaredEuclidean(), MixedCost(l1_weight=0.7), L1(), AutogradCost(quartic)]
LABEL_CASES = [pytest.param(None, 1.0, id="no labels"), *(pytest.param(LABELS, w, id=f"{w}") for w in (1.0, math.inf))]
Loss = Callable[..., Tensor]


def half_debiased(x: Tensor, y: Tensor, *rest: object, **named: object) -> Tensor:
    return semi_debiased_loss(x, y, *rest, 0.7, **named)  # type: ignore[arg-type]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(seed, N, D), 0.5 + 1.2 * normal(seed + 100, M, D)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of every coordinate, as one batch of problems."""
    moves = step * torch.eye(at.numel(), dtype=at.dtype).reshape(-1, *at.shape)
    return ((function(at + moves) - function(at - moves)) / (2.0 * step)).reshape(at.shape)


# Closed forms


def test_the_value_of_two_points_is_their_cost() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    y = torch.tensor([[4.0, -2.0]], requires_grad=True)
    value = entropic_ot(x, y, MixedCost(l1_weight=0.5), SOLVER)
    assert value.item() == pytest.approx(9.0 + 16.0 + 0.5 * 7.0)
    grad_x, grad_y = gradients(value, x, y)
    torch.testing.assert_close(grad_x, torch.tensor([[-6.5, 8.5]]))
    torch.testing.assert_close(grad_y, -grad_x)


def test_a_translation_gives_gradients_proportional_to_weights() -> None:
    """For y = x + t and a small reg, x_i goes to y_i; the value is ‖t‖² and the gradient −2t a_i."""
    x = 20.0 * torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    t = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    x.requires_grad_()
    value = entropic_ot(x, x.detach() + t, SquaredEuclidean(), Sinkhorn(reg=1e-3, iterations=50), a, a)
    # The plan is diagonal, so KL(P ‖ a⊗a) is the entropy of a.
    entropy = -float((a * a.log()).sum())
    assert value.item() == pytest.approx(5.25 + 1e-3 * entropy, abs=1e-9)
    torch.testing.assert_close(gradients(value, x)[0], -2.0 * a.unsqueeze(1) * t)


def test_the_value_equals_the_primal_objective() -> None:
    x, y = points()
    solved = transport_between(x, y, SquaredEuclidean(), SOLVER)
    product = torch.full((N, M), 1.0 / (N * M), dtype=torch.float64)
    objective = (solved.plan * torch.cdist(x, y).square()).sum() + REG * (
        solved.plan * (solved.plan / product).log()
    ).sum()
    torch.testing.assert_close(entropic_ot(x, y, SquaredEuclidean(), SOLVER), objective)


@pytest.mark.parametrize("cost", COSTS[:3])
def test_the_divergence_is_zero_for_equal_samples_only(cost: Cost) -> None:
    x = 0.7 * normal(1, 40, N, D)
    x.requires_grad_()
    y = x.detach().flip(1).requires_grad_()
    at_equality = sinkhorn_divergence(x, y, cost, SOLVER)
    torch.testing.assert_close(at_equality, torch.zeros(40, dtype=torch.float64), rtol=0.0, atol=1e-9)
    for gradient in gradients(at_equality, x, y):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-6)
    near = sinkhorn_divergence(y.detach(), y.detach() + 0.1 * normal(2, 40, N, D), cost, SOLVER)
    assert float(near.min()) > 1e-4


def test_the_divergence_combines_three_transports() -> None:
    x, y = points()
    a = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    b = torch.tensor([0.3, 0.1, 0.0, 0.2, 0.2, 0.2], dtype=torch.float64)
    cost = MixedCost(l1_weight=1.0)
    expected = (
        entropic_ot(x, y, cost, SOLVER, a, b)
        - 0.5 * entropic_ot(x, x.clone(), cost, SOLVER, a, a)
        - 0.5 * entropic_ot(y, y.clone(), cost, SOLVER, b, b)
    )
    torch.testing.assert_close(sinkhorn_divergence(x, y, cost, SOLVER, a, b), expected, rtol=1e-9, atol=1e-9)


# Gradients


@pytest.mark.parametrize(
    ("loss", "cost", "labels", "label_weight"),
    [
        *((entropic_ot, cost, None, 1.0) for cost in COSTS),
        (entropic_ot, COSTS[1], LABELS, 1.0),
        *((loss, COSTS[1], LABELS, math.inf) for loss in (entropic_ot, sinkhorn_divergence, half_debiased)),
    ],
)
def test_gradients_of_losses_match_finite_differences(
    loss: Loss, cost: Cost, labels: tuple[Tensor, Tensor] | None, label_weight: float
) -> None:
    x, y = points()
    x.requires_grad_()
    y.requires_grad_()

    def value(x: Tensor, y: Tensor) -> Tensor:
        return loss(x, y, cost, SOLVER, labels=labels, label_weight=label_weight)

    grad_x, grad_y = gradients(value(x, y), x, y)
    with torch.no_grad():
        expected_x, expected_y = (
            differences(lambda moved: value(moved, y), x),
            differences(lambda moved: value(x, moved), y),
        )
    assert float(expected_x.abs().max()) > 0.05
    torch.testing.assert_close(grad_x, expected_x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad_y, expected_y, rtol=1e-5, atol=1e-6)


def unrolled(x: Tensor, y: Tensor, reg: float, iterations: int) -> Tensor:
    """The dual value after explicit iterations, differentiable through all of them."""
    cost = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(2) / reg
    f, g = torch.zeros(N, dtype=x.dtype), torch.zeros(M, dtype=x.dtype)
    for _ in range(iterations):
        g = math.log(N) - (f.unsqueeze(1) - cost).logsumexp(0)
        f = math.log(M) - (g.unsqueeze(0) - cost).logsumexp(1)
    return reg * (f.mean() + g.mean())


def test_gradients_match_unrolled_iterations_at_convergence() -> None:
    x, y = points()
    x.requires_grad_()
    y.requires_grad_()
    reference = unrolled(x, y, SOLVER.reg, 300)
    value = entropic_ot(x, y, SquaredEuclidean(), SOLVER)
    torch.testing.assert_close(value, reference)
    for ours, theirs in zip(gradients(value, x, y), gradients(reference, x, y), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_gradients_flow_into_the_generator() -> None:
    z, weight = normal(4, N, 2), normal(5, 2, D).requires_grad_()
    images = torch.tanh(z @ weight)
    loss = entropic_ot(images, points()[1], SquaredEuclidean(), SOLVER)
    plan = transport_between(images, points()[1], SquaredEuclidean(), SOLVER).plan
    with torch.no_grad():
        field = SquaredEuclidean().gradient(plan, images, points()[1])
    expected = torch.autograd.grad(images, weight, field, retain_graph=True)[0]
    torch.testing.assert_close(gradients(loss, weight)[0], expected)


class CountedCost:
    """‖x−y‖² with a count of gradient calls."""

    def __init__(self) -> None:
        self.gradients = 0

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return SquaredEuclidean().matrix(x, y)

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        self.gradients += 1
        return SquaredEuclidean().gradient(weights, x, y)


def test_only_gradients_that_are_needed_are_computed() -> None:
    x, y = points()
    assert not entropic_ot(x, y, CountedCost(), SOLVER).requires_grad
    for needs_x, needs_y in ((True, False), (False, True), (True, True)):
        cost = CountedCost()
        value = entropic_ot(x.clone().requires_grad_(needs_x), y.clone().requires_grad_(needs_y), cost, SOLVER)
        assert cost.gradients == 0
        value.backward()
        assert cost.gradients == needs_x + needs_y
    cost = CountedCost()
    semi_debiased_loss(x.clone().requires_grad_(), y, cost, SOLVER, 0.0).backward()
    assert cost.gradients == 2  # one sum serves both sides of W(X, X)


def test_second_derivatives_are_refused() -> None:
    x, y = points()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(entropic_ot(x, y, SquaredEuclidean(), SOLVER), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (gradient.square().sum() + x.sum()).backward()


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(part, Tensor):
                self.numbers = max(self.numbers, part.numel())
        return out


@pytest.mark.parametrize("cost", COSTS[:3])
def test_no_tensor_of_size_n_m_d_exists_forward_or_backward(cost: Cost) -> None:
    n, m, d = 40, 30, 50
    x, y = normal(1, n, d).requires_grad_(), normal(2, 2, m, d).requires_grad_()
    with LargestTensor() as largest:
        for loss in (entropic_ot, sinkhorn_divergence):
            loss(x, y, cost, Sinkhorn(reg=20.0, iterations=5)).sum().backward()
    assert 0 < largest.numbers <= 2 * n * max(m, n, d)


# Batches, shared points, padding


@pytest.mark.parametrize("loss", [entropic_ot, sinkhorn_divergence, half_debiased])
def test_a_batch_gives_the_same_losses_as_single_problems(loss: Loss) -> None:
    x, y = normal(6, 3, N, D).requires_grad_(), normal(7, 3, M, D).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    batched = loss(x, y, MixedCost(l1_weight=0.3), SOLVER)
    looped = torch.stack([loss(one, other, MixedCost(l1_weight=0.3), SOLVER) for one, other in zip(x, y, strict=True)])
    torch.testing.assert_close(batched, looped)
    for ours, theirs in zip(gradients(weights * batched, x, y), gradients(weights * looped, x, y), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", [entropic_ot, sinkhorn_divergence, half_debiased])
def test_gradients_of_shared_points_sum_over_problems(loss: Loss) -> None:
    x, y = points()[0].requires_grad_(), normal(7, 4, M, D)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    value = loss(x, y, SquaredEuclidean(), SOLVER)
    apart = x.detach().repeat(4, 1, 1).requires_grad_()
    torch.testing.assert_close(value, loss(apart, y, SquaredEuclidean(), SOLVER))
    expected = gradients(weights * loss(apart, y, SquaredEuclidean(), SOLVER), apart)[0].sum(0)
    torch.testing.assert_close(gradients(weights * value, x)[0], expected)
    # The same with exchanged sides: y is shared by many batches of x.
    if loss is entropic_ot:
        swapped = loss(y, x, SquaredEuclidean(), SOLVER)
        torch.testing.assert_close(gradients(weights * swapped, x)[0], expected)


def test_problems_may_differ_in_their_weights_only() -> None:
    x, y = points()[0].requires_grad_(), points()[1]
    b = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    value = entropic_ot(x, y, SquaredEuclidean(), SOLVER, b=b)
    one, two = (entropic_ot(x, part, SquaredEuclidean(), SOLVER) for part in (y[:2], y[2:]))
    torch.testing.assert_close(value, torch.stack([one, two]))
    torch.testing.assert_close(gradients(value, x)[0], gradients(one + two, x)[0])


def test_the_order_of_points_does_not_matter() -> None:
    x, y = points()
    x.requires_grad_()
    order, other = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([5, 2, 0, 1, 4, 3])
    value = entropic_ot(x, y, SquaredEuclidean(), SOLVER, labels=LABELS)
    labels = (X_LABELS[order], Y_LABELS[other])
    moved = entropic_ot(x[order], y[other], SquaredEuclidean(), SOLVER, labels=labels)
    torch.testing.assert_close(moved, value)
    torch.testing.assert_close(gradients(moved, x), gradients(value, x))


@pytest.mark.parametrize(("labels", "label_weight"), LABEL_CASES)
def test_padding_of_weight_zero_changes_nothing(labels: tuple[Tensor, Tensor] | None, label_weight: float) -> None:
    x, y = points()
    x.requires_grad_()
    padded = torch.cat([y, 100.0 * normal(9, 2, D)]).requires_grad_()
    b = torch.cat([torch.full((M,), 1.0 / M, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)])
    more = None if labels is None else (X_LABELS, torch.cat([Y_LABELS, torch.tensor([0, 7])]))
    for loss in (entropic_ot, sinkhorn_divergence, half_debiased):
        value = loss(x, y, SquaredEuclidean(), SOLVER, labels=labels, label_weight=label_weight)
        same = loss(x, padded, SquaredEuclidean(), SOLVER, b=b, labels=more, label_weight=label_weight)
        torch.testing.assert_close(same, value)
        grad_x, grad_y = gradients(same, x, padded)
        torch.testing.assert_close(grad_x, gradients(value, x)[0])
        assert grad_y[M:].eq(0.0).all()


@pytest.mark.parametrize("rows", [0, M])
@pytest.mark.parametrize(("labels", "label_weight"), LABEL_CASES)
def test_without_real_images_only_the_second_term_remains(
    rows: int, labels: tuple[Tensor, Tensor] | None, label_weight: float
) -> None:
    x, y = points()[0].requires_grad_(), points()[1][:rows]
    b = torch.zeros(rows, dtype=torch.float64)
    real = None if labels is None else (X_LABELS, Y_LABELS[:rows])
    options = {"b": b, "labels": real, "label_weight": label_weight}
    nothing = entropic_ot(x, y, SquaredEuclidean(), SOLVER, **options)
    assert nothing.item() == 0.0
    assert gradients(nothing, x)[0].eq(0.0).all()
    loss = semi_debiased_loss(x, y, SquaredEuclidean(), SOLVER, 0.7, **options)
    second = None if labels is None else (X_LABELS[:3], X_LABELS[2:])
    expected = -entropic_ot(x[:3], x[2:], SquaredEuclidean(), SOLVER, labels=second, label_weight=label_weight)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, x), gradients(expected, x))


# Labels


@pytest.mark.parametrize("cost", COSTS[:3])
def test_labels_equal_one_hot_vectors_appended_to_images(cost: Cost) -> None:
    x, y = points()
    value = entropic_ot(x, y, cost, SOLVER, labels=LABELS, label_weight=0.8)
    one_hot = 0.8 * torch.eye(3, dtype=torch.float64)
    appended = entropic_ot(torch.cat([x, one_hot[X_LABELS]], 1), torch.cat([y, one_hot[Y_LABELS]], 1), cost, SOLVER)
    torch.testing.assert_close(value, appended)
    assert abs(value.item() - entropic_ot(x, y, cost, SOLVER).item()) > 0.05


def test_within_class_weights_match_a_calculation_by_hand() -> None:
    """Class 0 has two of x and one of y, class 1 two and three; class 2 is in x only, class 3 in y only."""
    y_labels = torch.tensor([0, 1, 1, 1, 3, 0])
    there = torch.tensor([True, True, True, True, True, False])
    a, b = within_class_weights(X_LABELS, y_labels, there)
    torch.testing.assert_close(a, torch.tensor([0.2, 0.2, 0.2, 0.2, 0.0]))
    torch.testing.assert_close(b, torch.tensor([0.4, 0.4 / 3, 0.4 / 3, 0.4 / 3, 0.0, 0.0]))
    batch = within_class_weights(X_LABELS, torch.stack([y_labels, Y_LABELS]), torch.stack([there, ~there]))
    torch.testing.assert_close((batch[0][0], batch[1][0]), (a, b))
    torch.testing.assert_close(batch[0][1], torch.tensor([0.0, 0.0, 0.0, 0.0, 0.2]))
    torch.testing.assert_close(batch[1][1], torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.2]))


def test_an_infinite_label_weight_solves_each_class_separately() -> None:
    """A class of mass s has value s·W − λ s log s: its plan is s times that of its normalised problem."""
    x, y = points()
    x.requires_grad_()
    value = entropic_ot(x, y, SquaredEuclidean(), SOLVER, labels=LABELS, label_weight=math.inf)
    expected = torch.zeros((), dtype=torch.float64)
    for label, share in enumerate((0.4, 0.4, 0.2)):
        alone = entropic_ot(x[X_LABELS.eq(label)], y[Y_LABELS.eq(label)], SquaredEuclidean(), SOLVER)
        expected = expected + share * (alone - SOLVER.reg * math.log(share))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradients(value, x), gradients(expected, x))
    plan = transport_between(x, y, SquaredEuclidean(), SOLVER, labels=LABELS, label_weight=math.inf).plan
    assert plan[X_LABELS.unsqueeze(1) != Y_LABELS].eq(0.0).all()


def test_a_class_without_real_images_has_gradient_0() -> None:
    x, y = points()
    x.requires_grad_()
    labels = (X_LABELS, Y_LABELS.clamp(max=1))
    value = entropic_ot(x, y, SquaredEuclidean(), SOLVER, labels=labels, label_weight=math.inf)
    gradient = gradients(value, x)[0]
    assert gradient[X_LABELS == 2].eq(0.0).all()
    assert gradient[X_LABELS != 2].ne(0.0).all()


def test_a_large_label_weight_approaches_the_limit() -> None:
    x, y = points()[0], points()[1][:N]
    labels = (X_LABELS, torch.tensor([2, 1, 0, 0, 1]))
    limit = entropic_ot(x, y, SquaredEuclidean(), SOLVER, labels=labels, label_weight=math.inf)
    torch.testing.assert_close(entropic_ot(x, y, SquaredEuclidean(), SOLVER, labels=labels, label_weight=15.0), limit)


# The semi-debiased loss


@pytest.mark.parametrize(
    ("num_images", "p", "expected"),
    [
        (7, 0.0, (7, 0)),
        (8, 1.0, (4, 4)),
        (60, 0.2, (50, 10)),
        (13, 0.3, (10, 3)),
        (4, 1 / 3, (3, 1)),
        (129, 0.29, (100, 29)),
    ],
)
def test_a_batch_splits_into_n_and_n_times_p(num_images: int, p: float, expected: tuple[int, int]) -> None:
    assert split_debias(num_images, p) == expected


def test_exactly_the_valid_batch_sizes_are_accepted() -> None:
    for p in (0.0, 0.2, 0.4, 0.5, 0.75, 0.9, 1.0):
        legal = {n + math.floor(n * p + 1e-9): n for n in range(1, 200)}
        for total in range(1, 180):
            if total in legal:
                assert split_debias(total, p) == (legal[total], total - legal[total])
            else:
                fits = f"{total - 1} or {total + 1}" if total > 1 else "at least 2"
                with pytest.raises(InputError, match=f"give {fits}"):
                    split_debias(total, p)


@pytest.mark.parametrize(("p", "n", "extra"), [(0.0, 6, 0), (0.2, 5, 1), (1.0, 3, 3)])
def test_the_semi_debiased_loss_is_the_sum_of_two_terms(p: float, n: int, extra: int) -> None:
    x, y = normal(3, 6, D).requires_grad_(), points()[1]
    cost, x_labels = MixedCost(l1_weight=0.5), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = semi_debiased_loss(x, y, cost, SOLVER, p, labels=(x_labels, Y_LABELS), label_weight=1.0)
    one, two = x_labels[:n], x_labels[extra : extra + n]
    real = entropic_ot(x[:n], y, cost, SOLVER, labels=(one, Y_LABELS), label_weight=1.0)
    model = entropic_ot(x[:n], x[extra : extra + n], cost, SOLVER, labels=(one, two), label_weight=1.0)
    torch.testing.assert_close(loss, 2.0 * real - model, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradients(loss, x), gradients(2.0 * real - model, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("labels", "label_weight"), [LABEL_CASES[0], LABEL_CASES[2]])
def test_gradients_after_the_first_n_do_not_depend_on_real_images(
    labels: tuple[Tensor, Tensor] | None, label_weight: float
) -> None:
    """Their gradient has the same bits for any y, so the private step adds noise to that of X[:n] only."""
    x, y = points()[0].requires_grad_(), points()[1]
    n, _ = split_debias(N, 0.7)
    others = [(y, None), (7.0 * y.flip(0), None), (y, torch.zeros(M, dtype=torch.float64)), (y * math.nan, None)]
    found = []
    for real, b in others:
        loss = semi_debiased_loss(
            x, real, MixedCost(l1_weight=0.5), UNCHECKED, 0.7, b, labels=labels, label_weight=label_weight
        )
        found.append(gradients(loss, x)[0])
    assert not torch.equal(found[0][:n], found[1][:n])
    assert float(found[0][n:].abs().min()) > 0.0 or labels is not None
    assert float(found[0][n:].abs().max()) > 0.0
    for other in found[1:]:
        assert torch.equal(other[n:], found[0][n:])


def scale_pull(p: float, total: int) -> tuple[float, float]:
    """Mean and standard error of the loss's derivative in the model's scale, where model = data."""
    problems = 400
    scale = torch.ones(problems, 1, 1, dtype=torch.float64, requires_grad=True)
    x, y = scale * normal(21, problems, total, 2), normal(22, problems, 4, 2)
    pull = gradients(semi_debiased_loss(x, y, SquaredEuclidean(), Sinkhorn(reg=1.0, iterations=50), p), scale)[0]
    return pull.mean().item(), pull.std().item() / math.sqrt(problems)


def test_independent_images_remove_the_bias() -> None:
    """Where model = data, p = 1 gives an expected gradient of 0; p = 0 pulls images towards their mean."""
    mean, error = scale_pull(1.0, 8)
    assert abs(mean) < 3.0 * error
    biased, biased_error = scale_pull(0.0, 4)
    assert biased > 10.0 * biased_error
    assert abs(mean) < 0.1 * biased


# Results and errors


def test_transport_between_reports_convergence() -> None:
    x, y = points()
    assert bool(transport_between(x, y, SquaredEuclidean(), SOLVER).converged)
    early = transport_between(10.0 * x, 10.0 * y, SquaredEuclidean(), Sinkhorn(reg=0.01, iterations=1))
    assert not bool(early.converged)
    assert not transport_between(x.requires_grad_(), y, SquaredEuclidean(), SOLVER).plan.requires_grad


class ProductCost:
    """−2⟨x, y⟩ by a matrix product, which mixed precision rounds."""

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return -2.0 * x @ y.mT

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return -2.0 * weights @ y


def test_mixed_precision_does_not_change_the_losses() -> None:
    x, y = (part.to(torch.float32) for part in points())
    x.requires_grad_()
    expected = entropic_ot(x, y, ProductCost(), SOLVER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ y.mT).dtype == torch.bfloat16
        value = entropic_ot(x, y, ProductCost(), SOLVER)
        gradient = gradients(value, x)
    assert torch.equal(value, expected)
    assert torch.equal(gradient[0], gradients(expected, x)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"debias_fraction": -0.1}, r"debias_fraction=-0.1 is not in \[0, 1\]"),
        ({"debias_fraction": 1.5}, r"debias_fraction=1.5 is not in \[0, 1\]"),
        ({"debias_fraction": math.nan}, r"debias_fraction=nan is not in \[0, 1\]"),
        ({"debias_fraction": 1.0}, "5 images are not n .* give 4 or 6"),
        ({"x": torch.zeros(0, D, dtype=torch.float64)}, "x holds no points"),
        ({"x": torch.zeros(D, dtype=torch.float64)}, "flatten the images"),
        ({"x": torch.zeros(N, 2, 2, dtype=torch.float64)}, "flatten the images"),
        ({"x": torch.zeros(N, D)}, "both as float32 or both as float64"),
        ({"b": torch.ones(3, dtype=torch.float64)}, "b has shape .3,. for 6 points"),
        ({"labels": (Y_LABELS, Y_LABELS)}, "labels of x has shape .6,. for 5 points"),
        ({"labels": (X_LABELS, X_LABELS)}, "labels of y has shape .5,. for 6 points"),
        ({"labels": LABELS, "label_weight": -1.0}, "label_weight=-1.0"),
        ({"labels": LABELS, "label_weight": math.nan}, "label_weight=nan"),
        (
            {"x": torch.zeros(2, N, D, dtype=torch.float64), "b": torch.zeros(3, M, dtype=torch.float64)},
            "numbers of problems",
        ),
    ],
)
def test_mismatched_inputs_are_refused_in_one_line(change: dict[str, object], message: str) -> None:
    x, y = points()
    good: dict[str, object] = {"x": x, "y": y, "cost": SquaredEuclidean(), "solver": SOLVER, "debias_fraction": 0.7}
    semi_debiased_loss.__wrapped__(**good)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=message) as refused:
        semi_debiased_loss.__wrapped__(**(good | change))  # type: ignore[attr-defined]
    assert "\n" not in str(refused.value)
