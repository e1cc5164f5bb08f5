"""The correction of a whole generator: almost without noise, its images get the moments of the records."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dp_sinkhorn.build import resolve
from dp_sinkhorn.data.images import LabelledImages
from dp_sinkhorn.estimators.subspace import Subspace
from dp_sinkhorn.features.cosine import frequency_bands, num_bands, to_frequencies
from dp_sinkhorn.generators.base import Generator
from dp_sinkhorn.generators.corrected import CorrectedGenerator
from dp_sinkhorn.privacy.ledger import Header, Ledger
from dp_sinkhorn.privacy.plan import CLASS_MOMENTS
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings
from dp_sinkhorn.stages import class_moments as correction
from dp_sinkhorn.stages.class_moments import correction_tensors, release_class_moments
from dp_sinkhorn.stages.principal_subspace import ReleasedStatistics

SHAPE, SIZE, DIMENSIONS = (1, 8, 8), 64, 6


class Noise(Generator):
    """Normal images around a ramp, so grey that the correction never meets black or white."""

    def __init__(self) -> None:
        super().__init__(SHAPE, 2, SIZE)
        self.scale = torch.nn.Parameter(torch.tensor(0.02))

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.scale * (latents - 0.5) * 12**0.5 + torch.linspace(-0.04, 0.04, SIZE)


def some_records(count: int) -> LabelledImages:
    """Two classes, each around a mean of its own, with more in the slow frequencies."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(count)
    strengths = torch.randn(2 * count, SIZE, generator=random) / (1.0 + frequency_bands(SHAPE))
    means = torch.randn(2, SIZE, generator=random)
    pixels = 127.5 + 4.0 * strengths + 3.0 * means[labels]
    return LabelledImages(pixels.round().to(torch.uint8).view(-1, *SHAPE), labels, ("a", "b"))


def quiet_config(data: LabelledImages, epsilon: float = 10.0) -> RunConfig:
    """A run whose released moments have next to no noise."""
    facts = DataFacts(source="arrays", num_records=len(data), shape=SHAPE, class_names=data.class_names)
    config = resolve(make_settings(None, {"target_epsilon": epsilon, "num_steps": 10}), facts)
    quiet = config.privacy.model_copy(update={"once": {**config.privacy.once, CLASS_MOMENTS: 1e-6}})
    return config.model_copy(update={"privacy": quiet})


def some_statistics(variance: float) -> ReleasedStatistics:
    random = torch.Generator().manual_seed(1)
    return ReleasedStatistics(
        class_counts=torch.full((2,), 6_000.0, dtype=torch.float64),
        variance=variance,
        subspace=Subspace(
            0.1 * torch.randn(SIZE, generator=random),
            torch.linalg.qr(torch.randn(SIZE, DIMENSIONS, generator=random))[0],
        ),
    )


def some_released(
    data: LabelledImages, statistics: ReleasedStatistics, config: RunConfig, folder: Path
) -> torch.Tensor:
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.begin(Header(run="0" * 32, config_sha256=config.sha256()))
    released = release_class_moments(data, statistics, config, ledger, CryptoRandom(test_seed=0))
    assert [charge.name for charge in ledger.charges] == [CLASS_MOMENTS]
    return released


def test_corrected_images_have_the_records_moments(tmp_path: Path) -> None:
    data = some_records(6_000)
    config, statistics = quiet_config(data), some_statistics(4.0)  # nothing is cut
    released = some_released(data, statistics, config, tmp_path)
    tensors = correction_tensors(Noise(), released, statistics, config)
    images = CorrectedGenerator(Noise(), **tensors)
    random = torch.Generator().manual_seed(1)

    basis, bands = statistics.subspace.basis, frequency_bands(SHAPE)
    for label in range(2):
        with torch.no_grad():
            made = images.sample(torch.full((20_000,), label), random)
        real = torch.cat(list(data.float_chunks()))[data.labels == label]
        spread = real.std(0).mean()
        assert float((made.mean(0) - real.mean(0)).abs().max()) < 0.06 * spread
        found, wanted = (torch.cov((rows @ basis).T) for rows in (made, real))
        assert float((found - wanted).norm() / wanted.norm()) < 0.05
        of_rest = [to_frequencies(statistics.subspace.rest(rows), SHAPE).var(0) for rows in (made, real)]
        for band in range(num_bands(SHAPE[0])):
            if bool((bands == band).any()):
                ratio = of_rest[0][bands == band].sum() / of_rest[1][bands == band].sum()
                assert abs(float(ratio) - 1.0) < 0.2  # the subspace cuts across the bands


def test_variation_that_the_generator_lacks_is_added(tmp_path: Path) -> None:
    """It never moves along the first direction of the subspace: no stretch helps there."""
    data = some_records(6_000)
    config, statistics = quiet_config(data), some_statistics(4.0)
    flat = statistics.subspace.basis[:, 0]

    class Flat(Noise):
        def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            images = super().forward(latents, labels)
            return images - torch.outer(images @ flat, flat)

    released = some_released(data, statistics, config, tmp_path)
    images = CorrectedGenerator(Flat(), **correction_tensors(Flat(), released, statistics, config))
    for label in range(2):
        with torch.no_grad():
            made = images.sample(torch.full((20_000,), label), torch.Generator().manual_seed(1))
        real = torch.cat(list(data.float_chunks()))[data.labels == label]
        found, wanted = (torch.cov((rows @ statistics.subspace.basis).T) for rows in (made, real))
        assert float(wanted[0, 0]) > 0.05 * float(wanted.trace())
        assert float(found[0, 0]) == pytest.approx(float(wanted[0, 0]), rel=0.05)
        others = found[1:, 1:] - wanted[1:, 1:]
        assert float(others.norm() / wanted[1:, 1:].norm()) < 0.05


def test_images_that_are_too_many_to_keep_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, statistics = some_records(6_000), some_statistics(4.0)
    config = quiet_config(data)
    released = some_released(data, statistics, config, tmp_path)
    kept = correction_tensors(Noise(), released, statistics, config)
    monkeypatch.setattr(correction, "_MOST_KEPT", 2 * 10_000 * SIZE - 1)
    drawn: list[int] = []
    real = Generator.samples_by_class

    def counted(self: Generator, per_class: int, seed: int) -> Any:
        drawn.append(per_class)
        return real(self, per_class, seed)

    monkeypatch.setattr(Generator, "samples_by_class", counted)
    again = correction_tensors(Noise(), released, statistics, config)
    assert drawn == [10_000] * 4  # once a round, and once for what the last one leaves
    for name, tensor in kept.items():  # what is kept is kept as halves
        torch.testing.assert_close(again[name], tensor, rtol=2e-2, atol=2e-3)


def test_by_a_small_budget_no_detail_is_amplified(tmp_path: Path) -> None:
    """The model's images spread less than the records, whatever the frequency."""
    data, statistics = some_records(6_000), some_statistics(4.0)
    dull = Noise()
    with torch.no_grad():
        dull.scale.mul_(0.1)
    gains = {}
    for epsilon in (10.0, 1.0):
        config = quiet_config(data, epsilon)
        folder = tmp_path / f"{epsilon:g}"
        folder.mkdir()
        released = some_released(data, statistics, config, folder)
        gains[config.privacy.small_budget] = correction_tensors(dull, released, statistics, config)["gains"]
    used = frequency_bands(SHAPE).unique()
    assert bool((gains[False][:, used] > 0.5).all())
    assert not bool((gains[True] > 0.0).any())


def test_rounds_find_moments_that_half_of_the_records_are_cut_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correction, "_IMAGES", 4_000)
    data = some_records(6_000)
    records = torch.cat(list(data.float_chunks()))
    config, statistics = quiet_config(data), some_statistics(1.0)
    around = replace(statistics.subspace, centre=records.mean(0))
    lengths = (records - around.centre).norm(dim=1)
    statistics = replace(statistics, variance=float(lengths.median()) ** 2, subspace=around)
    released = some_released(data, statistics, config, tmp_path)

    def errors(rounds: int) -> tuple[float, float]:
        monkeypatch.setattr(correction, "_ROUNDS", rounds)
        images = CorrectedGenerator(Noise(), **correction_tensors(Noise(), released, statistics, config))
        with torch.no_grad():
            made = images.sample(torch.zeros(20_000, dtype=torch.int64), torch.Generator().manual_seed(2))
        real = records[data.labels == 0]
        basis = statistics.subspace.basis
        spread = float(torch.trace(torch.cov((made @ basis).T)) / torch.trace(torch.cov((real @ basis).T)))
        return float(((made.mean(0) - real.mean(0)) @ basis).norm() / real.std(0).norm()), abs(spread - 1.0)

    once, often = errors(1), errors(3)
    assert often[0] < 0.5 * once[0]
    assert often[1] < 0.5 * once[1]
