"""The documents against the code: what they say of settings, stages and files is so, and their links lead somewhere."""

import math
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest

from dp_sinkhorn.data.reading import Reading
from dp_sinkhorn.method import STAGES, resolve, settings_of
from dp_sinkhorn.settings import DataFacts, RunConfig, Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SETTINGS = DOCS / "reference" / "settings.md"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
MNIST = DataFacts(source="mnist", num_records=60_000, shape=(1, 28, 28), class_names=tuple("0123456789"))


@pytest.mark.quick
def test_the_picture_of_the_architecture_is_drawn_from_the_imports():
    command = [sys.executable, str(DOCS / "draw_architecture.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_setting_is_told_with_what_it_resolves_to():
    told = dict(re.findall(r"^\| `([\w.]+)` \| ([^\s`]+) \|", (SETTINGS).read_text(), re.MULTILINE))
    of_stages = {f"{name}.{key}" for name, stage in STAGES.items() for key in stage.settings_type.model_fields}
    of_reading = {f"reading.{key}" for key in Reading.model_fields}
    assert told.keys() == (Settings.model_fields.keys() - {"stages", "reading"}) | of_stages | of_reading
    # Of whole batches only the rules are looked at: nothing is calibrated for them.
    short = {"mode": "batch", "noise_multiplier": 2.0, "num_steps": 10}
    default, batch = (resolve(settings_of(None, given), MNIST) for given in ({}, short))
    for name, value in told.items():
        found = _resolved(batch if name.startswith("batch_steps.") else default, name)
        if value == "–":
            assert found is None, name
        elif isinstance(found, bool | str):
            assert value == str(found).lower(), name
        else:
            assert float(value) == pytest.approx(found, rel=1e-3), name


@pytest.mark.quick
def test_every_stage_has_its_section_among_the_settings():
    sections = re.findall(r"^### (\w+)$", (SETTINGS).read_text(), re.MULTILINE)
    assert sections == ["reading", *(name for name, stage in STAGES.items() if stage.settings_type.model_fields)]


@pytest.mark.quick
def test_former_names_of_settings_are_told_with_the_present_ones():
    section = (SETTINGS).read_text().partition("## Former names")[2]
    told = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", section, re.MULTILINE))
    expected = {"sanitize": "mode", "image_side": "reading.side"}
    for name, stage in STAGES.items():
        former = {new: old for old, new in stage.settings_type.former.items()}
        expected |= {former.get(key, key): f"{name}.{key}" for key in stage.settings_type.model_fields}
    assert told == {old: new for old, new in expected.items() if old not in {*Settings.model_fields, "budget_share"}}


def test_the_toml_of_the_settings_document_is_accepted():
    (block,) = re.findall(r"```toml\n(.*?)```", (SETTINGS).read_text(), re.DOTALL)
    assert settings_of(None, tomllib.loads(block)).given("class_moments") == ["budget_share"]


@pytest.mark.quick
def test_the_table_of_stages_has_all_in_the_order_of_asking():
    table = (DOCS / "explanation" / "method.md").read_text().partition("## The stages")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(STAGES)


@pytest.mark.parametrize("recipe", ["mnist_paper", "fashion_mnist_paper", "celeba_paper"])
def test_recipes_have_present_names(recipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settings_of(recipe).mode == "batch"


@pytest.mark.quick
def test_links_between_documents_lead_somewhere():
    anchors = {path: _anchors(path.read_text()) for path in PAGES}
    broken = []
    for path in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(path.read_text())):
            file, _, anchor = target.partition("#")
            if "://" in target:
                continue
            place = (path.parent / file).resolve() if file else path
            if not place.exists() or (anchor and anchor not in anchors.get(place, {anchor})):
                broken.append(f"{path.name}: {target}")
    assert broken == []


@pytest.mark.quick
def test_files_that_the_documents_name_are_there():
    places = (ROOT, DOCS, ROOT / "src" / "dp_sinkhorn")
    missing = [
        f"{path.name}: {name}"
        for path in PAGES
        for name in re.findall(r"`([\w/]+\.(?:py|md))`", path.read_text())
        if "NAME" not in name and not any((place / name).exists() for place in places)
    ]
    assert missing == []


def _without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def _anchors(text: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def _resolved(config: RunConfig, name: str) -> object:
    """What became of a setting, wherever the resolved run keeps it."""
    stage, dot, key = name.partition(".")
    if not dot:
        if name in ("mode", "num_generated", "learning_rate"):
            return getattr(config, name)
        if name in ("num_steps", "noise_multiplier", "expected_batch_size"):
            return getattr(config.plan, name)
        if name in ("width", "channels"):
            return getattr(config.generator, name)
        return getattr(config.settings, name)
    if stage == "reading":
        return getattr(config.settings.reading, key)
    if key == "budget_share":
        return _share(config, stage)
    if name == "class_counts.prior":
        return None if config.plan.charge("class_counts") else "uniform"
    rules = config.rules[stage]
    return getattr(getattr(rules, "fine_tuning", None) or rules, key)


def _share(config: RunConfig, name: str) -> float:
    """The part of μ² that a charge takes: 1/σ² of one release, about q²·T·(e^(1/σ²) − 1) of T on subsamples."""
    charge, whole = config.plan.charge(name), config.plan.charge("principal_subspace.second_moment")
    assert charge is not None
    assert whole is not None
    rate = charge.sample_rate
    spent = 1.0 / charge.noise_multiplier**2
    if rate < 1.0:
        spent = rate**2 * charge.count * math.expm1(spent)
    return 0.03 * spent * whole.noise_multiplier**2
