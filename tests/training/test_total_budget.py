"""What several runs spend together: never less than any of them, never more than their sum."""

import json
import shutil
from pathlib import Path

import pytest

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.accounting import epsilon_pld
from dp_sinkhorn.privacy.ledger import LEDGER, read_charges
from dp_sinkhorn.training.checkpoint import CHECKPOINT, CheckpointInfo, save_checkpoint
from dp_sinkhorn.training.total_budget import total_budget
from support.small_release import EMBEDDING, RECORD, make_run

OLD = Path(__file__).parents[1] / "files"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"record": RECORD, "weaker": {**RECORD, "target_epsilon": 0.1}, "embedding": EMBEDDING}
    for number, (name, settings) in enumerate(kinds.items()):
        make_run(folder / name, run=f"{number:032x}", **settings)
    return folder


@pytest.fixture
def copied(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    return tmp_path / "runs"


def shorten(run: Path) -> None:
    """Cut the last lines off a ledger, which its hashes do not show."""
    ledger = run / LEDGER
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-3]))


def test_the_total_is_the_bound_on_all_charges_of_all_ledgers(runs):
    names = ["record", "weaker", "embedding"]
    total = total_budget([runs / name for name in names], STAGES)
    charges = [charge for name in names for charge in read_charges(runs / name / LEDGER)]
    assert total.epsilon == epsilon_pld(charges, 1e-4)
    alone = [one.epsilon for one in total.runs]
    assert max(alone) < total.epsilon < sum(alone)
    assert [one.run for one in total.runs] == [str(runs / name) for name in names]
    assert total.epsilon < total.epsilon_rdp


def test_one_run_alone_spends_what_its_card_says(runs):
    total = total_budget([str(runs / "record")], STAGES)
    card = json.loads((runs / "record" / "release" / "card.json").read_text())
    assert (total.epsilon, total.epsilon_rdp, total.delta) == (card["epsilon"], card["epsilon_rdp"], card["delta"])


def test_the_delta_is_the_largest_one_unless_another_is_given(runs, tmp_path):
    other = make_run(tmp_path / "other", run="f" * 32, **{**RECORD, "target_delta": 2e-4})
    both = [runs / "record", other]
    assert total_budget(both, STAGES).delta == 2e-4
    assert total_budget(both, STAGES).epsilon < total_budget(both, STAGES, 1e-6).epsilon
    with pytest.raises(InputError, match=r"delta=1\.5 cannot"):
        total_budget(both, STAGES, 1.5)


def test_an_interrupted_run_counts_what_its_ledger_charged(copied):
    before = total_budget([copied / "record", copied / "weaker"], STAGES)
    shutil.rmtree(copied / "weaker" / "release")
    assert total_budget([copied / "record", copied / "weaker"], STAGES) == before
    shorten(copied / "weaker")
    less = total_budget([copied / "record", copied / "weaker"], STAGES)
    assert less.runs[0].epsilon < less.epsilon < before.epsilon


def test_ten_runs_of_eight_releases_each_can_be_composed(tmp_path):
    several = [make_run(tmp_path / str(number), run=f"{number:032x}", **RECORD) for number in range(10)]
    total = total_budget(several, STAGES)
    assert 2.0 * total.runs[0].epsilon < total.epsilon < 10.0 * total.runs[0].epsilon


def test_a_ledger_that_lacks_charges_is_refused(copied, runs):
    shorten(copied / "record")
    (copied / "weaker" / LEDGER).write_bytes(b"")
    unfinished = copied / "embedding"
    shutil.rmtree(unfinished / "release")
    (unfinished / "private").mkdir()
    info = CheckpointInfo(ledger="", step=1, stopped=True, taken={"class_counts": 2}, records="")
    save_checkpoint(unfinished / "private" / CHECKPOINT, {}, info)
    foreign = copied / "foreign"
    shutil.copytree(runs / "record", foreign, ignore=shutil.ignore_patterns("release"))
    shutil.copy(runs / "weaker" / "config.toml", foreign)
    for name, words in [
        ("record", "the ledger holds 9 releases 'transport_steps'"),
        ("weaker", "holds no charge"),
        ("embedding", "lacks releases that the run's checkpoint has"),
        ("foreign", "is not the configuration"),
    ]:
        with pytest.raises(InputError, match=words):
            total_budget([copied / name], STAGES)


@pytest.mark.parametrize("version", ["version_1", "version_2"])
def test_runs_of_earlier_versions_count_what_their_card_says(version):
    total = total_budget([folder := OLD / version / "record"], STAGES)
    card = json.loads((folder / "release" / "card.json").read_text())
    assert (total.epsilon, total.delta) == (pytest.approx(card["epsilon"], rel=1e-3), card["delta"])


def test_what_cannot_be_counted_is_refused_by_name(copied, tmp_path):
    record, twin = copied / "record", tmp_path / "twin"
    shutil.copytree(record, twin)
    (tmp_path / "link").symlink_to(record)
    make_run(tmp_path / "seeded", run="e" * 32, **{**RECORD, "test_seed": 1})
    shutil.copytree(tmp_path / "seeded", tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "release")
    ledger = copied / "weaker" / LEDGER
    ledger.write_bytes(ledger.read_bytes().replace(b'"count":1', b'"count":2', 1))
    assert total_budget(str(record), STAGES) == total_budget(record, STAGES) == total_budget([record], STAGES)
    for found, words in [
        ([], "no run was given"),
        ([record, record], "are one run"),
        ([record, twin], "are one run"),
        ([record, tmp_path / "link"], "are one run"),
        ([tmp_path], f"{tmp_path / LEDGER} does not exist"),
        ([record / "release"], "does not exist"),
        ([tmp_path / "seeded"], "used a test seed"),
        ([tmp_path / "unfinished"], "used a test seed"),
        ([copied / "weaker"], "is damaged"),
    ]:
        with pytest.raises(InputError, match=words) as refused:
            total_budget(found, STAGES)
        assert "\n" not in str(refused.value)
