"""Costs against plain float64 arithmetic, finite differences and autograd; memory, threads, NaN, invalid input."""

import inspect
import math
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.transport import costs, kernels
from dp_sinkhorn.transport.costs import (
    L1,
    AutogradCost,
    Cost,
    MixedCost,
    SquaredEuclidean,
    label_costs,
    label_mismatch,
    squared_by_products,
)

NAN = float("nan")
# Each cost with (q, m) of its definition q‖x−y‖² + m‖x−y‖₁.
GIVEN = [(SquaredEuclidean(), 1.0, 0.0), (L1(), 0.0, 1.0), (MixedCost(1.0), 1.0, 1.0), (MixedCost(2.5), 1.0, 2.5)]
GIVEN_COSTS = [cost for cost, _, _ in GIVEN]
# Below, at and above the edges of the tiles (4 and 2 images) and of the vector lanes (4 to 16 pixels).
SHAPES = [(1, 1, 1), (2, 3, 5), (3, 9, 2), (4, 2, 16), (5, 7, 33), (9, 6, 130)]


@dataclass(frozen=True)
class Elsewhere:
    """A cost made of the functions for other devices, so that the CPU can test them."""

    square_weight: float
    l1_weight: float

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        return self.square_weight * squared_by_products(x, y) + self.l1_weight * costs.l1_anywhere(x, y)

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        smooth = self.square_weight * SquaredEuclidean().gradient(weights, x, y)
        return smooth + self.l1_weight * costs.l1_gradient_anywhere(weights, x, y)


BOTH_PATHS = [*GIVEN, *((Elsewhere(q, m), q, m) for _, q, m in GIVEN)]


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use three threads even for the smallest problem."""
    monkeypatch.setattr(kernels, "SEQUENTIAL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def uniform(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pixels in [-1, 1]."""
    return (2.0 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1.0).to(
        dtype
    )


def naive(x: Tensor, y: Tensor, square_weight: float, l1_weight: float) -> Tensor:
    """The definition, computed for every pair and pixel."""
    apart = x.double().unsqueeze(-2) - y.double().unsqueeze(-3)
    return square_weight * apart.square().sum(-1) + l1_weight * apart.abs().sum(-1)


def naive_gradient(weights: Tensor, x: Tensor, y: Tensor, square_weight: float, l1_weight: float) -> Tensor:
    apart = x.double().unsqueeze(-2) - y.double().unsqueeze(-3)
    slope = 2.0 * square_weight * apart + l1_weight * apart.sign()
    return (weights.double().unsqueeze(-1) * slope).sum(-2)


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    assert actual.dtype == dtype
    rounding = scale * (1e-5 if dtype == torch.float32 else 1e-13)
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cost", "square_weight", "l1_weight"), BOTH_PATHS)
def test_matrix_and_gradient_match_the_definition(
    cost: Cost, square_weight: float, l1_weight: float, dtype: torch.dtype
) -> None:
    for n, m, d in SHAPES:
        x, y = uniform(0, 3, n, d, dtype=dtype), uniform(1, 3, m, d, dtype=dtype)
        # Weights of both signs and zeros, like a plan times an incoming gradient.
        weights = uniform(2, 3, n, m, dtype=dtype)
        weights[weights.abs() < 0.2] = 0.0
        expected = naive(x, y, square_weight, l1_weight)
        close(cost.matrix(x, y), expected, dtype, scale=1.0 + d / 10)
        close(cost.gradient(weights, x, y), naive_gradient(weights, x, y, square_weight, l1_weight), dtype)


@pytest.mark.parametrize(("cost", "square_weight", "l1_weight"), BOTH_PATHS)
def test_matrix_and_gradient_match_a_calculation_by_hand(cost: Cost, square_weight: float, l1_weight: float) -> None:
    """From (0, 0) to (3, −4) ‖·‖² = 25 and ‖·‖₁ = 7; weight 2 gives 2·2·(−3, 4) and 2·(−1, 1)."""
    x, y = torch.zeros(1, 2), torch.tensor([[3.0, -4.0]])
    assert cost.matrix(x, y).tolist() == [[25.0 * square_weight + 7.0 * l1_weight]]
    expected = [-12.0 * square_weight - 2.0 * l1_weight, 16.0 * square_weight + 2.0 * l1_weight]
    assert cost.gradient(torch.tensor([[2.0]]), x, y).tolist() == [expected]


@pytest.mark.parametrize("cost", [*GIVEN_COSTS, Elsewhere(1.0, 2.5)])
def test_gradients_of_costs_match_finite_differences(cost: Cost) -> None:
    """The step is far below every |x − y|, so it crosses no kink."""
    x, y, weights, direction = uniform(0, 4, 6), uniform(1, 5, 6), uniform(2, 4, 5), uniform(3, 4, 6)
    assert float((x.unsqueeze(1) - y).abs().min()) > 1e-3
    step = 1e-5
    up, down = cost.matrix(x + step * direction, y), cost.matrix(x - step * direction, y)
    slope = float((weights * (up - down)).sum()) / (2.0 * step)
    assert float((cost.gradient(weights, x, y) * direction).sum()) == pytest.approx(slope, rel=1e-8)


def test_the_plain_gradient_of_these_tests_matches_autograd() -> None:
    x, y, weights = uniform(0, 2, 6, 8).requires_grad_(), uniform(1, 2, 3, 8), uniform(2, 2, 6, 3)
    (expected,) = torch.autograd.grad((weights * naive(x, y, 1.0, 2.5)).sum(), x)
    close(naive_gradient(weights, x.detach(), y, 1.0, 2.5), expected, torch.float64)


@pytest.mark.parametrize("cost", [*GIVEN_COSTS, Elsewhere(1.0, 2.5), AutogradCost(torch.cdist)])
def test_problems_broadcast(cost: Cost) -> None:
    """The results equal those of explicitly stacked problems."""
    for x_lead, y_lead in (((), (3,)), ((3,), ()), ((), ()), ((2, 1), (3,)), ((2, 3), (1, 3)), ((0,), ())):
        broadcast(cost, x_lead, y_lead)


def broadcast(cost: Cost, x_lead: tuple[int, ...], y_lead: tuple[int, ...]) -> None:
    x, y = uniform(0, *x_lead, 5, 7), uniform(1, *y_lead, 6, 7)
    lead = torch.broadcast_shapes(x_lead, y_lead)
    weights = uniform(2, *lead, 5, 6)
    whole_x, whole_y = x.expand(*lead, 5, 7).contiguous(), y.expand(*lead, 6, 7).contiguous()
    matrix, gradient = cost.matrix(x, y), cost.gradient(weights, x, y)
    assert matrix.shape == (*lead, 5, 6)
    assert gradient.shape == (*lead, 5, 7)
    torch.testing.assert_close(matrix, cost.matrix(whole_x, whole_y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, cost.gradient(weights, whole_x, whole_y), rtol=1e-12, atol=1e-12)
    for k in range(math.prod(lead)):
        one_x, one_y = whole_x.reshape(-1, 5, 7)[k], whole_y.reshape(-1, 6, 7)[k]
        torch.testing.assert_close(matrix.reshape(-1, 5, 6)[k], cost.matrix(one_x, one_y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("cost", "square_weight", "l1_weight"), BOTH_PATHS)
def test_transposed_strided_and_tracked_tensors_are_accepted(
    cost: Cost, square_weight: float, l1_weight: float
) -> None:
    x = uniform(0, 6, 2, 10).permute(1, 2, 0)[:, ::2].requires_grad_()
    y = uniform(1, 2, 4, 12)[..., ::2].requires_grad_()
    weights = uniform(2, 2, 4, 5).mT
    assert not x.is_contiguous()
    matrix, gradient = cost.matrix(x, y), cost.gradient(weights, x, y)
    assert not matrix.requires_grad
    assert not gradient.requires_grad
    close(matrix, naive(x, y, square_weight, l1_weight).detach(), torch.float64)
    close(gradient, naive_gradient(weights, x, y, square_weight, l1_weight).detach(), torch.float64)


@pytest.mark.parametrize("cost", [*GIVEN_COSTS, Elsewhere(1.0, 1.0)])
def test_empty_problems_give_empty_results(cost: Cost) -> None:
    images, none = torch.zeros(2, 3, 4), torch.zeros(2, 0, 4)
    assert cost.matrix(images, none).shape == (2, 3, 0)
    assert cost.matrix(none, images).shape == (2, 0, 3)
    assert torch.equal(cost.gradient(torch.zeros(2, 3, 0), images, none), images)
    assert cost.gradient(torch.zeros(2, 0, 3), none, images).shape == (2, 0, 4)
    assert cost.matrix(images[:0], images[:0]).shape == (0, 3, 3)


@pytest.mark.parametrize("cost", [*GIVEN_COSTS, Elsewhere(1.0, 1.0)])
def test_sums_over_many_pixels_are_accurate_in_float32(cost: Cost) -> None:
    d = 12_288
    x, y = uniform(0, 5, d, dtype=torch.float32), uniform(1, 6, d, dtype=torch.float32)
    exact = cost.matrix(x.double(), y.double())
    torch.testing.assert_close(cost.matrix(x, y).double(), exact, rtol=2e-6, atol=0.0)
    y = uniform(1, 600, 32, dtype=torch.float32)
    weights = torch.rand(5, 600, generator=torch.Generator().manual_seed(2)) / 600
    pull = cost.gradient(weights, x[:, :32], y).double()
    exact = cost.gradient(weights.double(), x[:, :32].double(), y.double())
    assert float((pull - exact).norm() / exact.norm()) < 2e-6


def test_products_and_loop_agree_where_they_change_over() -> None:
    size = costs.PRODUCT_SIZE
    x, y = uniform(0, size, 3), uniform(1, size, 3)
    expected = naive(x, y, 1.0, 0.0)
    for n, m in ((size - 1, size), (size, size - 1), (size, size)):
        close(SquaredEuclidean().matrix(x[:n], y[:m]), expected[:n, :m], torch.float64)


def test_costs_of_close_images_are_never_negative() -> None:
    """The products clamp the cancellation of ‖x‖² + ‖y‖² − 2⟨x, y⟩; the loop has none."""
    x = uniform(0, 40, 784, dtype=torch.float32)
    y = x + 1e-5 * uniform(1, 40, 784, dtype=torch.float32)
    products, loop, exact = squared_by_products(x, y), SquaredEuclidean().matrix(x, y), naive(x, y, 1.0, 0.0)
    assert float(products.min()) >= 0.0
    assert float((products.double() - exact).abs().max()) < 1e-3
    torch.testing.assert_close(loop.double(), exact, rtol=1e-5, atol=0.0)
    assert SquaredEuclidean().matrix(x, x).diagonal().abs().max() == 0.0


def test_autocast_does_not_lower_the_precision() -> None:
    x, y = uniform(0, 30, 64, dtype=torch.float32), uniform(1, 30, 64, dtype=torch.float32)
    weights = torch.rand(30, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ y.mT).dtype == torch.bfloat16
        matrix, pull = squared_by_products(x, y), SquaredEuclidean().gradient(weights, x, y)
    close(matrix, naive(x, y, 1.0, 0.0), torch.float32)
    close(pull, naive_gradient(weights, x, y, 1.0, 0.0), torch.float32, scale=5.0)


@pytest.mark.parametrize("cost", [L1(), Elsewhere(0.0, 1.0)])
def test_equal_pixels_have_gradient_0(cost: Cost) -> None:
    x, y = torch.tensor([[0.5, 0.0, -1.0]]), torch.tensor([[0.5, -0.0, 1.0], [0.5, 0.0, -1.0]])
    assert cost.gradient(torch.tensor([[3.0, 5.0]]), x, y).tolist() == [[0.0, 0.0, -3.0]]


@pytest.mark.parametrize("cost", [L1(), MixedCost(1.0)])
def test_the_smallest_float_difference_has_a_sign(cost: Cost) -> None:
    tiny = 2.0**-149
    x, y = torch.tensor([[tiny, 0.0]]), torch.tensor([[0.0, tiny]])
    assert cost.gradient(torch.ones(1, 1), x, y).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("cost", [L1(), MixedCost(1.0)])
def test_a_point_of_weight_zero_is_skipped(cost: Cost) -> None:
    """A point is skipped even if it is not finite, and only for the images with weight 0."""
    x, y, weights = uniform(0, 5, 9), uniform(1, 11, 9), uniform(2, 5, 11)
    weights[:, 3] = 0.0
    weights[2, 7] = 0.0
    expected = cost.gradient(weights[:, :7].contiguous(), x, y[:7])
    assert torch.equal(cost.gradient(torch.cat([weights[:, :7], torch.zeros(5, 4)], 1).double(), x, y), expected)
    y[3], y[7] = NAN, math.inf
    finite = cost.gradient(weights, x, y).isfinite().all(1)
    assert finite.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize(("cost", "square_weight", "l1_weight"), BOTH_PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nan_appears_in_its_own_entries_only(
    cost: Cost, square_weight: float, l1_weight: float, dtype: torch.dtype
) -> None:
    x, y = uniform(0, 6, 37, dtype=dtype), uniform(1, 7, 37, dtype=dtype)
    y[4, 20] = NAN
    matrix, pull = cost.matrix(x, y), cost.gradient(torch.ones(6, 7, dtype=dtype), x, y)
    assert matrix.isnan().nonzero().tolist() == [[i, 4] for i in range(6)]
    assert pull.isnan().nonzero().tolist() == [[i, 20] for i in range(6)]
    x[2, 9], y[4, 20] = NAN, 0.0
    matrix, pull = cost.matrix(x, y), cost.gradient(torch.ones(6, 7, dtype=dtype), x, y)
    assert matrix.isnan().nonzero().tolist() == [[2, j] for j in range(7)]
    assert pull.isnan().nonzero().tolist() == [[2, 9]]


class NewMemory(TorchDispatchMode):
    """Records the largest number of elements that any operation allocates."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize(("cost", "square_weight", "l1_weight"), BOTH_PATHS)
@pytest.mark.parametrize("sizes", [(6, 10, 20, 30), (2, 300, 260, 5)])
def test_no_tensor_has_a_number_for_every_pair_and_pixel(
    cost: Cost, square_weight: float, l1_weight: float, sizes: tuple[int, int, int, int]
) -> None:
    """No allocation exceeds the size of an input or an output, all below n·m·d."""
    problems, n, m, d = sizes
    x, y, weights = uniform(0, problems, n, d), uniform(1, problems, m, d), uniform(2, problems, n, m)
    bound = problems * max(n * m, n * d, m * d)
    assert bound < n * m * d
    for compute in (lambda: cost.matrix(x, y), lambda: cost.gradient(weights, x, y)):
        with NewMemory(x, y, weights) as memory:
            out = compute()
        assert out.numel() <= memory.largest <= bound


@pytest.mark.parametrize("cost", [SquaredEuclidean(), L1(), MixedCost(1.0)])
def test_shared_images_are_not_copied_for_every_problem(cost: Cost) -> None:
    x, y = uniform(0, 5, 400), uniform(1, 7, 4, 400)
    with NewMemory(x, y) as memory:
        cost.matrix(x, y)
    assert memory.largest == 7 * 5 * 4
    weights = uniform(2, 7, 4, 5)
    with NewMemory(x, y, weights) as memory:
        cost.gradient(weights, y, x)
    assert memory.largest == 7 * 4 * 400


@pytest.mark.parametrize("cost", [SquaredEuclidean(), MixedCost(2.0)])
def test_costs_do_not_depend_on_the_number_of_threads(cost: Cost, three_threads: None) -> None:
    x, y, weights = (uniform(s, 5, *shape) for s, shape in enumerate([(9, 31), (7, 31), (9, 7)]))

    def both() -> tuple[Tensor, Tensor]:
        return cost.matrix(x, y), cost.gradient(weights, x, y)

    many = both()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(many, both(), strict=True))


def test_every_unit_is_computed_once_and_errors_are_raised(three_threads: None) -> None:
    done: list[int] = []
    kernels.run_shared(lambda start, stop: done.extend(range(start, stop)), (), units=101, pixels=1)
    assert sorted(done) == list(range(101))

    def fails(start: int, stop: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        kernels.run_shared(fails, (), units=101, pixels=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own(three_threads: None) -> None:
    x, y = uniform(0, 5, 9, 31), uniform(1, 5, 7, 31)
    expected = L1().matrix(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads and fork
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for threads of its parent
        os._exit(0 if torch.equal(L1().matrix(x, y), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of compiled code."""
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def compiled_again() -> Callable[..., None]:
    """Compile as a new process does, with nothing but the cache on disk."""
    return kernels._compiled.__wrapped__("gradient", torch.float32)


def pull_of(loop: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    monkeypatch.setattr(kernels, "_compiled", lambda name, dtype: loop)
    return L1().gradient(torch.ones(1, 1), torch.tensor([[1.0, 2.0, 3.0]]), torch.full((1, 3), 2.0)).tolist()[0]


def test_compiled_code_is_cached_and_a_damaged_copy_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = compiled_again(), compiled_again()
    assert sum(first.stats.cache_hits.values()) == 0
    assert sum(again.stats.cache_hits.values()) == 1
    (code,) = cache.rglob("*.nbc")
    code.write_bytes(code.read_bytes()[:1000])
    with pytest.warns(RuntimeWarning, match="not kept for the next process .*NUMBA_CACHE_DIR"):
        loop = compiled_again()
    assert pull_of(loop, monkeypatch) == [-1.0, 0.0, 1.0]


def test_without_a_writable_cache_loops_still_work(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    with pytest.warns(RuntimeWarning, match="cannot cache function .*NUMBA_CACHE_DIR"):
        loop = compiled_again()
    assert list(cache.iterdir()) == []
    assert pull_of(loop, monkeypatch) == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "cost", [*GIVEN_COSTS, Elsewhere(1.0, 2.5), AutogradCost(lambda x, y: (x[:, None] - y).square().sum(2))]
)
@pytest.mark.parametrize("label_weight", [0.0, 0.7])
def test_label_costs_equal_appended_one_hot_labels(cost: Cost, label_weight: float) -> None:
    x, y = uniform(0, 2, 6, 5), uniform(1, 2, 7, 5)
    x_labels, y_labels = torch.arange(12).view(2, 6) % 3, torch.arange(14).view(2, 7) % 4

    def appended(images: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([images, label_weight * torch.nn.functional.one_hot(labels, 4).double()], -1)

    expected = cost.matrix(appended(x, x_labels), appended(y, y_labels))
    looked_up = label_costs(x_labels, y_labels, label_mismatch(cost, label_weight), dtype=torch.float64)
    torch.testing.assert_close(cost.matrix(x, y) + looked_up, expected, rtol=1e-12, atol=1e-12)


def test_label_mismatch_matches_a_calculation_by_hand() -> None:
    assert label_mismatch(SquaredEuclidean(), 15.0) == 450.0
    assert label_mismatch(L1(), 15.0) == 30.0
    assert label_mismatch(MixedCost(3.0), 15.0) == 540.0
    assert label_mismatch(MixedCost(3.0), math.inf) == math.inf


def test_label_costs_match_a_calculation_by_hand() -> None:
    shared, own = torch.tensor([0, 2]), torch.tensor([[2, 0, 1], [2, 2, 2]])
    far = math.inf
    assert label_costs(shared, own, far).tolist() == [[[far, 0, far], [0, far, far]], [[far] * 3, [0, 0, 0]]]
    assert label_costs(shared, own, 2.0).dtype == torch.float32


class Mahalanobis:
    """A user's own cost: (x − y)ᵀ A (x − y) with symmetric A."""

    def __init__(self, shape: Tensor) -> None:
        self.shape = shape

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        apart = x.unsqueeze(-2) - y.unsqueeze(-3)
        return ((apart @ self.shape) * apart).sum(-1)

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 2.0 * (weights.sum(-1, keepdim=True) * x - weights @ y) @ self.shape


def test_user_costs_fit_the_protocol_and_match_autograd() -> None:
    root = uniform(5, 4, 4)
    own = Mahalanobis(root @ root.T)
    derived = AutogradCost(own.matrix)
    assert isinstance(own, Cost)
    assert all(isinstance(cost, Cost) for cost in (derived, *GIVEN_COSTS))
    assert not isinstance(torch.cdist, Cost)
    x, y, weights = uniform(0, 5, 4), uniform(1, 3, 6, 4), uniform(2, 3, 5, 6)
    torch.testing.assert_close(derived.matrix(x, y), own.matrix(x, y))
    torch.testing.assert_close(derived.gradient(weights, x, y), own.gradient(weights, x, y))


@pytest.mark.parametrize("cost", [SquaredEuclidean(), L1(), MixedCost(0.5)])
def test_autograd_costs_match_the_built_in_costs(cost: Cost) -> None:
    """It works under no_grad and for images that autograd tracks, and leaves no gradient on them."""
    x, y, weights = uniform(0, 2, 5, 4).requires_grad_(), uniform(1, 6, 4), uniform(2, 2, 5, 6)
    m = getattr(cost, "l1_weight", 1.0)
    squares = 0.0 if isinstance(cost, L1) else 1.0
    derived = AutogradCost(lambda a, b: naive(a, b, squares, 0.0 if isinstance(cost, SquaredEuclidean) else m))
    with torch.no_grad():
        torch.testing.assert_close(derived.matrix(x, y), cost.matrix(x, y))
        torch.testing.assert_close(derived.gradient(weights, x, y), cost.gradient(weights, x, y))
    assert x.grad is None
    assert not derived.matrix(x, y).requires_grad
    assert not derived.gradient(weights, x, y).requires_grad


def test_functions_that_are_not_costs_are_refused() -> None:
    x, y = torch.zeros(2, 3), torch.zeros(4, 3)
    with pytest.raises(InputError, match=r"returned shape \(2, 4, 3\); for 2 images and 4 points return \(2, 4\)"):
        AutogradCost(lambda a, b: a[:, None] - b).matrix(x, y)
    with pytest.raises(InputError, match="does not depend on x"):
        AutogradCost(lambda a, b: torch.ones(2, 4)).gradient(torch.ones(2, 4), x, y)


@pytest.mark.parametrize("l1_weight", [-1.0, NAN, math.inf, -math.inf])
def test_a_bad_l1_weight_is_refused(l1_weight: float) -> None:
    with pytest.raises(InputError, match=f"l1_weight={l1_weight} is not finite and at least 0; give 0"):
        MixedCost(l1_weight)


def made_for_three_pixels(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    weights = torch.ones(3, 3, dtype=x.dtype)
    return torch.cdist(x @ weights, y @ weights)


def mean_of_squares(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cdist(x, y).square() / x.shape[1]


@pytest.mark.parametrize("function", [made_for_three_pixels, mean_of_squares])
def test_label_weights_need_a_cost_that_sums_over_pixels(function: Any) -> None:
    with pytest.raises(InputError, match="this cost is not a sum over pixels; give inf"):
        label_mismatch(AutogradCost(function), 15.0)
    assert label_mismatch(AutogradCost(function), math.inf) == math.inf
    assert label_mismatch(AutogradCost(lambda x, y: torch.cdist(x, y, p=1.0)), 15.0) == pytest.approx(30.0)


@pytest.mark.parametrize("label_weight", [-0.1, NAN, -math.inf])
def test_a_bad_label_weight_is_refused(label_weight: float) -> None:
    with pytest.raises(InputError, match=f"label_weight={label_weight} is not at least 0; give inf"):
        label_mismatch(L1(), label_weight)


@pytest.mark.parametrize("cost", GIVEN_COSTS)
def test_tensors_that_do_not_fit_are_refused(cost: Cost) -> None:
    x, y = torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)
    with pytest.raises(InputError, match="images and weights are float32, float64; give all of them as"):
        cost.matrix(x, y.double())
    with pytest.raises(InputError, match="are float16, float16; give"):
        cost.matrix(x.half(), y.half())
    with pytest.raises(InputError, match="are float32, float32, float64; give"):
        cost.gradient(torch.zeros(2, 3, 4).double(), x, y)


@pytest.mark.parametrize("cost", GIVEN_COSTS)
def test_costs_refuse_wrong_shapes_without_type_checks(cost: Cost) -> None:
    matrix, gradient = (inspect.unwrap(getattr(type(cost), name)) for name in ("matrix", "gradient"))
    x, y = torch.zeros(2, 3, 5), torch.zeros(2, 4, 5)
    with pytest.raises(InputError, match="images have 5 and 4 numbers; give both the same size"):
        matrix(cost, x, y[..., :4])
    for wrong in (torch.zeros(2, 4, 3), torch.zeros(3, 4), torch.zeros(1, 3, 4), torch.zeros(3, 3, 4)):
        with pytest.raises(InputError, match=r"do not fit images .2, 3, 5. and points .2, 4, 5."):
            gradient(cost, wrong, x, y)
