"""The weights of each optimiser, the restored state, the schedule and the average of weights."""

from collections.abc import Callable

import pytest
import torch

from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.conv import ConvGenerator
from dp_sinkhorn.generators.mlp import MLPGenerator
from dp_sinkhorn.generators.optimiser import (
    Optimiser,
    adam,
    learning_rate_share,
    make_optimiser,
    split_weights,
    update_average,
)
from dp_sinkhorn.method import STAGES


def _generator() -> ConvGenerator:
    torch.manual_seed(0)
    return ConvGenerator((1, 8, 8), 2, latent_dim=4, width=16, channels=16)


def _names(generator: Generator) -> tuple[set[str], set[str]]:
    names = {weight: name for name, weight in generator.named_parameters()}
    hidden, others = split_weights(generator)
    return {names[weight] for weight in hidden}, {names[weight] for weight in others}


def test_muon_updates_the_weights_between_layers_only() -> None:
    hidden, others = _names(_generator())
    assert hidden == {"hidden.weight", "coarse.weight", "stages.0.weight"}
    assert others == {"embedding.weight", "hidden.bias", "coarse.bias", "stages.0.bias", "last.weight", "last.bias"}
    hidden, others = _names(MLPGenerator((1, 8, 8), 2, latent_dim=4, width=16))
    assert hidden == {"layers.0.weight", "layers.2.weight"}
    assert "layers.4.weight" in others


def test_every_network_has_its_own_last_layer() -> None:
    """The last layer makes pixels or adds to them; Adam updates it."""
    two = [_generator(), MLPGenerator((1, 8, 8), 2, latent_dim=4, width=16)]
    optimiser = make_optimiser(0.01, *two)
    for network in two:
        network.sample(torch.tensor([0, 1]), torch.Generator()).square().sum().backward()
    optimiser.step()
    found = optimiser.tensors()
    for part, name in enumerate(("momentum", "exp_avg")):
        shapes = [weight.shape for network in two for weight in split_weights(network)[part]]
        assert [found[f"{part}.{place}.{name}"].shape for place in range(len(shapes))] == shapes
        assert f"{part}.{len(shapes)}.{name}" not in found


def _step(generator: Generator, optimiser: Optimiser, seed: int) -> None:
    optimiser.set_rate(0.01)
    optimiser.zero_grad()
    images = generator.sample(torch.tensor([0, 1]), torch.Generator().manual_seed(seed))
    images.square().sum().backward()
    optimiser.step()


@pytest.mark.parametrize("make", [lambda generator, rate: make_optimiser(rate, generator), adam], ids=["both", "adam"])
def test_a_restored_optimiser_continues_where_it_was(make: Callable[[Generator, float], Optimiser]) -> None:
    one, two = _generator(), _generator()
    first, second = make(one, 0.01), make(two, 0.01)
    assert first.tensors() == {}
    second.restore({})
    _step(one, first, 0)
    _step(one, first, 1)
    two.load_state_dict(one.state_dict())
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()})
    _step(one, first, 2)
    _step(two, second, 2)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    _step(two, second, 3)
    assert not torch.equal(one.last.weight, two.last.weight)


def test_batch_steps_use_adam_alone() -> None:
    generator = _generator()
    optimiser = STAGES["batch_steps"].optimiser(generator, 0.01)
    _step(generator, optimiser, 0)
    assert {name.rpartition(".")[2] for name in optimiser.tensors()} == {"step", "exp_avg", "exp_avg_sq"}


def test_the_state_of_other_optimisers_is_refused() -> None:
    record = make_optimiser(0.01, _generator())
    for name in ("2.0.momentum", "0.momentum", "x.0.momentum"):
        with pytest.raises((KeyError, ValueError)):
            record.restore({name: torch.zeros(1)})


def test_the_cosine_schedule_warms_up_and_decays():
    shares = [learning_rate_share(step, 100, 0.1, "cosine") for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(shares[9], abs=0.02)
    assert shares[-1] < 1e-3
    assert all(0 < share <= 1 for share in shares)


def test_the_constant_schedule_warms_up_only():
    shares = [learning_rate_share(step, 100, 0.1, "constant") for step in range(100)]
    assert shares[:2] == pytest.approx([0.1, 0.2])
    assert shares[9:] == [1.0] * 91


def test_running_statistics_are_averaged_and_counters_copied():
    generator, average = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2).requires_grad_(requires_grad=False)
    generator.running_mean.fill_(8.0)
    generator.num_batches_tracked.fill_(5)
    update_average(average, generator, 0.75, 1000)
    assert average.running_mean.tolist() == [2.0, 2.0]
    assert int(average.num_batches_tracked) == 5
    update_average(average, generator, 0.0, 1000)
    assert average.running_mean.tolist() == [8.0, 8.0]


def test_the_average_follows_a_jump_of_the_weights():
    generator, average = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(generator.weight, 1.0)
    torch.nn.init.constant_(average.weight, 0.0)
    average.requires_grad_(requires_grad=False)
    for step in range(1000, 1000 + 69):
        update_average(average, generator, 0.99, step)
    assert float(average.weight) == pytest.approx(1 - 0.99**69, rel=1e-4)
