"""The architecture: packages import downwards only, only the curator holds records, and names are unique."""

import ast
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dp_sinkhorn
from dp_sinkhorn.method import STAGES

pytestmark = pytest.mark.quick

ROOT = Path(dp_sinkhorn.__file__).parent
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
# The packages that each package may import, besides itself.
ALLOWED = {
    "io": set(),
    "data": {"io"},
    "transport": {"io"},
    "features": {"data"},
    "privacy": {"data", "io"},
    "estimators": {"features", "privacy"},
    "generators": {"estimators", "features", "io"},
    "settings": {"data", "generators", "io", "privacy"},
    "release": {"data", "estimators", "features", "generators", "io", "privacy"},
    "sampling": {"data", "estimators", "generators", "io", "release"},
    "evaluation": {"data", "io"},
    "stages": {
        "data", "estimators", "features", "generators", "io", "privacy", "release", "settings", "transport",
    },
    # It receives the stages as an argument and imports only their base class.
    "training": {"data", "features", "generators", "io", "privacy", "release", "sampling", "settings", "stages"},
    "method": {"estimators", "generators", "io", "privacy", "release", "settings", "stages"},
    "report": {"data", "evaluation", "generators", "io", "privacy", "release", "settings", "stages"},
    "audit": {"data", "generators", "io", "method", "privacy", "release", "settings", "stages", "training"},
    "__main__": {"cli"},
    "cli_options": {"io"},
    "api": {
        "data", "evaluation", "generators", "io", "method", "privacy", "release", "sampling", "settings", "training",
    },
}  # fmt: skip
# Modules that may hold records. `sampling` and snapshots use the same class for generated images.
HOLD_RECORDS = {
    "interfaces": {"__init__", "__main__", "api", "cli", "cli_output"},
    "loading": {"data"},
    "the curator, and what it computes from records": {"privacy.curator", "features", "stages"},
    "pass them to the curator": {"training.loop", "training.run_folder"},
    "public images": {"audit", "training.speed", "training.snapshots", "sampling"},
    "evaluation": {"evaluation"},
}


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def imported(tree: ast.Module) -> set[str]:
    """Modules of this project that a file imports at run time: dotted names without the package's name."""
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types and (node.module or "").startswith("dp_sink"):
            base = node.module.removeprefix("dp_sinkhorn").lstrip(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if Path(ROOT, *name.split(".")).with_suffix(".py").exists() else base for name in names}
    return found


IMPORTS = {module_name(path): imported(tree) for path, tree in TREES.items() if path.name != "__init__.py"}


def test_every_package_imports_only_packages_below_it():
    wrong = [
        f"{module} imports {other}"
        for module, found in IMPORTS.items()
        for other in found
        if module not in ("cli", "cli_output") and (package := module.split(".")[0]) != (below := other.split(".")[0])
        if below not in ALLOWED[package]
    ]
    assert wrong == []


def test_only_the_method_imports_stages_other_packages_their_base():
    of_stages = {
        (module, other)
        for module, found in IMPORTS.items()
        for other in found
        if other.startswith("stages") and module.split(".")[0] not in ("stages", "method")
    }
    assert {other for _, other in of_stages} == {"stages.base"}


def test_there_is_no_circular_import():
    graph = {module: found & IMPORTS.keys() for module, found in IMPORTS.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_curator_alone_charges_and_calls_the_mechanism():
    assert {module for module, found in IMPORTS.items() if "privacy.mechanism" in found} == {"privacy.curator"}
    charging = {
        module_name(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("charge", "mark_resumption") and "ledger" in ast.unparse(node.func.value)
    }
    assert charging == {"privacy.curator"}


def test_only_listed_modules_hold_records():
    allowed = set().union(*HOLD_RECORDS.values())
    holders = {
        module_name(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "LabelledImages" for alias in node.names)
    }
    assert {holder for holder in holders if holder not in allowed and holder.split(".")[0] not in allowed} == set()
    # In a stage, only views of the records hold them.
    for path, tree in TREES.items():
        if path.parts[0] == "stages":
            users = {
                outer.name
                for outer in tree.body
                if isinstance(outer, ast.ClassDef | ast.FunctionDef) and "LabelledImages" in ast.unparse(outer)
            }
            assert all(name.endswith("View") for name in users), (path, users)


def test_only_the_command_line_imports_the_audit():
    assert not [
        module
        for module, found in IMPORTS.items()
        if module.split(".")[0] not in ("audit", "cli", "cli_output")
        and any(name.startswith("audit") for name in found)
    ]


def test_names_of_files_and_classes_are_unique_and_privates_stay():
    files, classes, private = defaultdict(list), defaultdict(list), []
    for path, tree in TREES.items():
        if path.name not in ("__init__.py", "base.py"):
            files[path.stem].append(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(path)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dp_sinkhorn"):
                private += [(path, alias.name) for alias in node.names if alias.name.startswith("_")]
    assert [name for name, found in (files | classes).items() if len(found) > 1] == []
    assert private == []


@pytest.mark.parametrize("name", STAGES)
def test_only_the_method_knows_a_stage_by_name(name):
    knowing = {
        module_name(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and node.value == name)
        or (isinstance(node, ast.ImportFrom) and (node.module or "").endswith(f"stages.{name}"))
    } - {f"stages.{name}"}
    # Conversions of cards of versions 1 and 2 contain names of stages. Fine-tuning reads what other stages released.
    assert knowing <= {"method", "release.version_1", "release.version_2", "stages.fine_tuning", "stages.batch_steps"}
