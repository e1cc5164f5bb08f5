"""Steps on the released embedding that train a generator: where they lead, and that they cost time only."""

import pytest
import torch

from dp_sinkhorn import method
from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.privacy.ledger import read_charges
from dp_sinkhorn.stages import embedding_steps
from dp_sinkhorn.stages.embedding_steps import EmbeddingSteps
from dp_sinkhorn.training.loop import train
from dp_sinkhorn.training.run_folder import resume, start
from support.led_by_embedding import led_by, means
from support.stage_runs import STAGES, config_of, curator_of, toy

STAGE = EmbeddingSteps()


def test_steps_move_each_class_to_its_own_embedding() -> None:
    state = led_by(toy(), "embedding")
    plan = state.plan.model_copy(update={"num_steps": 100})
    state.config = state.config.model_copy(update={"plan": plan, "num_generated": 40})
    wanted = state.embedding.sums / state.class_counts.unsqueeze(1)
    before = torch.cdist(means(state.generator), wanted)
    assert len(list(STAGE.run(curator_of(state.config, toy()), state))) == state.step == 100
    after = torch.cdist(means(state.generator), wanted)
    assert (after.diagonal() < 0.5 * before.diagonal()).all()
    assert (after.diagonal() < 0.5 * after.flip(0).diagonal()).all()


def test_images_that_are_not_finite_are_refused() -> None:
    state = led_by(toy(60), "embedding")
    with torch.no_grad():
        next(state.generator.parameters()).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        next(STAGE.run(curator_of(state.config, toy()), state))


def test_a_step_that_diverges_stops_the_run(tmp_path, monkeypatch) -> None:
    def diverging(images: torch.Tensor) -> None:
        raise FloatingPointError

    monkeypatch.setattr(embedding_steps, "finite_images", diverging)
    with pytest.raises(InputError, match=r"training diverged at step 0, and the budget in .* is spent"):
        train(config_of("embedding"), toy(), tmp_path, STAGES)
    assert not (tmp_path / "release").exists()


def test_steps_repeated_after_a_crash_cost_nothing(tmp_path, monkeypatch) -> None:
    """Those since the last checkpoint are not lost: two runs alike end alike."""
    config = config_of("embedding").only(method.STAGES)
    config = config.model_copy(update={"settings": config.settings.model_copy(update={"test_seed": 3})})
    whole = start(toy(), config, tmp_path / "whole", method.STAGES).card
    real, count = embedding_steps.finite_images, 0

    def dying(images: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        real(images)

    monkeypatch.setattr(embedding_steps, "finite_images", dying)
    with pytest.raises(KeyboardInterrupt):
        start(toy(), config, tmp_path / "cut", method.STAGES)
    assert not (tmp_path / "cut" / "release").exists()
    charged = read_charges(tmp_path / "cut" / "ledger.jsonl")
    resumed = resume(toy(), tmp_path / "cut", {}, method.STAGES).card
    assert read_charges(tmp_path / "cut" / "ledger.jsonl") == charged
    assert (resumed.weights_sha256, resumed.charges) == (whole.weights_sha256, whole.charges)
