"""The class embedding: rows of norm 1 in one class, chunk by chunk, and what a run with it knows of its noise."""

import math

import pytest
import torch

from dp_sinkhorn.features.random_fourier import fourier_map
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.curator import Draw, HeldRecords
from dp_sinkhorn.stages import class_embedding
from dp_sinkhorn.stages.class_embedding import EmbeddingSum, embedding_sum
from dp_sinkhorn.training import loop
from dp_sinkhorn.training.run_folder import resume, start
from support.stage_runs import SHAPE, STAGES, config_of, toy


@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_a_class_gets_the_features_of_its_records(monkeypatch, chunk, weight):
    monkeypatch.setattr(class_embedding, "_CHUNK", chunk)
    data, features = toy(30), fourier_map(SHAPE, 50, 5.0, weight, 0.25, 0, "cpu")
    total, draw = EmbeddingSum(features, 2), Draw(HeldRecords(data))
    rows = total.rows(draw)
    assert float((rows.norm(dim=1) - 1.0).abs().max()) < 1e-5
    expected = torch.stack([rows[data.labels == label].sum(0) for label in range(2)])
    torch.testing.assert_close(total(draw).value, expected)


def test_rows_are_clipped_to_norm_1_and_rows_not_finite_to_0():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [math.nan, 0.0], [math.inf, 1.0]]).double()
    total = embedding_sum(rows, torch.tensor([0, 1, 1, 0]), 3)
    assert total.sensitivity == 1.0
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]).double()
    torch.testing.assert_close(total.value, expected, rtol=2e-6, atol=0.0)


def test_the_embedding_that_gets_the_rest_is_what_the_card_claims(runs):
    made, _ = runs("embedding")
    (charge,) = (charge for charge in made.card.charges if charge.name == "class_embedding")
    card = made.card
    assert (card.noise_multiplier, card.clip_norm, card.sensitivity) == (charge.noise_multiplier, 1.0, 1.0)
    assert (card.mode, card.num_steps, card.queries_per_step) == ("embedding", 5, 0)
    assert "once, on all records: the sum of per-record random Fourier features" in card.mechanism
    assert made.state.embedding.noise == charge.noise_multiplier


@pytest.mark.parametrize("mode", ["embedding", "record"])
def test_a_run_cannot_continue_without_its_embedding(tmp_path, monkeypatch, mode):
    """In place of steps, and beside them, where it is needed after the last."""
    real, config = loop.Run.save, config_of(mode)

    def forgetful(run, **more):
        run.state.learnt.pop("class_embedding", None)
        real(run, **more)
        if run.state.step > 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Run, "save", forgetful)
    with pytest.raises(KeyboardInterrupt):
        start(toy(), config, tmp_path / "run", STAGES)
    monkeypatch.setattr(loop.Run, "save", real)
    with pytest.raises(InputError, match="class_embedding was charged and asked before, and its answer is lost"):
        resume(toy(), tmp_path / "run", {}, STAGES)


def test_the_lighter_run_of_an_audit_has_fewer_frequencies():
    stage = STAGES["class_embedding"]
    wide = config_of("record").with_rules("class_embedding", num_frequencies=2000)
    assert stage.lighter(wide).rules["class_embedding"].num_frequencies == 256
    assert stage.lighter(config_of("record")) == config_of("record")
