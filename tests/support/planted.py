"""Privacy bugs, planted one at a time into the code that a run executes."""

from dataclasses import replace
from functools import cache

import torch

import dp_sinkhorn.estimators.image_moments as image_moments
import dp_sinkhorn.privacy.clipping as clipping
import dp_sinkhorn.stages.batch_steps as batch_steps
import dp_sinkhorn.stages.class_counts as class_counts
import dp_sinkhorn.stages.class_embedding as class_embedding
import dp_sinkhorn.stages.class_features as class_features
import dp_sinkhorn.stages.label_classifier as label_classifier
import dp_sinkhorn.stages.principal_subspace as principal_subspace
import dp_sinkhorn.stages.transport_steps as transport_steps
import dp_sinkhorn.training.loop as loop
from dp_sinkhorn.estimators.mean_embedding import EmbeddingGoal
from dp_sinkhorn.method import resolve, settings_of
from dp_sinkhorn.privacy.clipping import BoundedSum
from dp_sinkhorn.privacy.mechanism import GaussianMechanism
from dp_sinkhorn.privacy.random import CryptoRandom
from dp_sinkhorn.privacy.subsampling import PoissonSubsampler
from dp_sinkhorn.settings import DataFacts, RunConfig

FACTS = DataFacts(source="none", num_records=200, shape=(1, 8, 8), class_names=("0", "1"))
SMALL = {
    "generator": "mlp", "width": 16, "num_steps": 20, "expected_batch_size": 20, "noise_multiplier": 1.5,
    "target_epsilon": 50.0,
}  # fmt: skip
SUBSPACE = {"principal_subspace": {"min_dimensions": 4}}
RECORD = SMALL | SUBSPACE | {"mode": "record", "num_generated": 16, "transport_steps": {"num_reference": 32}}
BATCH = SMALL | {"mode": "batch", "num_generated": 8, "batch_steps": {"sinkhorn_iterations": 5, "queries_per_step": 3}}
EMBEDDING = SMALL | SUBSPACE | {"mode": "embedding", "num_generated": 16, "class_embedding": {"num_frequencies": 50}}


def config_of(settings: dict[str, object], facts: DataFacts = FACTS) -> RunConfig:
    """The resolved run, with settings merged by name."""
    return resolve(settings_of(None, settings), facts)


@cache
def embedding_config() -> RunConfig:
    return config_of(EMBEDDING)


@cache
def record_config() -> RunConfig:
    return config_of(RECORD)


@cache
def batch_config() -> RunConfig:
    return config_of(BATCH)


def factor_two_forgotten(monkeypatch):
    sound, sound_query = batch_steps.clipped_queries, batch_steps.BatchSteps.query

    def half(gradients, clip_norm):
        return replace(sound(gradients, clip_norm), sensitivity=clip_norm)

    def query(self, state, setup, *rest):
        return replace(sound_query(self, state, setup, *rest), sensitivity=setup.clip_norm)

    monkeypatch.setattr(batch_steps, "clipped_queries", half)
    monkeypatch.setattr(batch_steps.BatchSteps, "query", query)


def clip_skipped_for_one(monkeypatch):
    """The second record of a class, or the second query, is not clipped."""
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
        # Releases before the steps are vectors; only the steps are broken.
        return released if total.value.ndim < 2 else total.value + change(released - total.value, total)

    monkeypatch.setattr(GaussianMechanism, "__call__", broken)


def features_not_bounded(monkeypatch):
    """Without the division by √m the features have norm √m."""
    sound = class_embedding.embedding_sum

    def longer(features, labels, num_classes):
        total = sound(features, labels, num_classes)
        return BoundedSum(total.value * (features.shape[1] / 4) ** 0.5, total.sensitivity)

    monkeypatch.setattr(class_embedding, "embedding_sum", longer)


def record_in_every_class(monkeypatch):
    """The row of each class gets all records."""
    sound = class_embedding.embedding_sum

    def everywhere(features, labels, num_classes):
        total = sound(features, labels, num_classes)
        return BoundedSum(total.value.sum(0).expand_as(total.value).clone(), total.sensitivity)

    monkeypatch.setattr(class_embedding, "embedding_sum", everywhere)


def steps_by_the_number_of_records(monkeypatch):
    """The gradient is multiplied by the number of records, bypassing the curator."""
    sound, sound_gradient, leaked = class_embedding.EmbeddingSum.__call__, EmbeddingGoal.gradient, [1]

    def leaking(self, draw):
        leaked[0] = len(draw.labels)
        return sound(self, draw)

    monkeypatch.setattr(class_embedding.EmbeddingSum, "__call__", leaking)
    monkeypatch.setattr(EmbeddingGoal, "gradient", lambda self, images: leaked[0] * sound_gradient(self, images))


def one_release_not_finite(monkeypatch):
    """The third release of a step is not finite, as if a record made a number overflow."""
    made = iter(range(10**9))
    _noise(monkeypatch, lambda noise, total: noise * (float("nan") if next(made) == 2 else 1.0))


def noise_on_half(monkeypatch):
    def half(noise, total):
        rows = noise.flatten(0, -2).clone()
        rows[:, ::2] = 0.0
        return rows.view_as(noise)

    _noise(monkeypatch, half)


def noise_on_the_wrong_block(monkeypatch):
    """All noise falls on the first half of the images; its energy is right."""

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
    """Two steps get the same noise."""
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


def empty_draws_without_noise(monkeypatch):
    _noise(monkeypatch, lambda noise, total: noise if bool(total.value.any()) else 0.0 * noise)


def _leaked_rows(monkeypatch):
    """The rows of the last draw of a transport step, kept outside of the curator."""
    sound, leaked = transport_steps.ClippedTransport.contributions, []

    def leaking(self, draw):
        leaked[:] = [draw.view(self.setup.view)]
        return sound(self, draw)

    monkeypatch.setattr(transport_steps.ClippedTransport, "contributions", leaking)
    return leaked


def potential_from_private_records(monkeypatch):
    sound, leaked = transport_steps.balanced_potential, _leaked_rows(monkeypatch)

    def private(x, fit, reg, count):
        fits = bool(leaked) and len(leaked[0]) > 0 and leaked[0].shape[1] == x.shape[1]
        return sound(x, leaked[0], reg, 2) if fits else sound(x, fit, reg, count)

    monkeypatch.setattr(transport_steps, "balanced_potential", private)


def field_divided_by_the_drawn_number(monkeypatch):
    """The release is right, but the update divides by the drawn number."""
    sound, leaked = transport_steps.class_weights, _leaked_rows(monkeypatch)
    monkeypatch.setattr(
        transport_steps, "class_weights", lambda counts: sound(counts) / (1 + len(leaked[0]) if leaked else 1)
    )


def images_tied_to_the_draw(monkeypatch):
    """A step of mode `batch` makes as many images as the previous batch had records."""
    sound, sound_labels, leaked = batch_steps.ClippedBatches.gradients, batch_steps.BatchSetup.draw_labels, []

    def leaking(self, draw):
        leaked[:] = [int(draw.present.sum())]
        return sound(self, draw)

    def labels(self, latents):
        wanted = sound_labels(self, latents)
        return torch.zeros_like(wanted) + (leaked[0] % 2 if leaked else 0)

    monkeypatch.setattr(batch_steps.ClippedBatches, "gradients", leaking)
    monkeypatch.setattr(batch_steps.BatchSetup, "draw_labels", labels)


def noise_ten_times_too_small(monkeypatch):
    _noise(monkeypatch, lambda noise, total: 0.1 * noise)


def noise_hundred_times_too_small(monkeypatch):
    _noise(monkeypatch, lambda noise, total: 0.01 * noise)


def same_seed_after_resume(monkeypatch):
    """The user's seed makes the noise, and the card does not say so."""

    def fixed(test_seed):
        source = CryptoRandom(test_seed=0)
        source.is_private = True
        return source

    monkeypatch.setattr(loop, "CryptoRandom", fixed)


def twice_the_sum(monkeypatch):
    """Every record counts twice after clipping."""
    sound = transport_steps.clipped_sum

    def doubled(contributions, clip_norm):
        total = sound(contributions, clip_norm)
        return BoundedSum(2.0 * total.value, total.sensitivity)

    monkeypatch.setattr(transport_steps, "clipped_sum", doubled)


def _larger_sum(module, name, factor):
    """A bug in the sum of one release: as if a division or a clip were missing."""

    def plant(monkeypatch):
        sound = getattr(module, name)

        def larger(*arguments):
            total = sound(*arguments)
            return BoundedSum(factor * total.value, total.sensitivity)

        monkeypatch.setattr(module, name, larger)

    return plant


def records_counted_twice(monkeypatch):
    monkeypatch.setattr(class_counts, "BoundedSum", lambda value, bound: BoundedSum(2.0 * value, bound))


mean_and_square_not_shared = _larger_sum(principal_subspace, "first_moments", 2**0.5)
moments_not_shared = _larger_sum(image_moments, "image_moments", 2**0.5)
features_counted_twice = _larger_sum(class_features, "feature_sum", 2.0)


def directions_not_normalised(monkeypatch):
    """In the second moment a record counts by its norm."""
    sound = principal_subspace.second_moment

    def longer(rows):
        return BoundedSum((rows.norm(dim=1).max() ** 2) * sound(rows).value, 1.0)

    monkeypatch.setattr(principal_subspace, "second_moment", longer)


def classifier_not_clipped(monkeypatch):
    monkeypatch.setattr(
        label_classifier,
        "clipped_sum",
        lambda parts, clip_norm: BoundedSum(parts.weighted_sum(torch.ones(len(parts.features)).double()), clip_norm),
    )


def record_in_every_class_s_features(monkeypatch):
    sound = class_features.disjoint

    def everywhere(sums):
        total = sound(sums)
        return BoundedSum(total.value.sum(0).expand_as(total.value).clone(), total.sensitivity)

    monkeypatch.setattr(class_features, "disjoint", everywhere)


def noise_of_another_charge(monkeypatch):
    """A release has half of the charged noise."""
    sound = GaussianMechanism.__call__

    def halved(self, total, random):
        return sound(replace(self, noise_multiplier=self.noise_multiplier / 2.0), total, random)

    monkeypatch.setattr(GaussianMechanism, "__call__", halved)


def one_noise_for_all_releases(monkeypatch):
    sound = GaussianMechanism.__call__
    monkeypatch.setattr(
        GaussianMechanism, "__call__", lambda self, total, random: sound(self, total, CryptoRandom(test_seed=0))
    )
