"""What is released before the steps passes its audit as it is, and every planted bug is caught in its own release."""

import pytest

from dp_sinkhorn.audit.neighbouring import SILENT
from dp_sinkhorn.audit.once import OnceSubject, released_once
from dp_sinkhorn.audit.stage import StepSubject
from dp_sinkhorn.audit.step_audit import audit_release
from support import planted

DRAWS, SEED = 100, 20
ALL = ["class_counts", "first_moments", "second_moment", "class_moments", "class_features", "classifier"]


@pytest.fixture(scope="module")
def before():
    """What the small public run released, made before anything is planted."""
    return StepSubject(planted.record_config()).released_before


def findings(before, name: str) -> dict[str, str]:
    found = audit_release(OnceSubject(planted.record_config(), name, before), DRAWS, SEED)
    assert [check.name for check in found] == ["sensitivity", "noise"]
    return {check.name: check.finding for check in found if not check.ok}


def test_all_that_a_run_charges_before_its_steps_is_audited():
    assert released_once(planted.record_config()) == ALL
    assert released_once(planted.record_config(classifier_share=0.0, features_share=0.0)) == ALL[:4]
    # An embedding has an audit of its own.
    beside = planted.record_config(embedding_share=0.2, num_frequencies=50)
    assert "class_embedding" in beside.privacy.once
    assert released_once(beside) == ALL
    assert released_once(planted.batch_config(class_prior="histogram")) == ["class_counts"]


@pytest.mark.parametrize("name", ALL)
def test_the_code_as_it_is_passes_and_the_worst_record_counts_nearly_in_full(before, name):
    assert findings(before, name) == {}
    subject = OnceSubject(planted.record_config(), name, before)
    world = subject.ordinary(3)
    without, with_record = (
        subject.stage(records, 1.0, SILENT).release(planted.CryptoRandom(test_seed=0))
        for records in (world, subject.with_far(world, 3))
    )
    assert 0.95 < float((with_record - without).norm()) / subject.sensitivity <= 1.0 + 1e-9


def test_the_class_counts_of_whole_batches_pass():
    config = planted.batch_config(class_prior="histogram")
    found = audit_release(OnceSubject(config, "class_counts", {}), DRAWS, SEED)
    assert all(check.ok for check in found), found


@pytest.mark.parametrize(
    ("bug", "name", "words"),
    [
        (planted.records_counted_twice, "class_counts", "by 2 times the sensitivity"),
        (planted.mean_and_square_not_shared, "first_moments", "by 1.414 times the sensitivity"),
        (planted.directions_not_normalised, "second_moment", "times the sensitivity that the noise is made for"),
        (planted.moments_not_shared, "class_moments", "by 1.408 times the sensitivity"),
        (planted.features_counted_twice, "class_features", "by 1.999 times the sensitivity"),
        (planted.record_in_every_class_s_features, "class_features", "by 1.414 times the sensitivity"),
        (planted.classifier_not_clipped, "classifier", "times the sensitivity that the noise is made for"),
        (planted.clip_skipped_for_one, "classifier", "times the sensitivity that the noise is made for"),
    ],
)
def test_a_bug_in_one_sum_is_caught_there(monkeypatch, before, bug, name, words):
    bug(monkeypatch)
    found = findings(before, name)
    assert words in found["sensitivity"], found
    assert "noise" not in found


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("bug", "words"),
    [
        (planted.noise_of_another_charge, "times the claimed standard deviation"),
        (planted.one_noise_for_all_releases, "times the claimed standard deviation"),
    ],
)
def test_too_little_noise_is_caught(monkeypatch, before, bug, name, words):
    bug(monkeypatch)
    found = findings(before, name)
    assert found.keys() == {"noise"}
    assert words in found["noise"], found
