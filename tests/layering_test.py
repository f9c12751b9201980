"""Imports run one way: a module imports from floors below its own, never a neighbour."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"asvrg.errors"},
    {"asvrg.types"},
    {"asvrg.durations"},
    {"asvrg.checkpoints.orbax_files"},
    {"asvrg.checkpoints"},
    {"asvrg.virtual_clock"},
    {
        "asvrg.objectives",
        "asvrg.transforms.trees",
        "asvrg.sampling",
        "asvrg.delays",
        "asvrg.schedules",
        "asvrg.theory.bounds",
    },
    {
        "asvrg.mlp",
        "asvrg.estimators",
        "asvrg.theory.choices",
        "asvrg.theory.smoothness",
        "asvrg.transforms.blocks",
        "asvrg.transforms.full_gradients",
        "asvrg.transforms.variance",
    },
    {"asvrg.steps", "asvrg.transforms.correction", "asvrg.theory"},
    {"asvrg.transforms"},
    {
        "asvrg.drivers.arguments",
        "asvrg.drivers.landed",
        "asvrg.drivers.mpi.protocol",
        "asvrg.drivers.pausing",
    },
    {"asvrg.drivers.mpi.transport", "asvrg.drivers.mpi.server", "asvrg.drivers.mpi.worker"},
    {"asvrg.drivers.mpi.exchange", "asvrg.drivers.mpi.inner_loop"},
    {"asvrg.drivers.simulate.parts"},
    {"asvrg.drivers.simulate.read_order", "asvrg.drivers.simulate.ring"},
    {"asvrg.drivers.simulate.sweep"},
    {"asvrg.drivers.threads.buffer", "asvrg.drivers.threads.claims"},
    {"asvrg.drivers", "asvrg.drivers.simulate", "asvrg.drivers.threads", "asvrg.drivers.mpi"},
    {"asvrg.training"},
    {"asvrg.fitting.inputs"},
    {"asvrg.fitting.automatic"},
    {"asvrg.fitting.kept", "asvrg.fitting.records"},
    {"asvrg.fitting.loop"},
    {"asvrg.fitting.epochs"},
    {"asvrg.fitting"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
FACADE = "asvrg"  # collects the public names, so it imports from every floor
CORE_DEPENDENCIES = {"jax", "jaxlib", "numpy", "optax", "chex", "absl"}
MPI = {"mpi4py", "mpi4jax"}
OPTIONAL = {"asvrg.checkpoints.orbax_files": {"orbax"}}  # imported when it is needed


def modules(package: str) -> dict[str, Path]:
    """The modules of a package by name; a package itself has its directory's."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    return {n.removesuffix(".__init__"): p for n, p in zip(names, paths, strict=True)}


ASVRG, EXPERIMENTS = modules("asvrg"), modules("experiments")
OWN = ASVRG | EXPERIMENTS


def imports(path: Path) -> Iterator[str]:
    """What a file imports, inside of functions too: modules of ours, or names from elsewhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import; write the whole name instead."
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in OWN else str(node.module)


def complaints(module: str, imported: Iterator[str]) -> list[str]:
    """What is wrong with the imports of a module of asvrg, one sentence each."""
    found = []
    if module not in FLOOR_OF:
        return [f"{module} is new: give it a floor in layering_test.py."]
    for name in imported:
        top = name.partition(".")[0]
        if name == FACADE or top == "experiments":
            found.append(f"{module} imports {name}, which stands above it.")
        elif top == "asvrg" and FLOOR_OF.get(name, len(FLOORS)) >= FLOOR_OF[module]:
            found.append(f"{module} imports {name}, which is not on a floor below it.")
        elif module == "asvrg.training" and name.startswith("asvrg.drivers"):
            found.append(f"{module} imports {name}; it receives an inner loop instead.")
        elif top in MPI and not module.startswith("asvrg.drivers.mpi"):
            found.append(f"{module} imports {name}; only asvrg.drivers.mpi may.")
        elif top in OPTIONAL.get(module, ()):
            continue
        elif top not in {"asvrg", *sys.stdlib_module_names, *CORE_DEPENDENCIES, *MPI}:
            found.append(f"{module} imports {name}, which is no dependency of the core.")
    return found


@pytest.mark.parametrize("module", sorted(set(ASVRG) - {FACADE}))
def test_imports_run_down(module: str) -> None:
    found = complaints(module, imports(ASVRG[module]))
    assert not found, " ".join(found)


@pytest.mark.parametrize(
    ("module", "imported", "complaint"),
    [
        ("asvrg.types", "asvrg.steps", "not on a floor below"),
        ("asvrg.mlp", "asvrg.estimators", "not on a floor below"),
        ("asvrg.drivers.simulate", "asvrg.drivers.threads", "not on a floor below"),
        ("asvrg.steps", "asvrg", "stands above"),
        ("asvrg.training", "experiments.launch", "stands above"),
        ("asvrg.training", "asvrg.drivers.simulate", "receives an inner loop"),
        ("asvrg.drivers.threads", "mpi4py", "only asvrg.drivers.mpi may"),
        ("asvrg.objectives", "sklearn.datasets", "no dependency of the core"),
        ("asvrg.checkpoints", "orbax.checkpoint", "no dependency of the core"),
        ("asvrg.novelty", "asvrg.types", "give it a floor"),
    ],
)
def test_wrong_arrows_are_found(module: str, imported: str, complaint: str) -> None:
    (found,) = complaints(module, iter([imported]))
    assert complaint in found


@pytest.mark.parametrize("module", sorted(EXPERIMENTS))
def test_experiments_leave_mpi_to_the_driver(module: str) -> None:
    assert not MPI & {name.partition(".")[0] for name in imports(EXPERIMENTS[module])}


def test_experiments_import_each_other_without_cycles() -> None:
    arrows = {
        module: {name for name in imports(path) if name in EXPERIMENTS and name != module}
        for module, path in EXPERIMENTS.items()
    }
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("module", sorted(set(ASVRG) - {FACADE, "asvrg.drivers"}))
def test_every_module_has_its_tests(module: str) -> None:
    name = f"{module.rpartition('.')[2]}_test.py"
    assert (ROOT / "tests" / name).is_file(), f"{module} needs tests/{name}."


@pytest.mark.timeout(60)
def test_nothing_happens_at_import() -> None:
    """No device is looked for, no MPI loaded, no flag or variable set, no thread started."""
    script = """
import os, sys, threading
import absl.flags, chex, jax, optax  # whatever these do is theirs
before = (dict(os.environ), set(absl.flags.FLAGS), dict(jax.config.values), threading.enumerate())
import asvrg
after = (dict(os.environ), set(absl.flags.FLAGS), dict(jax.config.values), threading.enumerate())
assert before == after, (before, after)
assert not {"mpi4py", "mpi4jax", "orbax", "experiments"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "no_such_platform"},  # fails if jax looks for devices
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
