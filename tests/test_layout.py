"""The house rules that a program can check."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("gateway", "plugins") for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[-1] != "__init__.py"], ids=str)
def test_no_room_has_outgrown_its_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("package", [path for path in SOURCES if path.parts[-1] == "__init__.py"], ids=str)
def test_a_package_that_lists_its_modules_lists_them_all(package: Path) -> None:
    listed = re.findall(r"^ *(\w+)\.py +\S", ast.get_docstring(ast.parse(package.read_text())) or "", re.MULTILINE)
    if listed:
        assert sorted(listed) == sorted(path.stem for path in package.parent.glob("*.py") if path != package)


def test_the_core_knows_no_plugin_by_name() -> None:
    # The demo shows the built-in plugins at work: it is the one customer they have in this repository.
    for path in SOURCES:
        if path.is_relative_to(ROOT / "gateway") and path.name != "demo.py":
            assert not {name for name in imports(path) if name.partition(".")[0] == "plugins"}, path


def test_built_in_plugins_use_only_what_any_author_may_use() -> None:
    allowed = {"gateway.plugin", "gateway.console"}
    for path in SOURCES:
        if path.is_relative_to(ROOT / "plugins"):
            used = {name for name in imports(path) if name.partition(".")[0] == "gateway"}
            if path.name == "commands.py":
                continue
            assert used <= allowed, f"{path}: {used - allowed}"


HOT: list[str] = next(
    ast.literal_eval(node.value)
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HOT"
)


@pytest.mark.parametrize("name", HOT)
def test_a_coroutine_that_is_translated_handles_nothing(name: str) -> None:
    """mypyc 2.4 keeps no exception of a coroutine that waits in `except` or `finally`: it raises another one, swallows
    it, or crashes. Who needs either is not translated."""
    for coroutine in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(coroutine, ast.AsyncFunctionDef):
            for node in ast.walk(coroutine):
                assert not isinstance(node, ast.Try | ast.With | ast.AsyncWith | ast.AsyncFor), f"{name}:{node.lineno}"
