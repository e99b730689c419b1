"""Imports run one way, and heavy packages stay where they are needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autogemm

PACKAGE = Path(autogemm.__file__).parent
SCRIPTS = PACKAGE.parent / "scripts"

LAYERS = (
    ("errors",),
    ("aliasing", "problem", "precision", "device", "arguments"),
    ("kernels", "cublas"),
    ("strategies",),
    ("database",),
    ("dispatch",),
    ("autocasting", "corners", "explanation", "batching", "autograd", "operator", "routing"),
    ("api",),
    ("functional",),
    ("nn",),
    ("replacing", "overriding"),
    ("operands", "report"),
    ("accuracy",),
    ("auditing", "diagnosis"),
    ("measure",),
    ("long_runs",),
    ("journal", "workloads", "event_times", "listener"),
    ("recording", "shapes", "saving"),
    ("finals", "compile_ahead"),
    ("search",),
    ("renewal",),
    ("tuner",),
    ("supervisor", "benchmark", "eager_gap", "guard_cost", "overhead", "versions"),
    ("contestants",),
    ("peers",),
    ("comparisons",),
    ("grading", "verification"),
)
"""From what everything may import to what nothing imports; a folder counts as one."""

PUBLIC = {
    "api", "auditing", "diagnosis", "errors", "explanation", "functional", "nn", "overriding",
    "recording", "replacing",
}  # fmt: skip
"""What the package itself imports."""

LAZY = {
    ("strategies.base", "strategies"): "a strategy's rank is its place in the list it stands in",
}
"""Imports within functions that would be circular at the top of the module, and why."""

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES["autogemm"] = MODULES.pop("__init__")


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Every name a module imports, in full, and whether a function does it."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, inside = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if short(name) in MODULES else node.module), inside
        deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack += [(child, deeper) for child in ast.iter_child_nodes(node)]


def short(name: str) -> str:
    return name.removeprefix("autogemm.")


def own_imports(module: str) -> Iterator[tuple[str, bool]]:
    return ((short(n), lazy) for n, lazy in imports(module) if n.split(".")[0] == "autogemm")


def layer(module: str) -> int:
    part = module.split(".")[0]
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def test_every_module_has_its_layer() -> None:
    parts = {module.split(".")[0] for module in MODULES} - {"autogemm"}
    assert parts == {part for parts in LAYERS for part in parts}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_layer_or_below(module: str) -> None:
    if module == "autogemm":
        assert {name for name, _ in own_imports(module)} <= PUBLIC
        return
    for name, lazy in own_imports(module):
        assert name in MODULES, f"{module} imports {name}, which there is not"
        assert name != "autogemm", f"{module} imports the package itself"
        if (module, name) in LAZY:
            assert lazy, f"{module} imports {name} at its top"
            continue
        assert layer(name) <= layer(module), f"{module} imports {name} from a layer above"


def test_no_two_modules_import_each_other() -> None:
    needs = {
        module: {name for name, _ in own_imports(module) if (module, name) not in LAZY}
        for module in MODULES
    }

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module not in done:
            for name in sorted(needs[module]):
                visit(name, (*path, module))
            done.add(module)

    done: set[str] = set()
    for module in MODULES:
        visit(module, ())


def test_the_known_exceptions_are_still_needed() -> None:
    for module, name in LAZY:
        assert (name, True) in set(own_imports(module))


def importers(package: str) -> set[str]:
    return {
        module for module in MODULES for name, _ in imports(module) if name.split(".")[0] == package
    }


def test_optuna_is_imported_by_the_tuner_its_search_and_its_journal_alone() -> None:
    assert importers("optuna") == {"tuner", "search", "journal"}


def test_transformers_is_imported_for_its_own_layer_alone() -> None:
    assert importers("transformers") == {"nn.conv1d"}


def test_quack_is_imported_by_its_strategy_its_compiler_and_where_it_is_a_peer() -> None:
    assert importers("quack") == {"strategies.cute", "compile_ahead", "contestants"}
    assert all(lazy for m in ("strategies.cute", "contestants") for name, lazy in imports(m)
               if name.split(".")[0] in ("quack", "nvmath"))  # fmt: skip


def test_triton_is_imported_under_kernels_alone() -> None:
    assert importers("triton") == {m for m in MODULES if m.startswith("kernels.")}


def test_nvmath_is_imported_by_the_module_that_owns_its_bindings_and_as_a_peer() -> None:
    assert importers("nvmath") == {"cublas.library", "contestants"}


def test_kernels_are_imported_within_functions_alone() -> None:
    for module in MODULES:
        if not module.startswith("kernels"):
            for name, lazy in own_imports(module):
                assert lazy or not name.startswith("kernels"), f"{module} imports {name}"


def test_the_call_needs_nothing_of_the_tuner() -> None:
    """What ``import autogemm`` reaches, from module to module."""
    reached: set[str] = set()
    todo = ["autogemm"]
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += [name for name, lazy in own_imports(module) if not lazy]
    assert {module.split(".")[0] for module in reached} == {
        "autogemm", "api", "explanation", "operator", "autograd", "batching", "dispatch",
        "database", "strategies", "device", "precision", "problem", "errors",
        "aliasing", "arguments", "corners", "cublas",
        "recording", "report", "event_times", "listener",
        "routing", "autocasting", "functional", "nn", "overriding", "replacing",
        "auditing", "diagnosis", "accuracy", "operands",
    }  # fmt: skip


def test_only_the_device_module_reads_device_properties_and_versions() -> None:
    words = ("get_device_properties", "get_device_capability", "torch.version", "__version__")
    for module, path in MODULES.items():
        if module not in ("device", "autogemm"):
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in words), module


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.name)
def test_a_script_only_parses_and_prints(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    named = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert not named & {"optuna", "triton", "yaml"}
