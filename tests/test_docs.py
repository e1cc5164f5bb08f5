"""The Python in the documents runs as it stands there."""

import re
from pathlib import Path

import pytest
from dp_sinkhorn.build import resolve

from dp_sinkhorn.settings import (
    CLASSIFIER_SHARE,
    BatchRules,
    DataFacts,
    RecordRules,
    RunConfig,
    Settings,
    make_settings,
)

DOCS = Path(__file__).parents[1] / "docs"
LOSSES = DOCS / "losses.md"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_losses_document_runs_and_its_training_loop_learns(capsys):
    blocks = re.findall(r"```python\n(.*?)```", LOSSES.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(LOSSES), "exec"), names)  # noqa: S102
    assert len(blocks) == 3
    assert names["distance_after"] < 0.5 * names["distance_before"]
    assert "converged: True" in capsys.readouterr().out


def test_every_setting_is_told_with_what_it_resolves_to():
    text = (DOCS / "settings.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text, re.MULTILINE))
    assert told.keys() == Settings.model_fields.keys()
    facts = DataFacts(source="mnist", num_records=60_000, shape=(1, 28, 28), class_names=tuple("0123456789"))
    default = resolve(make_settings(None, {}), facts)
    # Of whole batches only the rules are looked at: nothing is calibrated for them.
    batch = resolve(make_settings(None, {"sanitize": "batch", "noise_multiplier": 5.0, "num_steps": 1}), facts)
    for name, value in told.items():
        found = _resolved(batch if name in BatchRules.model_fields.keys() - {"sanitize"} else default, name)
        if value == "–":
            assert found is None, name
        elif isinstance(found, bool | str):
            assert value == str(found).lower(), name
        else:
            assert float(value) == pytest.approx(found, rel=1e-3), name


def _resolved(config: RunConfig, name: str) -> object:
    """What became of a setting, wherever the resolved run keeps it."""
    shares = {
        "moments_share": "class_moments",
        "features_share": "class_features",
        "embedding_share": "class_embedding",
    }
    plan = config.privacy
    if name in shares:  # of μ²: σ = σ of the whole budget / √share
        return config.settings.plan(60_000, 10).once["class_counts"] ** 2 * 0.01 / plan.once[shares[name]] ** 2
    if name == "classifier_share":
        assert plan.classifier is not None
        return CLASSIFIER_SHARE
    if name in ("device", "generator", "precision"):
        return getattr(config.settings, name)
    if name == "matching_steps":
        assert isinstance(config.rules, RecordRules)
        return config.rules.matching and config.rules.matching.num_steps
    for place in (config, config.rules, config.generator, plan, config.embedded):
        if (value := getattr(place, name, None)) is not None:
            return value
    return getattr(config.settings, name)
