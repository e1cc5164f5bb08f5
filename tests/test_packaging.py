"""The sdist holds all that tests need, the wheel the package alone, and neither what a checkout gathers."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import dp_sinkhorn

ROOT = Path(__file__).parents[1]
# What users, tests and tools leave in a checkout. An archive with any of it could give records away.
LEFT_BEHIND = (
    ".venv/lib/a.py",
    "build/lib/a.py",
    "data.npz",
    "demo/run/ledger.jsonl",
    "examples/demo/run/ledger.jsonl",
    "runs/mine/private/checkpoint.pt",
    "src/dp_sinkhorn/__pycache__/api.pyc",
    "src/dp_sinkhorn/data.npz",
    "src/dp_sinkhorn/runs/mine/run.py",
    "tests/.hypothesis/examples/a",
    "tests/runs/mine/private/checkpoint.pt",
    "tests/support/__pycache__/toy.pyc",
)


@pytest.fixture(scope="module")
def kept() -> set[str]:
    """The files of this checkout that git keeps, or would if added."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout, so that the files to expect are unknown")
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.fixture(scope="module")
def archives(kept: set[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], Message]:
    """Files of the sdist, files of the wheel that is built from it, and the wheel's metadata."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in kept | set(LEFT_BEHIND):
        (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
        if name in kept:
            shutil.copyfile(ROOT / name, folder / "checkout" / name)
        else:
            (folder / "checkout" / name).write_bytes(b"")
    with tarfile.open(_built("sdist", folder / "checkout")) as sdist:
        top = sdist.getnames()[0]
        in_sdist = {member.name.removeprefix(f"{top}/") for member in sdist.getmembers() if member.isfile()}
        sdist.extractall(folder, filter="data")
    with zipfile.ZipFile(_built("wheel", folder / top)) as wheel:
        metadata = Parser().parsestr(wheel.read(f"{top}.dist-info/METADATA").decode())
        return in_sdist, {name.replace(top, "*", 1) for name in wheel.namelist()}, metadata


def test_the_sdist_holds_what_git_keeps_and_nothing_left_behind(archives, kept: set[str]) -> None:
    generated = {"PKG-INFO", "setup.cfg"}
    found = {name for name in archives[0] if ".egg-info/" not in name}
    assert found - generated == {name for name in kept if name != ".gitignore" and not name.startswith(".ci/")}


def test_the_wheel_holds_the_package_and_its_licence_alone(archives, kept: set[str]) -> None:
    package = {name.removeprefix("src/") for name in kept if name.startswith("src/")}
    assert {"dp_sinkhorn/py.typed", "dp_sinkhorn/report/page.html", "dp_sinkhorn/recipes/mnist_paper.toml"} < package
    described = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    assert archives[1] == package | {f"*.dist-info/{name}" for name in described}


def test_on_an_index_the_description_has_no_link_that_leads_nowhere(archives) -> None:
    metadata = archives[2]
    text = str(metadata.get_payload())
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# dp-sinkhorn\n")
    assert "](https://" in text
    assert "The tutorial explains each step." in text
    assert not re.findall(r"\]\((?!https://)|<img", text)


@pytest.mark.quick
def test_documents_name_the_pythons_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    minors = [int(minor) for minor in re.findall(r":: 3\.(\d+)'", str(project["classifiers"]))]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert project["requires-python"] == f">=3.{minors[0]}"
    for page in ("README.md", "docs/tutorial.md", "docs/reference/formats.md"):
        assert f"Python 3.{minors[0]} to 3.{minors[-1]}" in (ROOT / page).read_text(encoding="utf-8"), page


@pytest.mark.quick
def test_an_installed_wheel_is_what_the_tests_import() -> None:
    installed = Path(sysconfig.get_path("purelib"), "dp_sinkhorn")
    if not installed.exists():
        pytest.skip("the package is not installed, or is editable")
    assert Path(dp_sinkhorn.__path__[0]) == installed


def _built(kind: str, source: Path) -> Path:
    """Build an sdist or a wheel as pip does, but for its own environment, which needs a network."""
    code = f"from setuptools.build_meta import build_{kind}; build_{kind}('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = (source / "dist").iterdir()
    return archive
