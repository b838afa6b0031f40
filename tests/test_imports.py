"""The architecture's import direction, read off the syntax tree of every module."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("wamjax", "data_pipelines", "experiments", "launch")

# The library from the ground up, one tuple for each layer of the architecture. A package imports lower layers and,
# within its own, packages to its left: the reading order of the code (... -> models -> objectives -> ...).
LAYERS = (
    ("errors",),  # how every layer refuses
    ("types", "config"),
    ("layout", "parallel"),
    ("flops", "nn", "batch"),
    ("models", "objectives", "weights"),
    ("training", "sampling"),
    ("planning", "scaling", "serving"),
)
RANK = {package: rank for rank, package in enumerate(package for layer in LAYERS for package in layer)}
# What the rooms beside the library may import of ours. `errors` is part of every contract: it is how they refuse.
ALLOWED_OUTSIDE = {
    "data_pipelines": (
        "data_pipelines",
        "wamjax.types",
        "wamjax.config",
        "wamjax.batch",
        "wamjax.layout",
        "wamjax.errors",
    ),
    "experiments": ("experiments", "wamjax.config", "wamjax.scaling"),
}
FORBIDDEN_IN_EXPERIMENTS = {"jax", "jaxlib", "flax", "numpy", "optax"}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def module_files() -> dict[str, Path]:
    """Dotted module name -> file, for every module of the project."""
    files = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()


def imports_of(path: Path) -> list[tuple[str, bool, bool]]:
    """(imported dotted name, is inside a function, is for type checking only) of every import in a file."""
    found = []

    def visit(node: ast.AST, in_function: bool, typing_only: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, in_function, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import; write the full name"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    found.append((full if full in FILES else str(child.module), in_function, typing_only))
            else:
                is_guard = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                visit(child, in_function or is_function, typing_only or is_guard)

    visit(ast.parse(path.read_text()), False, False)
    return found


def is_ours(name: str) -> bool:
    return name.split(".")[0] in (*ROOMS, "tests", "benchmarks")


@pytest.mark.parametrize("name", sorted(FILES))
def test_module_imports_follow_the_architecture(name: str) -> None:
    room, *rest = name.split(".")
    for imported, _, _ in imports_of(FILES[name]):
        target, *inner = imported.split(".")
        if room == "experiments":
            assert target not in FORBIDDEN_IN_EXPERIMENTS, f"{name} imports {imported}: experiments hold no arrays"
        if not is_ours(imported):
            continue
        assert target not in ("tests", "benchmarks"), f"{name} imports {imported}"
        if room == "wamjax":
            assert target == "wamjax", f"the library module {name} imports {imported}"
            if rest and inner and rest[0] != inner[0]:
                assert RANK[inner[0]] < RANK[rest[0]], f"{name} imports {imported}, which lies above or beside it"
        elif room in ALLOWED_OUTSIDE:
            allowed = ALLOWED_OUTSIDE[room]
            assert any(imported == a or imported.startswith(f"{a}.") for a in allowed), f"{name} imports {imported}"


def test_every_package_of_the_library_has_a_layer() -> None:
    packages = {name.split(".")[1] for name in FILES if name.count(".") >= 1 and name.startswith("wamjax.")}
    assert packages <= set(RANK), f"no layer for {packages - set(RANK)}: give it one in LAYERS"


def test_library_imports_itself_at_module_level_only() -> None:
    # An import inside a function is how a cycle is dodged. Launch may do it (verbs are chosen lazily); a third-party
    # module may be imported late where it is optional or slow.
    dodges = [
        f"{name} -> {imported}"
        for name, path in FILES.items()
        if not name.startswith("launch")
        for imported, in_function, _ in imports_of(path)
        if in_function and is_ours(imported)
    ]
    assert not dodges


def test_modules_have_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for name, path in FILES.items():
        targets = {imported for imported, _, typing_only in imports_of(path) if imported in FILES and not typing_only}
        graph[name] = targets - {name}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_no_module_is_a_room_without_a_subject() -> None:
    vague = [name for name in FILES if FORBIDDEN_NAMES & set(name.split("."))]
    assert not vague


@pytest.mark.parametrize("name", sorted(FILES))
def test_module_stays_small(name: str) -> None:
    text = FILES[name].read_text()
    assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines: a room is missing"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{name}.{node.name} has {length} lines: split it"
