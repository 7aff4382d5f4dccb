"""The shape of the library: wings on floors, small files with names of their own, functions that fit on a screen.

Read from the syntax of the files, so that imports within functions count too.
"""

import ast
from functools import cache
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "workflow" / "proxycast"
# From top to bottom. What is in none of them (the modules at the root, `jobs`) lies below.
WINGS = "command cluster study library report experiments truth training extraction solutions weights config".split()
# They stand at the root for their names: `import proxycast`, `proxycast.callbacks`, `python -m proxycast.plan`.
AT_THE_TOP = {"proxycast", "proxycast.callbacks", "proxycast.plan", "proxycast.progress"}
LONGEST_FILE, LONGEST_FUNCTION, MOST_FILES, MOST_FOLDERS = 450, 60, 12, 13
LONG_FUNCTIONS = {"fused_kernel"}  # one kernel of Triton, which cannot call another without a cost


@cache
def modules() -> dict[str, ast.Module]:
    """Module of the library -> its syntax; to be read only."""
    found = {}
    for path in LIBRARY.rglob("*.py"):
        parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf8"))
    return found


def imports(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the library that it imports. Of a package only its `__init__` is meant."""
    found: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [full if full in trees else node.module for full in inner]
            else:
                names = []
            found[name] |= {other for other in names if other in trees} - {name}
    return found


def floor(module: str) -> int:
    """0 for the top wing."""
    wing = module.split(".")[1:2]
    if module in AT_THE_TOP:
        return -1
    return WINGS.index(wing[0]) if wing and wing[0] in WINGS else len(WINGS)


def upward(graph: dict[str, set[str]]) -> list[str]:
    return [f"{name} imports {other}" for name in graph for other in graph[name] if floor(other) < floor(name)]


def cycles(graph: dict[str, set[str]]) -> list[str]:
    """What is left when modules that import nothing that is left are taken away, again and again."""
    left = dict(graph)
    while leaves := [name for name in left if not left.keys() & left[name]]:
        for name in leaves:
            del left[name]
    return [f"{name} imports {sorted(left.keys() & left[name])}" for name in left]


def long_functions(trees: dict[str, ast.Module]) -> list[str]:
    functions = [
        (name, node, 1 + node.end_lineno - min(part.lineno for part in [node, *node.decorator_list]))
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in LONG_FUNCTIONS
    ]
    return [f"{name}.{node.name}: {lines} lines" for name, node, lines in functions if lines > LONGEST_FUNCTION]


def full_folders(library: Path = LIBRARY) -> list[str]:
    folders = [library, *(path for path in library.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    counts = {f"{folder.name}/*.py": len(list(folder.glob("*.py"))) for folder in folders}
    full = {what: count for what, count in counts.items() if count > MOST_FILES}
    wings = len(list(library.glob("*/__init__.py")))  # and `jobs`
    full |= {"folders": wings} if wings > MOST_FOLDERS else {}
    return [f"{what}: {count}" for what, count in full.items()]


def test_no_import_runs_upward_and_no_two_modules_import_each_other():
    graph = imports(modules())
    assert upward(graph) == [] and cycles(graph) == []


def test_files_and_functions_are_short():
    assert long_functions(modules()) == []
    lines = {str(path): len(path.read_text(encoding="utf8").splitlines()) for path in LIBRARY.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_folders_are_small_and_names_are_given_once():
    assert full_folders() == []
    # config/<wing>.py holds the options of a wing.
    names = [
        name.rpartition(".")[2] for name in modules() if name not in {f"proxycast.config.{wing}" for wing in WINGS}
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_every_wing_says_what_it_is_for():
    trees = modules()
    assert [wing for wing in WINGS if not ast.get_docstring(trees[f"proxycast.{wing}"])] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ({"config.a": "def f():\n    from proxycast.cluster.b import c", "cluster.b": ""}, upward),
        ({"files": "import proxycast.config.a", "config.a": ""}, upward),
        ({"config.a": "from proxycast.config import b", "config.b": "from proxycast.config.a import c"}, cycles),
        ({"a": "import proxycast.b", "b": "import proxycast.c", "c": "from proxycast.a import d"}, cycles),
    ],
)
def test_a_breach_is_found(code, found):
    assert found(imports({f"proxycast.{name}": ast.parse(text) for name, text in code.items()}))


def test_a_long_function_and_a_full_folder_are_found(tmp_path):
    body = "\n".join(["async def f():", *["    pass"] * LONGEST_FUNCTION])
    assert long_functions({"a": ast.parse(body)}) == ["a.f: 61 lines"]
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}.py").touch()
    assert full_folders(tmp_path) == [f"{tmp_path.name}/*.py: 13"]
