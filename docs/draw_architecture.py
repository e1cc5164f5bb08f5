"""Draw which packages of `dp_sinkhorn` import which, from the imports themselves, as a Mermaid flowchart.

    python docs/draw_architecture.py            # print the picture
    python docs/draw_architecture.py --write    # put it into docs/architecture.md
    python docs/draw_architecture.py --check    # exit status 1 if docs/architecture.md shows another one

A package is a folder of `src/dp_sinkhorn`, or a file beside these folders. An arrow that a longer way implies is left
out. Imports for type checkers alone are left out: at run time these objects are handed over, not imported.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "dp_sinkhorn"
DOCUMENT = Path(__file__).with_name("architecture.md")
START, END = "```mermaid\n", "```\n"

Graph = dict[str, set[str]]


def imported(source: str) -> set[str]:
    """Modules of this package that a file imports when it runs, dotted, without the package's name."""
    found: set[str] = set()
    for node in _run_nodes(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != PACKAGE.name:
            continue
        inside = (node.module or "").partition(".")[2]
        found |= {inside} if inside else {alias.name for alias in node.names}
    return found


def module_graph() -> Graph:
    """Every module with what it imports; the package's own front door is left out."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths}
    return {name: imported(path.read_text(encoding="utf-8")) for path, name in names.items()}


def package_graph(modules: Graph) -> Graph:
    """Packages with the packages that they import."""
    packages: Graph = {module.partition(".")[0]: set() for module in modules}
    for module, names in modules.items():
        package = module.partition(".")[0]
        packages[package] |= {name.partition(".")[0] for name in names} - {package}
    return packages


def reduced(packages: Graph) -> Graph:
    """Only the arrows that no longer way implies."""
    below = {package: _reach(packages, package) for package in packages}
    return {
        package: {other for other in own if not any(other in below[between] for between in own - {other})}
        for package, own in packages.items()
    }


def layers(packages: Graph) -> list[str]:
    """The packages from top to bottom.

    Raises:
        CycleError: Some of them import each other in a circle.
    """
    return list(TopologicalSorter(packages).static_order())[::-1]


def picture() -> str:
    """The flowchart."""
    packages = package_graph(module_graph())
    order, arrows = layers(packages), reduced(packages)
    lines = [f"    {package} --> {other}" for package in order for other in sorted(arrows[package], key=order.index)]
    return "\n".join(["flowchart TD", *lines]) + "\n"


def main() -> int:
    """Print, write or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with docs/architecture.md")
    parser.add_argument("--write", action="store_true", help="put it into docs/architecture.md")
    options = parser.parse_args()
    try:
        drawn = picture()
    except CycleError as error:
        print(f"packages import each other in a circle: {' -> '.join(error.args[1])}", file=sys.stderr)
        return 1
    if not (options.check or options.write):
        print(drawn, end="")
        return 0
    text = DOCUMENT.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    wanted = before + start + drawn + end + after
    if options.write:
        DOCUMENT.write_text(wanted, encoding="utf-8")
    elif text != wanted or not end:
        print(f"{DOCUMENT} shows other imports; run: python docs/draw_architecture.py --write", file=sys.stderr)
        return 1
    return 0


def _run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _run_nodes(child)


def _reach(graph: Graph, start: str) -> set[str]:
    """Everything that is below a node."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        fresh = graph.get(waiting.pop(), set()) - found
        found |= fresh
        waiting += fresh
    return found


if __name__ == "__main__":
    sys.exit(main())
