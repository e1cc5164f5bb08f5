"""The report: what each edition shows and must not show, and one line for bad input."""

import copy
import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch

from dp_sinkhorn.io.errors import InputError
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.report import write_report
from dp_sinkhorn.report.content import collect
from dp_sinkhorn.report.evidence import read_evaluation
from support.small_release import EMBEDDING, RECORD, make_run
from support.small_report import (
    AUC,
    CEILING,
    CLIPPED,
    CLOSER,
    GAIN,
    NOTE,
    make_whole_run,
    small_evaluation,
    write_private_figures,
)

pytestmark = pytest.mark.usefixtures("rough_groups")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ card }}",
    "$\\frac{1}{0}$",
)
PRIVATE_TEXTS = (
    *(f"{100 * share:.1f}\N{NO-BREAK SPACE}±" for share in (CEILING, GAIN)),
    *(f"{100 * share:.1f}\N{NO-BREAK SPACE}%" for share in (CLOSER, AUC, CLIPPED)),
    "77,123",
    NOTE,
)


@pytest.fixture(scope="module")
def run(rough_groups, tmp_path_factory):
    return make_whole_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def page(run, tmp_path):
    """Make a report on the run with this evaluation; returns the HTML."""

    def make(evaluation=None, *, folder=run, **arguments):
        path = None
        if evaluation is not None:
            path = tmp_path / "evaluation.json"
            path.write_text(json.dumps(evaluation))
        return write_report(folder, tmp_path / "r.html", path, stages=STAGES, **arguments).read_text()

    return make


@pytest.fixture(scope="module")
def bare(run, tmp_path_factory) -> str:
    """The public edition without an evaluation."""
    return write_report(run, tmp_path_factory.mktemp("bare") / "r.html", stages=STAGES).read_text()


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory) -> str:
    """The curator's edition with an evaluation."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "evaluation.json").write_text(json.dumps(small_evaluation()))
    return write_report(run, folder / "r.html", folder, stages=STAGES, curator=True).read_text()


def visible(page: str) -> str:
    """The page's text without tags and style sheet."""
    found: list[str] = []

    class Reader(HTMLParser):
        skipped = False

        def handle_starttag(self, tag, attributes):
            self.skipped = tag == "style"
            found.extend(value for name, value in attributes if name == "alt")

        def handle_endtag(self, tag):
            self.skipped = False

        def handle_data(self, data):
            if not self.skipped:
                found.append(data)

    Reader().feed(page)
    return " ".join(" ".join(found).split())


def altered(evaluation: dict) -> dict:
    """The same evaluation with other values in all parts computed from training records."""
    other = copy.deepcopy(evaluation)
    for scores in (*other["trtr"].values(), *other["gain"]["real"].values()):
        scores.update(accuracy=0.111, balanced_accuracy=0.222, macro_f1=0.333, calibration_error=0.044)
        scores["recall"] = [0.0 for _ in scores["recall"]]
        scores["standard_errors"] = {**scores["standard_errors"], "accuracy": 0.3, "recall": [0.2] * 2}
    other["gain"] |= {"num_real": 7, "added": {"cnn": 0.7}, "standard_errors": {"cnn": 0.07}}
    other["memorisation"] = None
    other["num_real_train"] = 3
    other["seconds"] = 99.0
    other["warnings"] = ["another"]
    return other


def test_the_public_edition_ignores_figures_of_training_records(run, page):
    evaluation = small_evaluation()
    first = page(evaluation, test_is_public=True)
    write_private_figures(run, 0.999)
    try:
        assert page(altered(evaluation), test_is_public=True) == first
    finally:
        write_private_figures(run, CLIPPED)
    assert not [text for text in PRIVATE_TEXTS if text in first.replace(" %", "\N{NO-BREAK SPACE}%")]
    assert "52.5 ± 0.4 %" in visible(first)  # (30 + 12) / 80: the accuracy on a test set that is public
    assert "declared the test set public" in first


def test_each_edition_says_that_test_images_are_few(page):
    evaluation = small_evaluation()
    evaluation["tstr"]["cnn"]["standard_errors"]["accuracy"] = 0.055
    caution = "accuracies on 80 test images are too uncertain to compare: standard errors of up to 5.5 points"
    evaluation["warnings"] = [caution]
    for arguments in ({"test_is_public": True}, {"curator": True}):
        assert visible(page(evaluation, **arguments)).count(caution) == 1
    assert caution not in page(evaluation)


@pytest.mark.parametrize(
    ("ceiling", "error", "verdict"),
    [
        (0.825, 0.03, "30 ± 4 points behind real images"),  # √2 · 3 points
        (0.527, 0.002, "As useful as real images, by this measure"),
        (0.535, 0.03, "Too few test images to tell"),
        (0.425, 0.03, "As useful as real images, by this measure"),
    ],
)
def test_a_gap_to_real_images_is_no_stronger_than_its_error(page, ceiling, error, verdict):
    evaluation = small_evaluation()
    for part in ("tstr", "trtr"):
        evaluation[part]["cnn"]["standard_errors"]["accuracy"] = error
    evaluation["trtr"]["cnn"]["accuracy"] = ceiling
    evaluation["class_shares"]["real"] = [0.4, 0.4]
    assert verdict in visible(page(evaluation, curator=True))


def test_a_delta_of_1_over_n_is_told_where_the_run_is_called_private(rough_groups, page, tmp_path):
    large = make_whole_run(tmp_path / "large", settings={**RECORD, "target_delta": 1e-3, "allow_large_delta": True})
    text = visible(page(folder=large))
    assert "Barely: δ is too large" in text
    assert "Warning: delta=0.001 is not below 1/3000" in text
    assert "δ is too large" not in visible(page())


def test_an_evaluation_of_another_version_is_to_be_made_again(run, tmp_path, refused):
    path = tmp_path / "evaluation.json"
    first = small_evaluation()
    del first["version"]
    for content in (first, {**small_evaluation(), "version": 3}):
        path.write_text(json.dumps(content))
        line = refused(run, "--evaluation", path)
        assert "is not an evaluation of this version of dp-sinkhorn; make it again with dp-sinkhorn evaluate" in line


def test_a_private_test_set_stays_out_of_the_public_edition(page):
    evaluation = small_evaluation()
    first = page(evaluation)
    other = altered(evaluation)
    other["tstr"]["cnn"]["accuracy"] = 0.123
    other["class_shares"]["real"] = [0.3, 0.7]
    other["frechet"] = None
    other["num_test"] = 3
    assert page(other) == first
    assert "52.5" not in first
    assert "Not in this edition" in first


def test_the_public_edition_s_record_has_no_private_part(run, tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(small_evaluation()))
    report = collect(run, path, STAGES, curator=False, test_is_public=True)
    assert (report.memorisation, report.figures) == (None, ())
    assert (report.quality.ceiling, report.quality.gain, report.quality.notes) == (None, None, ())
    closed = collect(run, path, STAGES, curator=False, test_is_public=False)
    assert (closed.quality, closed.memorisation, closed.figures) == (None, None, ())


def test_the_curator_s_edition_shows_all_and_marks_every_section(whole, bare):
    text = visible(whole)
    assert not [private for private in PRIVATE_TEXTS if " ".join(private.split()) not in text]
    sections = re.findall(r"<section.*?</section>", whole, re.DOTALL)
    assert len(sections) == 11
    assert all("not for handing out" in section for section in sections)
    assert "not for handing out" not in bare


def test_a_figure_that_the_evaluation_marks_private_is_refused(page):
    evaluation = small_evaluation()
    evaluation["computed_from"]["tstr"] = ["train", "test"]
    with pytest.raises(InputError, match="tstr was computed from more than test images"):
        page(evaluation, test_is_public=True)


def test_without_an_evaluation_the_page_says_how_to_make_one(bare):
    assert len(re.findall("dp-sinkhorn evaluate", bare)) == 1
    assert "dp-sinkhorn report RUN --evaluation DIR" in bare
    assert bare.count("Not measured") == 2  # good, bad


def test_images_of_one_class_are_judged_by_features_alone(tmp_path, page):
    one = make_whole_run(tmp_path / "one", ("cat",))
    evaluation = small_evaluation(("cat",)) | {"tstr": {}, "trtr": {}, "gain": None}
    for curator in (False, True):
        text = visible(page(evaluation, folder=one, curator=curator, test_is_public=True))
        assert "Not measured by classifiers" in text
        assert "Fréchet distance 101.5; with other real images in place of the synthetic ones 55.5." in text
        assert "no classifier was tested: " in text
        assert "Similarity of features" in text
        assert "Class by class" not in text
        assert "Recognised" not in text
    with pytest.raises(InputError, match="is damaged: it has 1 class, and 2 classifiers"):
        page(small_evaluation(("cat",)), folder=one)


def test_the_report_says_what_the_steps_follow(bare):
    text = visible(bare)
    assert "The generator was trained along semi-relaxed entropic transport to the records" in text
    assert "not a Sinkhorn divergence with two fixed marginals" in text
    assert "](" not in text  # links of the model card are plain text here


def test_steps_that_see_no_record_show_no_spending(tmp_path, page, bare):
    text = visible(page(folder=make_whole_run(tmp_path / "once", settings=EMBEDDING)))
    assert "Everything that the steps learn from was released before the first step." in text
    assert "Steps 12, none of which sees a record" in text
    assert "class embedding 1" in text
    for word in ("ε that was spent by then", "ε ≤", "ε spent, step by step", "over the steps"):
        assert word not in text
        assert word in visible(bare)


def test_hostile_class_names_are_shown_as_text(tmp_path, page):
    folder = make_whole_run(tmp_path / "hostile", HOSTILE)
    for curator in (False, True):
        made = page(small_evaluation(HOSTILE), folder=folder, curator=curator, test_is_public=True)
        assert not re.search(r"<script|<img src=x", made)
        assert "onerror" not in "".join(re.findall(r"<[^>]*>", re.sub(r'"[^"]*"', "", made)))
        text = visible(made)
        for name in HOSTILE:
            assert name in text


def test_the_page_requests_nothing_and_runs_no_script(whole):
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in whole
    assert not re.search(r"<(script|link rel=.stylesheet|iframe|object)|@import|\son\w+=", whole)
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>\s]+)""", whole)
    assert addresses
    assert {address[:5] for address in addresses if address[0] != "#"} == {"data:"}


def test_every_link_and_reference_has_exactly_one_target(whole):
    ids = re.findall(r'\bid="([^"]+)"', whole)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-labelledby="([^"]+)"', whole)
    wanted = set(re.findall(r'(?:href="|url\()#([^")]+)', whole)) | {name for names in named for name in names.split()}
    assert wanted <= set(ids)
    levels = [int(level) for level in re.findall(r"<h(\d)", whole)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert 'lang="en"' in whole


def test_epsilon_and_the_bound_on_attacks_follow_from_the_charges(bare, run):
    from dp_sinkhorn.privacy.tradeoff import attack_bounds
    from dp_sinkhorn.release.card import PrivacyCard

    card = PrivacyCard.from_file(run / "release" / "card.json")
    epsilon = float(re.search(r'id="epsilon">([\d.]+)<', bare)[1])
    attack = float(re.search(r'id="attack">([\d.]+) %<', bare)[1]) / 100
    bound = attack_bounds(card.charges).tpr_at_1_percent
    assert epsilon == pytest.approx(card.epsilon, rel=1e-3)
    assert bound <= attack <= 1.01 * bound
    # ε = 0.3: at most e^0.3 = 1.35 times as many as by guessing.
    assert attack <= 0.0136
    assert "an attacker can hardly do better than guess" in bare


def test_ten_classes_of_64_pixels_in_colour_stay_below_5_mb(tmp_path, make_card):
    from PIL import Image

    from dp_sinkhorn.report.report_pictures import class_rows, snapshots

    class Noise:
        def sample(self, labels, generator):
            return 2.0 * torch.rand(len(labels), 3 * 64 * 64, generator=generator) - 1.0

    names = tuple(map(str, range(10)))
    prior = {"how": "declared", "shares": (0.1,) * 10, "epsilon_alone": 0.0}
    card = make_card(class_names=names, image_shape=(3, 64, 64), class_prior=prior)
    pixels = torch.randint(0, 256, (650, 650, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "step-00001.png")
    for step in range(2, 11):
        (tmp_path / f"step-{step:05d}.png").hardlink_to(tmp_path / "step-00001.png")
    # Noise does not compress: the most that pictures can take.
    kept = snapshots(tmp_path, card)
    assert [kept[0].step, kept[-1].step] == [1, 10]
    pictures = [snapshot.picture for snapshot in kept] + list(class_rows(card, Noise()))
    assert sum(len(picture.uri) for picture in pictures) < 4_500_000


def test_light_and_dark_define_the_same_colours(bare):
    root = re.findall(r":root \{(.*?)\}", bare, re.DOTALL)
    names = [set(re.findall(r"(--[\w-]+):", block)) for block in root]
    assert len(names) == 3  # light, dark, print
    assert names[0] == names[1] == names[2]
    assert "prefers-color-scheme: dark" in bare


@pytest.fixture
def refused(command_line):
    """The one line of an exit with code 2."""

    def call(*arguments):
        code, out, err = command_line("report", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return call


def test_the_command_writes_each_edition_to_its_default_path(run, command_line):
    for edition, path in (("--public", run / "report.html"), ("--curator", run / "private" / "report.html")):
        code, out, _ = command_line("report", run, edition, "--json")
        assert code == 0
        facts = json.loads(out)
        assert facts["report"] == str(path)
        assert facts["bytes"] == path.stat().st_size <= 5_000_000
        path.unlink()


def test_only_its_owner_can_read_the_curator_s_edition_in_a_run(run, tmp_path):
    # The run's folder may be copied or opened to others, together with the private folder in it.
    (tmp_path / "any").touch()
    paths = [write_report(run, stages=STAGES, curator=True), write_report(run, stages=STAGES)]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, (tmp_path / "any").stat().st_mode & 0o777]
    paths[0].chmod(0o644)  # as an earlier version left it
    assert write_report(run, stages=STAGES, curator=True).stat().st_mode & 0o777 == 0o600
    for path in paths:
        path.unlink()


def test_bad_input_is_one_line(run, tmp_path, refused):
    damaged = tmp_path / "evaluation.json"
    assert "not a run folder" in refused(tmp_path)
    assert "not a run folder" in refused(run / "release")
    assert "exclude each other" in refused(run, "--public", "--curator")
    assert "add --evaluation" in refused(run, "--test-set-is-public")
    assert "cannot read" in refused(run, "--evaluation", tmp_path / "none.json")
    damaged.write_text("{")
    assert "is not an evaluation" in refused(run, "--evaluation", damaged)
    damaged.write_text(json.dumps(small_evaluation(("cat", "emu"))))
    assert "other classes" in refused(run, "--evaluation", damaged)
    damaged.write_text(json.dumps(small_evaluation(("a", "b", "c"))))
    assert "other classes" in refused(run, "--evaluation", tmp_path)
    assert "does not end in .html" in refused(run, "--out", tmp_path / "report.pdf")
    assert "release" in refused(run, "--out", run / "release" / "report.html")
    assert "public files" in refused(run, "--curator", "--out", run / "report.html")
    assert "private folder" in refused(run, "--out", run / "private" / "report.html")
    assert "cannot write" in refused(run, "--out", tmp_path / "no" / "report.html")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert "is not a report" in refused(run, "--out", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("tstr", "cnn", "accuracy"), 1.5, "share is not in"),
        (("tstr", "cnn", "accuracy"), "high", "tstr.cnn.accuracy"),
        (("tstr", "cnn", "recall"), [0.5], "recall or confusion"),
        (("tstr",), {}, "classifiers differ"),
        (("class_shares", "real"), [1.0], "class_shares.real"),
        (("frechet", "value"), float("nan"), "not finite"),
        (("tstr", "cnn", "standard_errors", "accuracy"), float("nan"), "not finite"),
        (("tstr", "cnn", "standard_errors", "accuracy"), 1e300, "or above 1e"),
        (("tstr", "cnn", "standard_errors", "recall"), [0.1, None], "not every recall has a standard error"),
        (("class_shares", "standard_errors", "real"), [0.1], "class_shares.real"),
        (("num_real_train",), 10**9, "training records"),
        (("memorisation", "bound"), {"epsilon": 5.0, "delta": 1e-5, "auc": 0.9, "tpr_at_fpr": {}}, "epsilon 5"),
    ],
)
def test_a_wrong_evaluation_is_refused(run, tmp_path, path, value, complaint):
    from dp_sinkhorn.release.card import PrivacyCard

    evaluation = small_evaluation()
    part = evaluation
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(evaluation))
    with pytest.raises(InputError, match=complaint):
        read_evaluation(file, PrivacyCard.from_file(run / "release" / "card.json"))


def test_a_release_that_does_not_verify_gets_no_public_report(tmp_path, page):
    folder = make_run(tmp_path / "run", test_seed=1, **RECORD)
    with pytest.raises(InputError, match="does not hold"):
        page(folder=folder)
    made = page(folder=folder, curator=True)
    assert "No: the release does not hold" in made
    assert "The release, under conditions" not in made
    assert "NOT PRIVATE" in made


def test_damaged_lines_and_pictures_are_named(tmp_path, page):
    folder = make_whole_run(tmp_path / "run")
    (folder / "samples" / "step-00003.png").write_text("no picture")
    with pytest.raises(InputError, match=r"step-00003\.png is not a picture"):
        page(folder=folder)
    (folder / "samples" / "step-00003.png").unlink()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
        page(folder=folder)
    (folder / "metrics.jsonl").unlink()
    assert "spending-title" not in page(folder=folder)


def test_a_missing_library_is_named_with_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"needs matplotlib.*pip install -c constraints.txt '.\[report\]'"):
        write_report(run, tmp_path / "r.html", stages=STAGES)
