"""Bugs that cost people their privacy, planted one at a time into the code that a run executes."""

from dataclasses import replace
from functools import cache

import torch

import dp_sinkhorn.audit.stage as stage
import dp_sinkhorn.privacy.clipping as clipping
import dp_sinkhorn.stages.batch_steps as batch_step
import dp_sinkhorn.stages.class_embedding as embedding
import dp_sinkhorn.stages.class_features as refinement
import dp_sinkhorn.stages.class_moments as correction
import dp_sinkhorn.stages.label_classifier as classifier
import dp_sinkhorn.stages.principal_subspace as statistics
import dp_sinkhorn.stages.transport_steps as step
import dp_sinkhorn.training.loop as trainer
import dp_sinkhorn.training.methods as methods
from dp_sinkhorn.build import resolve
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import DataFacts, RunConfig, make_settings

FACTS = DataFacts(source="none", num_records=200, shape=(1, 8, 8), class_names=("0", "1"))
SMALL = {"generator": "mlp", "width": 16, "num_steps": 20, "expected_batch_size": 20, "noise_multiplier": 1.5}
RECORD = SMALL | {
    "sanitize": "record",
    "num_generated": 16,
    "num_reference": 32,
    "min_dimensions": 4,
    "target_epsilon": 50.0,
}
BATCH = SMALL | {"sanitize": "batch", "num_generated": 8, "sinkhorn_iterations": 5, "target_epsilon": 50.0}

EMBEDDING = {
    "sanitize": "embedding", "generator": "mlp", "width": 16, "num_steps": 20, "noise_multiplier": 1.5,
    "num_generated": 16, "num_frequencies": 50, "min_dimensions": 4, "target_epsilon": 50.0,
}  # fmt: skip


@cache
def embedding_config(**changes: object) -> RunConfig:
    return resolve(make_settings(None, EMBEDDING | changes), FACTS)


@cache
def record_config(**changes: object) -> RunConfig:
    return resolve(make_settings(None, RECORD | changes), FACTS)


@cache
def batch_config(**changes: object) -> RunConfig:
    return resolve(make_settings(None, BATCH | {"queries_per_step": 3} | changes), FACTS)


def factor_two_forgotten(monkeypatch):
    sound = batch_step.clipped_queries

    def half(gradients, clip_norm):
        return replace(sound(gradients, clip_norm), sensitivity=clip_norm)

    monkeypatch.setattr(batch_step, "clipped_queries", half)
    monkeypatch.setattr(methods, "GaussianMechanism", lambda bound, sigma: GaussianMechanism(bound / 2.0, sigma))


def clip_skipped_for_one(monkeypatch):
    """The second record of a class, or the second query."""
    sound = clipping.clip_factors

    def broken(norms, clip_norm):
        factors = sound(norms, clip_norm)
        factors[1:2] = 1.0
        return factors

    monkeypatch.setattr(clipping, "clip_factors", broken)


def _noise(monkeypatch, change):
    sound = GaussianMechanism.__call__

    def broken(self, total, random):
        released = sound(self, total, random)
        # The statistics that are released first are vectors: only the steps are broken.
        return released if total.value.ndim < 2 else total.value + change(released - total.value, total)

    monkeypatch.setattr(GaussianMechanism, "__call__", broken)


def features_not_bounded(monkeypatch):
    """Without the division by √m they have norm √m."""
    sound = embedding.embedding_sum

    def longer(features, labels, num_classes):
        total = sound(features, labels, num_classes)
        return BoundedSum(total.value * (features.shape[1] / 4) ** 0.5, total.sensitivity)

    monkeypatch.setattr(embedding, "embedding_sum", longer)


def record_in_every_class(monkeypatch):
    """Each class's row gets all records."""
    sound = embedding.embedding_sum

    def everywhere(features, labels, num_classes):
        total = sound(features, labels, num_classes)
        return BoundedSum(total.value.sum(0).expand_as(total.value).clone(), total.sensitivity)

    monkeypatch.setattr(embedding, "embedding_sum", everywhere)


def weights_by_the_number_of_records(monkeypatch):
    sound = stage.restore_method

    def counting(config, data, released):
        method = sound(config, data, released)
        method.rules = replace(method.rules, weights=method.rules.weights * len(data))
        return method

    monkeypatch.setattr(stage, "restore_method", counting)


def one_release_not_finite(monkeypatch):
    """The third release of a step, as by a record that makes a number overflow."""
    made = iter(range(10**9))
    _noise(monkeypatch, lambda noise, total: noise * (float("nan") if next(made) == 2 else 1.0))


def noise_on_half(monkeypatch):
    def half(noise, total):
        rows = noise.flatten(0, -2).clone()
        rows[:, ::2] = 0.0
        return rows.view_as(noise)

    _noise(monkeypatch, half)


def noise_on_the_wrong_block(monkeypatch):
    """All of it, but on the first half of the images: the energy is right."""

    def block(noise, total):
        rows = noise.flatten(0, -2)
        half = rows.shape[0] // 2
        return torch.cat([rows[:half] * 2**0.5, rows[half:] * 0.0]).view_as(noise)

    _noise(monkeypatch, block)


def noise_shared_by_all_images(monkeypatch):
    def shared(noise, total):
        rows = noise.flatten(0, -2)
        return rows[:1].expand_as(rows).reshape(noise.shape)

    _noise(monkeypatch, shared)


def noise_that_comes_back(monkeypatch):
    """Every noise serves two steps."""
    kept = []

    def twice(noise, total):
        if float(noise.norm()) < 1e-6:
            return noise
        again = len(kept) % 2 == 1 and kept[-1].shape == noise.shape
        kept.append(kept[-1] if again else noise)
        return kept[-1]

    _noise(monkeypatch, twice)


def noise_scaled_by_the_drawn_batch(monkeypatch):
    drawn = [1.0]
    sound = PoissonSubsampler._heads

    def counted(self, coins, random):
        heads = sound(self, coins, random)
        drawn[0] = heads.numel() / (self.sample_rate * coins)
        return heads

    monkeypatch.setattr(PoissonSubsampler, "_heads", counted)
    _noise(monkeypatch, lambda noise, total: drawn[0] * noise)


def empty_draws_drawn_again(monkeypatch):
    sound = PoissonSubsampler._heads

    def again(self, coins, random):
        heads = sound(self, coins, random)
        while heads.numel() == 0 and self.sample_rate > 1e-6:
            heads = sound(self, coins, random)
        return heads

    monkeypatch.setattr(PoissonSubsampler, "_heads", again)


def empty_draws_skipped(monkeypatch):
    sound = methods.training_step

    def skipping(generator, optimiser, records, rules, latents, random, observe):
        if rules.subsampler.draw(random).numel() == 0:
            return 0.0
        return sound(generator, optimiser, records, rules, latents, random, observe)

    monkeypatch.setattr(methods, "training_step", skipping)


def empty_draws_without_noise(monkeypatch):
    _noise(monkeypatch, lambda noise, total: noise if bool(total.value.any()) else 0.0 * noise)


def potential_from_private_records(monkeypatch):
    sound_step, sound_potential, held = methods.training_step, step.balanced_potential, []

    def stepping(generator, optimiser, records, rules, *rest):
        held[:] = [records.coordinates]
        return sound_step(generator, optimiser, records, rules, *rest)

    monkeypatch.setattr(methods, "training_step", stepping)
    monkeypatch.setattr(step, "balanced_potential", lambda x, fit, reg, count: sound_potential(x, held[0], reg, 2))


def images_tied_to_the_draw(monkeypatch):
    by_record, by_batch = methods.training_step, methods.batch_step

    def record(generator, optimiser, records, rules, latents, random, observe):
        drawn = len(rules.subsampler.draw(random))
        each = torch.arange(len(rules.expected_counts)).repeat_interleave(max(1, drawn // 2))
        return by_record(generator, optimiser, records, replace(rules, labels=each), latents, random, observe)

    def batch(generator, optimiser, records, rules, latents, random, observe):
        drawn = max(2, len(rules.subsampler.draw(random)))
        tied = replace(rules, num_generated=drawn, num_fresh=int(drawn * rules.debias_fraction))
        return by_batch(generator, optimiser, records, tied, latents, random, observe)

    monkeypatch.setattr(methods, "training_step", record)
    monkeypatch.setattr(methods, "batch_step", batch)


def field_divided_by_the_drawn_number(monkeypatch):
    """Rule 1 of another kind: nothing wrong with the release, but the update divides by the drawn number."""
    sound = methods.training_step

    def divided(generator, optimiser, records, rules, *rest):
        counts = torch.bincount(records.labels, minlength=2).double().clamp(min=1.0)
        return sound(generator, optimiser, records, replace(rules, expected_counts=counts), *rest)

    monkeypatch.setattr(methods, "training_step", divided)


def noise_ten_times_too_small(monkeypatch):
    _noise(monkeypatch, lambda noise, total: 0.1 * noise)


def noise_hundred_times_too_small(monkeypatch):
    _noise(monkeypatch, lambda noise, total: 0.01 * noise)


def same_seed_after_resume(monkeypatch):
    """The user's seed makes the noise; nothing says so."""

    def fixed(test_seed):
        source = CryptoRandom(test_seed=0)
        source.is_private = True
        return source

    monkeypatch.setattr(trainer, "CryptoRandom", fixed)


def twice_the_sum(monkeypatch):
    """Every record counted twice behind the clip."""
    sound = step.clipped_sum

    def doubled(contributions, clip_norm):
        total = sound(contributions, clip_norm)
        return BoundedSum(2.0 * total.value, total.sensitivity)

    monkeypatch.setattr(step, "clipped_sum", doubled)


def _larger_sum(module, name, factor):
    """A bug in one release's sum: as if a division or a cut were missing."""

    def plant(monkeypatch):
        sound = getattr(module, name)

        def larger(*arguments):
            total = sound(*arguments)
            return BoundedSum(factor * total.value, total.sensitivity)

        monkeypatch.setattr(module, name, larger)

    return plant


records_counted_twice = _larger_sum(statistics, "class_counts", 2.0)
mean_and_square_not_shared = _larger_sum(statistics, "first_moments", 2**0.5)
moments_not_shared = _larger_sum(correction, "image_moments", 2**0.5)
features_counted_twice = _larger_sum(refinement, "feature_sum", 2.0)


def directions_not_normalised(monkeypatch):
    """Of the second moment: a record counts by its length."""
    sound = statistics.second_moment

    def longer(rows):
        return BoundedSum((rows.norm(dim=1).max() ** 2) * sound(rows).value, 1.0)

    monkeypatch.setattr(statistics, "second_moment", longer)


def classifier_not_clipped(monkeypatch):
    monkeypatch.setattr(
        classifier,
        "clipped_sum",
        lambda parts, clip_norm: BoundedSum(parts.weighted_sum(torch.ones(len(parts.features)).double()), clip_norm),
    )


def record_in_every_class_s_features(monkeypatch):
    sound = refinement.disjoint

    def everywhere(sums):
        total = sound(sums)
        return BoundedSum(total.value.sum(0).expand_as(total.value).clone(), total.sensitivity)

    monkeypatch.setattr(refinement, "disjoint", everywhere)


def noise_of_another_charge(monkeypatch):
    """A release made with half of the noise that was charged."""
    sound = GaussianMechanism.__call__

    def halved(self, total, random):
        return sound(replace(self, noise_multiplier=self.noise_multiplier / 2.0), total, random)

    monkeypatch.setattr(GaussianMechanism, "__call__", halved)


def one_noise_for_all_releases(monkeypatch):
    sound = GaussianMechanism.__call__
    monkeypatch.setattr(
        GaussianMechanism, "__call__", lambda self, total, random: sound(self, total, CryptoRandom(test_seed=0))
    )
