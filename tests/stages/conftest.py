"""Runs of each mode, made once, on two different data sets, by a curator whose answers depend on neither."""

from collections.abc import Callable

import pytest

from support.stage_runs import Made, config_of, make_run, toy, very_different, watched


@pytest.fixture(scope="session")
def read() -> set[tuple[str, str]]:
    """(stage, constant) pairs that the runs have read."""
    return set()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, read: set[tuple[str, str]]) -> Callable[[str], tuple[Made, Made]]:
    made: dict[str, tuple[Made, Made]] = {}

    def of(mode: str) -> tuple[Made, Made]:
        if mode not in made:
            folder = tmp_path_factory.mktemp(mode)
            config = config_of(mode)
            one = make_run(watched(config, read), toy(), folder / "one")
            made[mode] = one, make_run(config, very_different(), folder / "other")
        return made[mode]

    return of
