"""Runs of each mode, made once: of two quite different data sets, by a curator whose answers know neither."""

from collections.abc import Callable

import pytest

from support.stage_runs import Made, config_of, make_run, toy, very_different


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Made, Made]]:
    made: dict[str, tuple[Made, Made]] = {}

    def of(mode: str) -> tuple[Made, Made]:
        if mode not in made:
            folder = tmp_path_factory.mktemp(mode)
            config = config_of(mode)
            made[mode] = make_run(config, toy(), folder / "one"), make_run(config, very_different(), folder / "other")
        return made[mode]

    return of
