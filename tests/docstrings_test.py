"""Every public function says what it takes, gives and raises, and shows it in an example."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

import asvrg
from asvrg.drivers import mpi

# Facades and modules whose names a user reaches.
MODULES = [
    *(m for m in (getattr(asvrg, name) for name in asvrg.__all__) if isinstance(m, ModuleType)),
    importlib.import_module("asvrg.errors"),
    importlib.import_module("asvrg.types"),
    mpi,
]
# They need mpiexec: docs/distributed_program.py shows them, and docs_test.py runs it.
IN_A_PROGRAM = {mpi.connect, mpi.serve, mpi.driver, mpi.work, mpi.reporting}
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$", re.MULTILINE)


def is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("asvrg")


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module exports: its __all__, or what it defines without a leading underscore."""
    names = getattr(module, "__all__", None)
    for name in names or [n for n in vars(module) if not n.startswith("_")]:
        value = getattr(module, name)
        if is_ours(value) and (names or value.__module__ == module.__name__):
            yield f"{module.__name__}.{name}", value


def named(kind: Callable[[Any], bool]) -> list[Any]:
    found = {name: value for module in MODULES for name, value in public(module) if kind(value)}
    unique = {id(value): name for name, value in sorted(found.items())}
    return [pytest.param(found[name], id=name) for name in sorted(unique.values())]


FUNCTIONS = named(inspect.isfunction)
RECORDS = named(lambda value: inspect.isclass(value) and hasattr(value, "_fields"))


def sections(value: Any) -> dict[str, str]:
    """The text of each section, and under "" what stands before the first."""
    head, *rest = SECTION.split(inspect.getdoc(value) or "")
    return {"": head, **dict(zip(rest[::2], rest[1::2], strict=True))}


def described(text: str) -> set[str]:
    """The names that a section describes."""
    return set(re.findall(r"^  (\w+): \S", text, re.MULTILINE))


def raised(function: Callable[..., Any]) -> set[str]:
    """The errors that a function's own body raises, by itself or by a check_... of asvrg.errors."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if re.match(r"check_(count|real|choice|broadcast)", node.func.id):
                found.add("InputError")
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            found |= {name} if name.endswith("Error") else set()
    return found


def test_all_of_asvrg_is_looked_at() -> None:
    names = {param.id for param in FUNCTIONS}
    assert {"asvrg.transforms.svrg", "asvrg.drivers.simulate.sweep", "asvrg.delays.none"} <= names
    assert len(names) > 80
    exported = {module.__name__ for module in MODULES}
    packages = {"asvrg.drivers", "asvrg.drivers.simulate", "asvrg.drivers.threads"}
    top = {f"asvrg.{module.name}" for module in pkgutil.iter_modules(asvrg.__path__)}
    assert top <= exported | packages


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_describe_arguments_and_results(function: Callable[..., Any]) -> None:
    found, signature = sections(function), inspect.signature(function)
    assert re.match(r"[^\n]+[.;:,]\n|[^\n]+\.$", found[""]), "It begins with one line."
    assert described(found.get("Args", "")) == set(signature.parameters)
    gives = signature.return_annotation not in ("None", "NoReturn", "Iterator[None]")
    assert gives == bool({"Returns", "Yields"} & found.keys())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_name_the_errors_that_they_raise(function: Callable[..., Any]) -> None:
    assert raised(function) <= described(sections(function).get("Raises", ""))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_have_an_example(function: Callable[..., Any]) -> None:
    assert (">>> " in inspect.getdoc(function)) or function in IN_A_PROGRAM


@pytest.mark.parametrize("record", RECORDS)
def test_records_describe_their_fields(record: Any) -> None:
    assert set(record._fields) == described(sections(record).get("Attributes", ""))


def test_what_is_missing_is_found() -> None:
    def incomplete(count: int) -> int:
        """Without anything."""
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}.")
        return count

    assert raised(incomplete) == {"ValueError"}
    assert described(sections(incomplete).get("Args", "")) == set()
    for check in (
        test_functions_describe_arguments_and_results,
        test_functions_name_the_errors_that_they_raise,
        test_functions_have_an_example,
    ):
        with pytest.raises(AssertionError):
            check(incomplete)
