"""Progress of a run: what it shows on a terminal and in a file, and its clock."""

import io

import pytest
from rich.console import Console

from dp_sinkhorn.training.progress import LiveView, Pace, TrainingProgress, clock_time


def view(*, terminal: bool, steps: int, notebook: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, force_jupyter=notebook, width=120)
    with LiveView(console) as show:
        for done in range(1, steps + 1):
            show(TrainingProgress(done, steps, 2.5 + done / steps))
    return console.file.getvalue()


def test_without_a_terminal_progress_is_a_line_every_few_per_cent():
    lines = view(terminal=False, steps=1000).splitlines()
    assert 20 <= len(lines) <= 22
    assert lines[0].startswith("step 1/1000  ε spent ≤ 2.501  … steps/s  ETA -:--:--  elapsed 0:00:0")
    assert lines[-1].startswith("step 1000/1000  ε spent ≤ 3.500  ")
    assert "ETA 0:00:00" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_on_a_terminal_progress_is_a_bar():
    shown = view(terminal=True, steps=40)
    assert "40/40" in shown
    assert "ε spent ≤ 3.500" in shown
    assert "steps/s" in shown
    assert "elapsed" in shown


def test_a_run_of_one_block_is_shown_as_complete():
    assert "step 1/1  ε spent ≤ 3.500  … steps/s  ETA 0:00:00" in view(terminal=False, steps=1)


def test_the_speed_of_a_resumed_run_counts_only_its_own_steps():
    now = [100.0]
    pace = Pace(lambda: now[0])
    now[0] = 110.0
    assert pace.of(600, 1000) == (None, None)
    now[0] = 120.0
    assert pace.of(620, 1000) == (2.0, 190.0)
    assert pace.elapsed == 20.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-:--:--"), (0.4, "0:00:00"), (3723.6, "1:02:04"), (360_000.0, "100:00:00")]
)
def test_times_are_shown_as_hours_minutes_and_seconds(seconds, text):
    assert clock_time(seconds) == text


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_shows_a_bar_if_it_has_the_widgets_else_lines(monkeypatch, widgets):
    monkeypatch.setattr("dp_sinkhorn.training.progress.find_spec", lambda name: widgets or None)
    shown, bars = [], []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    monkeypatch.setattr("rich.progress.Progress.start", lambda bar: bars.append("begun"))
    monkeypatch.setattr("rich.progress.Progress.stop", lambda bar: bars.append("ended"))
    view(terminal=False, steps=4, notebook=True)
    assert (bars, len(shown)) == ((["begun", "ended"], 0) if widgets else ([], 4))
