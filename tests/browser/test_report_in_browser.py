"""The report in Chromium: opened from disk, read, operated by keyboard, and printed."""

import json
import os
import re
from pathlib import Path

import pytest

from dp_sinkhorn.method import STAGES
from dp_sinkhorn.report import write_report
from support.devtools import Browser, find_browser
from support.small_report import make_whole_run, small_evaluation

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium; on Debian: apt-get install chromium (or sh tests/install_browser.sh)"
)
LOOKS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
TAB, ENTER = ("Tab", 9), ("Enter", 13)

# Every visible text, with the WCAG 2 contrast between its colour and its background.
CONTRASTS = """(() => {
  document.querySelectorAll('details').forEach(part => part.open = true);
  const parse = text => {
    const numbers = text.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return [...numbers.slice(0, 3).map(part => part * scale), numbers.length > 3 ? numbers[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3])).concat([1]);
  const light = colour => {
    const [r, g, b] = colour.slice(0, 3).map(part => {
      const c = part / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || element.closest('title, desc, style') || !element.checkVisibility()) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const colour = over(parse(element.closest('svg') ? style.fill : style.color), ground);
    const [high, low] = [light(colour), light(ground)].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), text.slice(0, 40), element.tagName]);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def reports(rough_groups, tmp_path_factory) -> dict[str, Path]:
    """The report of one run in both editions."""
    folder = tmp_path_factory.mktemp("report")
    run = make_whole_run(folder / "run")
    (folder / "evaluation.json").write_text(json.dumps(small_evaluation()))
    return {
        "public": write_report(run, None, folder, stages=STAGES, test_is_public=True),
        "curator": write_report(run, None, folder, stages=STAGES, curator=True),
    }


@pytest.fixture(scope="module")
def chromium():
    """One browser for all tests."""
    assert BROWSER is not None
    browser = Browser(BROWSER)
    yield browser
    browser.close()


@pytest.fixture(params=["public", "curator"])
def opened(request, chromium, reports):
    """The browser with a report open, in a light desktop window."""
    chromium.look(1280, "light")
    chromium.open(reports[request.param])
    chromium.path = reports[request.param]
    return chromium


def test_the_page_opens_from_disk_without_errors_or_requests(opened):
    for width, scheme in LOOKS:
        opened.look(width, scheme)
        opened.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    complaints = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
    assert not [event for event in opened.events if event[0] in complaints]
    asked = [found["request"]["url"] for name, found in opened.events if name == "Network.requestWillBeSent"]
    assert asked[0] == opened.path.resolve().as_uri()
    assert asked[1:]  # pictures, which are in the file
    assert all(url.startswith("data:") for url in asked[1:])
    pictures = opened.run("[...document.images].map(picture => picture.complete && picture.naturalWidth > 0)")
    assert len(pictures) == 4
    assert all(pictures)
    assert opened.run("[...document.images].every(picture => picture.alt.length > 10)")
    assert opened.run("document.scripts.length") == 0


def test_an_error_and_a_request_would_be_noticed(chromium, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text('<script>console.error("no")</script><img src="other.png">')
    chromium.open(path)
    assert "Runtime.consoleAPICalled" in chromium.reported()
    asked = [found["request"]["url"] for name, found in chromium.events if name == "Network.requestWillBeSent"]
    assert asked == [path.as_uri(), (tmp_path / "other.png").as_uri()]


def test_the_headline_numbers_can_be_read(opened):
    read = {
        name: opened.run(f"document.getElementById('{name}').innerText") for name in ("epsilon", "delta", "accuracy")
    }
    assert 0.29 < float(read["epsilon"]) <= 0.3
    assert float(read["delta"]) == 1e-4
    assert read["accuracy"].split() == ["52.5", "±", "0.4", "%"]
    verdicts = opened.run("[...document.querySelectorAll('.card')].map(card => card.querySelector('h3').innerText)")
    assert verdicts == ["Is it private?", "Is it good?", "Where is it bad?", "May I hand it out?"]
    worst = opened.run("document.querySelectorAll('.card')[2].innerText")
    assert "Worst in class dog" in worst
    assert "taken for cat" in worst
    assert opened.run("document.title")


def test_the_keyboard_reaches_the_report_and_every_section(opened):
    focused = "document.activeElement.getAttribute('href') || document.activeElement.id"
    opened.press(*TAB)
    assert opened.run(focused) == "#main"
    assert opened.run("document.activeElement.getBoundingClientRect().left") >= 0  # the link shows itself
    opened.press(*ENTER)
    assert opened.run("location.hash") == "#main"
    assert opened.run("document.activeElement.id") == "main"

    opened.open(opened.path)
    links = opened.run("[...document.querySelectorAll('nav a')].map(link => link.getAttribute('href'))")
    assert len(links) >= 9
    opened.press(*TAB)
    for link in links:
        opened.press(*TAB)
        assert opened.run(focused) == link
        assert opened.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    opened.press(*ENTER)
    assert opened.run("location.hash") == links[-1]
    assert opened.run(focused) == links[-1][1:]
    top = opened.run("document.activeElement.querySelector('h2').getBoundingClientRect().top")
    assert 0 <= top < 900


@pytest.mark.parametrize(("width", "scheme"), [LOOKS[0], LOOKS[-1]])
def test_every_text_has_enough_contrast(opened, width, scheme):
    opened.look(width, scheme)
    found = opened.run(CONTRASTS)
    assert len(found) > 150
    assert {"text"} <= {tag for _, _, tag in found}  # of the plots
    assert not [one for one in found if not one[0] >= 4.5]
    ground = opened.run("getComputedStyle(document.documentElement).backgroundColor")
    dark = max(map(int, re.findall(r"\d+", ground))) < 60
    assert dark == (scheme == "dark")


def test_faint_text_would_be_noticed(chromium, tmp_path):
    path = tmp_path / "faint.html"
    path.write_text("<p style='color: rgb(118, 118, 118)'>enough</p><p style='color: rgb(120, 120, 120)'>too faint</p>")
    chromium.look(1280, "light")
    chromium.open(path)
    # WCAG's own example: #767676 is the lightest grey that is 4.5 to 1 on white.
    assert [(text, ratio >= 4.5) for ratio, text, _ in chromium.run(CONTRASTS)] == [
        ("enough", True),
        ("too faint", False),
    ]


def test_the_page_fits_the_width_of_a_telephone(opened):
    opened.look(390, "light", 844)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    beyond = opened.run(
        "[...document.querySelectorAll('p, li, h1, h2, h3, figure, dl, .card')].filter(part => !part.closest('.scroll, "
        "pre, .skip, .unseen') && part.getBoundingClientRect().right > 391).map(part => part.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    assert opened.run("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


def test_the_page_prints_on_a_few_sheets(opened):
    content = opened.pdf()
    assert content.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 20


def test_screenshots_are_not_blank(opened, tmp_path):
    from PIL import Image

    folder = Path(os.environ.get("DP_SINKHORN_SCREENSHOTS", tmp_path))  # to look at them
    for width, scheme in (LOOKS[0], LOOKS[-1]):
        opened.look(width, scheme)
        path = folder / f"{opened.path.parent.name}-{width}-{scheme}.png"
        path.write_bytes(opened.screenshot())
        with Image.open(path) as picture:
            assert width - 20 <= picture.width <= width
            assert picture.height > 2000
            assert len(set(picture.convert("L").resize((100, 400)).get_flattened_data())) > 40
