"""Progress of a run: what callbacks get, and a view of it: a bar on a terminal or in a notebook, else lines.

It consists of public facts: steps, an upper bound on the ε spent, the generator's images. Drawn batch sizes, losses on
the records and shares of clipped records are private, so they do not appear.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY = 0.05  # of the run, where there is no bar


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run is: functions of released tensors and public facts only.

    Args:
        step: Steps done, at least 1. Steps of fine-tuning, which see no record, count too.
        num_steps: All steps of the run.
        epsilon: An upper bound on the ε spent so far.
        field_rms: Root mean square of the last released (noisy) field; None in fine-tuning.
        picture: A grid of the generator's images, if one was taken: at about ten steps of a run.
    """

    step: int
    num_steps: int
    epsilon: float
    field_rms: float | None = None
    picture: Image.Image | None = None


Callback = Callable[[TrainingProgress], None]
"""Called after each saved block of steps (about a hundred in a run), and after each step of fine-tuning."""


class Pace:
    """Speed and remaining time, from the times at which blocks of steps ended.

    Args:
        clock: Seconds from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._first: tuple[int, float] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since this view began."""
        return self._clock() - self._start

    def of(self, done: int, total: int) -> tuple[float | None, float | None]:
        """(steps a second, seconds left); None in the first call, since a resumed run does not begin at step 0."""
        now = self._clock()
        if self._first is None:
            self._first = done, now
        first, then = self._first
        if done <= first or now <= then:
            return None, 0.0 if done >= total else None
        rate = (done - first) / (now - then)
        return rate, (total - done) / rate


class LiveView:
    """A `Callback` that shows the progress, its speed and its times.

    Args:
        console: Where to: a bar on a terminal, and in a notebook that has ipywidgets; else a line every few per cent.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._has_bar = console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None)
        self._pace = Pace()
        self._shown = float("-inf")
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[facts]}  elapsed"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("training", total=None, facts="")

    def __enter__(self) -> "LiveView":
        if self._has_bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._has_bar:
            self._bar.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        """Show the progress."""
        done, total = progress.step, progress.num_steps
        rate, left = self._pace.of(done, total)
        speed = "…" if rate is None else f"{rate:.3g}"
        facts = f"ε spent ≤ {progress.epsilon:.3f}  {speed} steps/s  ETA {clock_time(left)}"
        if self._has_bar:
            self._bar.update(self._task, completed=done, total=total, facts=facts)
        elif done >= total or done / total >= self._shown + _LINE_EVERY:
            self._shown = done / total
            line = f"step {done}/{total}  {facts}  elapsed {clock_time(self._pace.elapsed)}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def clock_time(seconds: float | None) -> str:
    """Hours, minutes and seconds as 1:02:03; None (unknown) as -:--:--."""
    if seconds is None:
        return "-:--:--"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
