"""The direction of the flow: leaves import no other part, nothing imports upwards, no cycles."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import dp_sinkhorn

ROOT = Path(dp_sinkhorn.__file__).parent
LEAVES = {"classifier", "data", "generators", "transport", "privacy"}
# What every part may import: how errors are told, files read and written, optional libraries found, and cosines.
COMMON = {"errors", "bounded", "whole", "extras", "frequencies"}
# What each part may import besides itself, COMMON and the leaves named.
ALLOWED = {
    "errors": set(),
    "bounded": set(),
    "whole": set(),
    "extras": set(),
    "frequencies": set(),
    "classifier": set(),
    "data": set(),
    "generators": set(),
    "transport": set(),
    "privacy": set(),
    "config": {"privacy", "generators"},
    "card": {"privacy", "generators"},
    "build": {"classifier", "config", "generators", "privacy"},
    "evaluation": {"data"},
    "training": {"build", "card", "config", "refinement", "rejection", "release", *LEAVES},
    "live": set(),
    "model_card": {"card"},
    "refinement": {"classifier", "generators"},
    "rejection": {"classifier", "generators"},
    "release": {
        "build",
        "card",
        "classifier",
        "config",
        "generators",
        "model_card",
        "privacy",
        "refinement",
        "rejection",
        "signing",
    },
    "sampling": {"card", "data", "generators"},
    "writing": {"card", "data", "sampling"},
    "signing": set(),
    "verification": {"build", "card", "model_card", "privacy", "release", "signing"},
    "report": {"card", "config", "data", "evaluation", "generators", "privacy", "release", "verification"},
    "auditing": {"build", "card", "config", "release", "runs", "training", "verification", *LEAVES},
    "runs": {"build", "card", "config", "data", "privacy", "release", "training"},
    "synthesizer": {"card", "config", "data", "evaluation", "generators", "privacy", "release", "runs", "sampling"},
}


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, dotted, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dp_sinkhorn."):
            found.add(node.module.removeprefix("dp_sinkhorn."))
        elif isinstance(node, ast.ImportFrom) and node.module == "dp_sinkhorn":
            found |= {alias.name for alias in node.names}
    return found


def modules() -> dict[str, set[str]]:
    """Every module but the package's door and the command line, with what it imports."""
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py" and path.name != "cli.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): imports(path) for path in paths}


def test_every_part_imports_only_what_its_place_allows():
    wrong = [
        f"{module} imports {imported}"
        for module, found in modules().items()
        for imported in found
        if (own := module.split(".")[0]) != (other := imported.split(".")[0])
        and other not in COMMON
        and other not in ALLOWED[own]
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle():
    known = modules()
    graph = {module: found & known.keys() for module, found in known.items()}
    order = list(TopologicalSorter(graph).static_order())
    assert len(order) == len(graph)


def test_planning_does_not_wait_for_pytorch():
    planning = {
        "bounded",
        "config",
        "errors",
        "privacy.plan",
        "privacy.calibration",
        "privacy.accounting",
        "generators.spec",
    }
    for module in planning:
        path = ROOT / (module.replace(".", "/") + ".py")
        assert imports(path) <= planning
        assert "torch" not in path.read_text().split()


def test_only_the_mechanism_s_side_and_the_step_see_private_sums():
    users = {module for module, found in modules().items() if "privacy.mechanism" in found}
    # `auditing.stage` watches the mechanism on public images.
    assert users == {
        "auditing.stage",
        "training.batch_step",
        "training.classifier",
        "training.methods",
        "training.statistics",
        "training.step",
    }


def test_nothing_but_the_command_line_knows_the_auditor():
    assert not [
        module
        for module, found in modules().items()
        if module.split(".")[0] != "auditing" and any(name.startswith("auditing") for name in found)
    ]
