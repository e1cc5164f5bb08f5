"""The house: rooms import downwards only, records live with the curator, no name means two things."""

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
# What each room may import besides itself; a room stands below all that may import it.
ALLOWED = {
    "io": set(),
    "data": {"io"},
    "transport": {"io"},
    "features": {"data"},
    "privacy": {"data", "io"},
    "estimators": {"features", "privacy"},
    "generators": {"estimators", "features", "io"},
    "settings": {"generators", "io", "privacy"},
    "release": {"estimators", "features", "generators", "io", "privacy"},
    "sampling": {"data", "estimators", "generators", "io", "release"},
    "evaluation": {"data", "io"},
    "stages": {
        "data", "estimators", "features", "generators", "io", "privacy", "release", "settings", "transport",
    },
    # It is handed the stages, and knows of them what a stage is.
    "training": {"data", "generators", "io", "privacy", "release", "sampling", "settings", "stages"},
    "method": {"estimators", "generators", "io", "privacy", "release", "settings", "stages"},
    "report": {"data", "evaluation", "generators", "io", "privacy", "release", "settings", "stages"},
    "audit": {"data", "generators", "io", "method", "privacy", "release", "settings", "stages", "training"},
    "api": {"data", "evaluation", "generators", "io", "method", "privacy", "release", "sampling", "training"},
}  # fmt: skip
# Who may hold records. Of generated images the same class is used in `sampling`, snapshots and generated grids.
HOLD_RECORDS = {
    "the door": {"__init__", "api", "cli"},
    "loading": {"data"},
    "the curator, and what it computes of records": {"privacy.curator", "features", "stages"},
    "hand them to the curator": {"training.loop", "training.run_folder"},
    "public images": {"audit", "training.speed", "training.snapshots", "sampling"},
    "evaluation": {"evaluation"},
}


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def imported(tree: ast.Module) -> set[str]:
    """Modules of this project that a file imports when it runs, dotted, without the package's name."""
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


def test_every_room_imports_only_what_lies_below_it():
    wrong = [
        f"{module} imports {other}"
        for module, found in IMPORTS.items()
        for other in found
        if module != "cli" and (room := module.split(".")[0]) != (below := other.split(".")[0])
        if below not in ALLOWED[room]
    ]
    assert wrong == []


def test_training_knows_of_stages_only_what_a_stage_is():
    of_stages = {
        (module, other)
        for module, found in IMPORTS.items()
        for other in found
        if other.startswith("stages") and module.split(".")[0] not in ("stages", "method")
    }
    assert {other for _, other in of_stages} == {"stages.base"}


def test_no_module_imports_itself_in_a_circle():
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


def test_records_are_held_where_they_may_be_and_nowhere_else():
    allowed = set().union(*HOLD_RECORDS.values())
    holders = {
        module_name(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "LabelledImages" for alias in node.names)
    }
    assert {holder for holder in holders if holder not in allowed and holder.split(".")[0] not in allowed} == set()
    # In a stage they reach nothing but a view of the records.
    for path, tree in TREES.items():
        if path.parts[0] == "stages":
            users = {
                outer.name
                for outer in tree.body
                if isinstance(outer, ast.ClassDef | ast.FunctionDef) and "LabelledImages" in ast.unparse(outer)
            }
            assert all(name.endswith("View") for name in users), (path, users)


def test_nothing_but_the_command_line_knows_the_auditor():
    assert not [
        module
        for module, found in IMPORTS.items()
        if module.split(".")[0] not in ("audit", "cli") and any(name.startswith("audit") for name in found)
    ]


def test_no_two_files_or_classes_share_a_name_and_none_takes_private_names():
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
def test_a_stage_is_known_by_name_in_the_method_and_nowhere_else(name):
    knowing = {
        module_name(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Constant) and node.value == name)
        or (isinstance(node, ast.ImportFrom) and (node.module or "").endswith(f"stages.{name}"))
    } - {f"stages.{name}"}
    # Cards of versions 1 and 2 have their stages' names from there; fine-tuning reads what others have released.
    assert knowing <= {"method", "release.version_1", "release.version_2", "stages.fine_tuning", "stages.batch_steps"}
