"""Record contributions against an explicit n×B×d computation and autograd of the semi-dual; invariances."""

import pytest
import torch

from dp_sinkhorn.transport.costs import squared_euclidean
from dp_sinkhorn.transport.semidual import SemiDualContributions, balanced_potential

pytestmark = pytest.mark.quick

N, B, D = 6, 9, 4


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normal(seed, N, D), 1.5 * normal(seed + 100, B, D), normal(seed + 200, N)


def explicit(x: torch.Tensor, y: torch.Tensor, f: torch.Tensor, reg: float) -> torch.Tensor:
    """All contributions, B×n×d, computed in loops over records and images."""
    out = torch.zeros(y.shape[0], x.shape[0], x.shape[1], dtype=torch.float64)
    for b, record in enumerate(y):
        costs = torch.stack([((image - record) ** 2).sum() for image in x])
        mass = torch.exp((f - costs) / reg)
        for i, image in enumerate(x):
            out[b, i] = mass[i] / mass.sum() * 2.0 * (image - record)
    return out


def semi_dual(x: torch.Tensor, y: torch.Tensor, f: torch.Tensor, reg: float) -> torch.Tensor:
    """Σ_y −reg · log Σ_i exp((f_i − ‖x_i − y‖²)/reg)."""
    cost = (y.unsqueeze(1) - x.unsqueeze(0)).square().sum(2)
    return -reg * ((f - cost) / reg).logsumexp(1).sum()


def test_cost_is_the_squared_distance_and_never_negative() -> None:
    a, b = normal(1, 5, D), normal(2, 7, D)
    torch.testing.assert_close(squared_euclidean(a, b), torch.cdist(a, b).square())
    far = 1e4 + 1e-3 * normal(3, 20, D)
    assert float(squared_euclidean(far, far).min()) >= 0.0
    assert squared_euclidean(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])).item() == 25.0


@pytest.mark.parametrize("reg", [0.3, 1.0, 10.0])
def test_norms_and_weighted_sums_match_explicit_matrices(reg: float) -> None:
    x, y, f = problem()
    matrices = explicit(x, y, f, reg)
    pull = SemiDualContributions.of(x, y, f, reg)
    torch.testing.assert_close(pull.norms(), matrices.flatten(1).norm(dim=1), rtol=1e-10, atol=1e-12)
    weights = torch.linspace(0.0, 1.0, B, dtype=torch.float64)
    expected = (weights.view(-1, 1, 1) * matrices).sum(0)
    torch.testing.assert_close(pull.weighted_sum(weights), expected, rtol=1e-10, atol=1e-12)


def test_one_record_contributes_twice_its_difference() -> None:
    pull = SemiDualContributions.of(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, -2.0]]), torch.zeros(1), 1.0)
    assert pull.weighted_sum(torch.ones(1, dtype=torch.float64)).tolist() == [[-6.0, 8.0]]
    assert pull.norms().tolist() == [10.0]


@pytest.mark.parametrize("reg", [0.3, 2.0])
def test_the_sum_is_the_gradient_of_the_semi_dual(reg: float) -> None:
    x, y, f = problem(seed=1)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(semi_dual(x, y, f, reg), x)
    pull = SemiDualContributions.of(x.detach(), y, f, reg)
    torch.testing.assert_close(pull.weighted_sum(torch.ones(B, dtype=torch.float64)), gradient, rtol=1e-9, atol=1e-11)


def test_the_sum_matches_finite_differences() -> None:
    x, y, f = problem(seed=2)
    direction, step = normal(9, N, D), 1e-5
    slope = (semi_dual(x + step * direction, y, f, 1.0) - semi_dual(x - step * direction, y, f, 1.0)) / (2 * step)
    pull = SemiDualContributions.of(x, y, f, 1.0).weighted_sum(torch.ones(B, dtype=torch.float64))
    assert float((pull * direction).sum()) == pytest.approx(float(slope), rel=1e-7)


def test_a_contribution_does_not_depend_on_other_records() -> None:
    x, y, f = problem(seed=3)
    together = SemiDualContributions.of(x, y, f, 1.0)
    for b in range(B):
        alone = SemiDualContributions.of(x, y[b : b + 1], f, 1.0)
        only = torch.zeros(B, dtype=torch.float64)
        only[b] = 1.0
        torch.testing.assert_close(
            alone.weighted_sum(only[b : b + 1]), together.weighted_sum(only), rtol=1e-9, atol=1e-11
        )
        torch.testing.assert_close(alone.norms()[0], together.norms()[b], rtol=1e-9, atol=1e-11)


def test_translating_images_and_records_changes_nothing() -> None:
    x, y, f = problem(seed=4)
    shift, weights = 3.0 * normal(5, D), torch.rand(B, generator=torch.Generator().manual_seed(0)).double()
    here, there = SemiDualContributions.of(x, y, f, 0.7), SemiDualContributions.of(x + shift, y + shift, f, 0.7)
    torch.testing.assert_close(here.norms(), there.norms(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(here.weighted_sum(weights), there.weighted_sum(weights), rtol=1e-9, atol=1e-9)


def test_a_constant_added_to_the_potential_changes_nothing() -> None:
    x, y, f = problem(seed=5)
    torch.testing.assert_close(
        SemiDualContributions.of(x, y, f, 1.0).plan, SemiDualContributions.of(x, y, f + 7.0, 1.0).plan
    )


def test_a_small_reg_sends_each_record_to_its_closest_image() -> None:
    x, y, _ = problem(seed=6)
    pull = SemiDualContributions.of(x, y, torch.zeros(N), 1e-6)
    closest = torch.cdist(y, x).argmin(1)
    torch.testing.assert_close(pull.plan, torch.nn.functional.one_hot(closest, N).double())


def test_no_records_give_zeros() -> None:
    x, _, f = problem()
    none = SemiDualContributions.of(x, torch.zeros(0, D), f, 1.0)
    assert none.norms().shape == (0,)
    assert torch.equal(none.weighted_sum(torch.zeros(0, dtype=torch.float64)), torch.zeros(N, D, dtype=torch.float64))


def test_float32_inputs_give_float64_results() -> None:
    x, y, f = (tensor.float() for tensor in problem())
    pull = SemiDualContributions.of(x, y, f, 1.0)
    weights = torch.ones(B, dtype=torch.float64)
    assert pull.norms().dtype == pull.weighted_sum(weights).dtype == torch.float64
    assert balanced_potential(x, y, 1.0, 3).dtype == balanced_potential(x, y, 1.0, 0).dtype == torch.float64


def test_zero_iterations_give_a_zero_potential() -> None:
    x, y, _ = problem()
    assert balanced_potential(x, y, 1.0, 0).tolist() == [0.0] * N


@pytest.mark.parametrize("reg", [0.5, 2.0])
def test_the_balanced_potential_gives_every_image_equal_mass(reg: float) -> None:
    x, reference = problem(seed=7)[0], normal(8, 50, D)
    uniform = torch.full((N,), 1.0 / N, dtype=torch.float64)

    def shares(iterations: int) -> torch.Tensor:
        f = balanced_potential(x, reference, reg, iterations)
        return SemiDualContributions.of(x, reference, f, reg).plan.mean(0)

    assert float((shares(0) - uniform).abs().max()) > 0.03
    assert float((shares(5) - uniform).abs().max()) < float((shares(0) - uniform).abs().max())
    torch.testing.assert_close(shares(3_000), uniform, rtol=0.0, atol=1e-6)


def test_one_half_iteration_matches_a_calculation_by_hand() -> None:
    """With two images and one reference at the first, p = (1/(1+e⁻¹), …) and f = −log(2 p)."""
    x, reference = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0]])
    p = torch.tensor([0.0, -1.0], dtype=torch.float64).softmax(0)
    torch.testing.assert_close(balanced_potential(x, reference, 1.0, 1), -(2.0 * p).log())


@pytest.mark.parametrize("iterations", [0, 10])
def test_repeating_the_sample_does_not_change_the_mean_field(iterations: int) -> None:
    """For any potential, a sample that repeats the reference has the same mean field."""
    x, reference = problem(seed=10)[0], normal(11, 12, D)
    f = balanced_potential(x, reference, 1.0, iterations)

    def mean_pull(sample: torch.Tensor) -> torch.Tensor:
        weights = torch.ones(sample.shape[0], dtype=torch.float64)
        return SemiDualContributions.of(x, sample, f, 1.0).weighted_sum(weights) / sample.shape[0]

    again = reference[torch.randperm(12, generator=torch.Generator().manual_seed(0))].repeat(3, 1)
    assert float(mean_pull(reference).norm()) > 0.1
    torch.testing.assert_close(mean_pull(again), mean_pull(reference), rtol=1e-10, atol=1e-12)
