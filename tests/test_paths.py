"""Every public function takes a path as text and as any `os.PathLike`."""

import ast
import re
from collections.abc import Callable
from inspect import isclass, isfunction
from os import PathLike
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import dp_sinkhorn
from dp_sinkhorn import DPSinkhorn, InputError, LabelledImages, PrivacyCard, evaluation, load_images, report, verify
from dp_sinkhorn.audit.audit import Effort, audit_run
from dp_sinkhorn.data.sources import dataset_of, load_synthetic, open_data, open_synthetic
from dp_sinkhorn.evaluation import Inception2048, evaluate
from dp_sinkhorn.method import STAGES
from dp_sinkhorn.privacy.ledger import read_charges, read_ledger
from dp_sinkhorn.release.export import as_onnx
from dp_sinkhorn.release.sign import sign_release
from dp_sinkhorn.release.verify import verify as verify_release
from dp_sinkhorn.release.weights import find_release, load_release
from dp_sinkhorn.report import write_report
from dp_sinkhorn.sampling.outputs import check_output
from dp_sinkhorn.training.tensorboard import TensorBoard
from dp_sinkhorn.training.total_budget import total_budget
from support.small_release import RECORD, make_run
from support.toy import toy

ROOT = Path(dp_sinkhorn.__file__).parent


class OnlyFspath:
    """A path of another library: all it has is what `os.PathLike` asks for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and beside it a model of it."""
    folder = make_run(tmp_path_factory.mktemp("paths") / "run", **RECORD)
    return folder, DPSinkhorn.load(folder)


def brightness(pixels):
    return pixels.flatten(1).float().mean(1, keepdim=True)


brightness.name, brightness.size, brightness.is_fid, brightness.fingerprint = "brightness", 1, False, "brightness"
GREY = LabelledImages(toy(20).pixels, toy(20).labels * 0, ("0",))
ARRAYS = (np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2)
# Each parameter that is a path, and a call that refuses it: given a finished run, its model, and the path.
CALLS: dict[str, Callable[[Path, DPSinkhorn, str | PathLike[str]], object]] = {
    "api.DPSinkhorn.fit images": lambda run, model, path: DPSinkhorn().fit(path),
    "api.DPSinkhorn.fit run_folder": lambda run, model, path: DPSinkhorn().fit(*ARRAYS, run_folder=path, resume=True),
    "api.DPSinkhorn.load path": lambda run, model, path: DPSinkhorn.load(path),
    "api.DPSinkhorn.save path": lambda run, model, path: model.save(path),
    "api.verify path": lambda run, model, path: verify(path),
    "api.verify ledger": lambda run, model, path: verify(run, ledger=path),
    "api.verify public_key": lambda run, model, path: verify(run, public_key=path),
    "audit.audit.audit_run folder": lambda run, model, path: audit_run(path, Effort(100, 2, 100), 0, print, STAGES),
    "data.sources.dataset_of images": lambda run, model, path: dataset_of(path, None),
    "data.sources.load_images source": lambda run, model, path: load_images(path),
    "data.sources.load_synthetic source": lambda run, model, path: load_synthetic(path),
    "data.sources.open_data source": lambda run, model, path: open_data(path),
    "data.sources.open_synthetic source": lambda run, model, path: open_synthetic(path),
    "evaluation.inception.Inception2048.__init__ path": lambda run, model, path: Inception2048(path),
    "evaluation.suite.evaluate cache": lambda run, model, path: evaluate(*[GREY] * 3, extractor=brightness, cache=path),
    "api.total_budget runs": lambda run, model, path: dp_sinkhorn.total_budget([run, path]),
    "training.total_budget.total_budget runs": lambda run, model, path: total_budget([path], STAGES),
    "privacy.ledger.read_ledger path": lambda run, model, path: read_ledger(path),
    "privacy.ledger.read_charges path": lambda run, model, path: read_charges(path),
    "release.card.PrivacyCard.from_file path": lambda run, model, path: PrivacyCard.from_file(path),
    "release.export.as_onnx path": lambda run, model, path: as_onnx(path, STAGES),
    "release.sign.sign_release path": lambda run, model, path: sign_release(path, "key.pem", STAGES),
    "release.sign.sign_release key_path": lambda run, model, path: sign_release(run, path, STAGES),
    "release.verify.verify path": lambda run, model, path: verify_release(path, STAGES),
    "release.verify.verify ledger": lambda run, model, path: verify_release(run, STAGES, ledger=path),
    "release.verify.verify public_key": lambda run, model, path: verify_release(run, STAGES, public_key=path),
    "release.weights.find_release path": lambda run, model, path: find_release(path),
    "release.weights.load_release path": lambda run, model, path: load_release(path, STAGES),
    "report.render.write_report run": lambda run, model, path: write_report(path, stages=STAGES),
    "report.render.write_report out": lambda run, model, path: write_report(run, path, stages=STAGES),
    "report.render.write_report evaluation": lambda run, model, path: write_report(run, None, path, stages=STAGES),
    "sampling.outputs.check_output path": lambda run, model, path: check_output(path),
    "training.tensorboard.TensorBoard.__init__ folder": lambda run, model, path: TensorBoard(path, run),
    "training.tensorboard.TensorBoard.__init__ run": lambda run, model, path: TensorBoard(Path(path, "board"), path),
}


@pytest.mark.parametrize("kind", [str, OnlyFspath])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_path_of_any_kind_is_read_and_refused_by_its_name(run, rough_groups, tmp_path, call, kind):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x.dat"  # nothing can be there
    with pytest.raises(InputError, match=re.escape(str(path))):
        call(*run, kind(path))


def test_the_calls_above_are_all_that_take_a_path_of_any_kind():
    found = set()
    for file in ROOT.rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(file.read_text())
        own = [(node.name, node) for node in tree.body if isinstance(node, ast.FunctionDef)]
        own += [(f"{outer.name}.{node.name}", node) for outer in tree.body if isinstance(outer, ast.ClassDef)
                for node in outer.body if isinstance(node, ast.FunctionDef)]  # fmt: skip
        found |= {
            f"{module}.{name} {argument.arg}"
            for name, node in own
            for argument in node.args.args + node.args.kwonlyargs
            if argument.annotation is not None
            if re.search("AnyPath|PathLike", ast.unparse(argument.annotation)) and not name.startswith("_")
        }
    assert found == CALLS.keys()


@pytest.mark.parametrize("package", [dp_sinkhorn, report, evaluation], ids=lambda package: package.__name__)
def test_no_exported_function_insists_on_a_path_of_one_kind(package):
    exported = [getattr(package, name) for name in package.__all__]
    methods = [method for one in exported if isclass(one) for method in vars(one).values()]
    functions = [
        one
        for one in (*exported, *methods)
        if isfunction(one) and (one.__name__ == "__init__" or one.__name__[0] != "_")
    ]
    assert [
        (function.__qualname__, name)
        for function in functions
        for name, kind in function.__annotations__.items()
        if name != "return" and (kind is Path or Path in get_args(kind))
    ] == []
