"""The pages of docs/ and README.md name what exists, and the files beside them agree."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from absl import flags

import asvrg
from asvrg.drivers import mpi
from experiments import train_distributed, train_shared
from experiments.paper import report
from tests.mpi_jobs import mpiexec

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("[!_]*.md"))]
REFERENCE = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What single backticks hold: a dotted name, with or without a call behind it, but no delays.csv.
DOTTED = re.compile(r"(?<!`)`((?:[a-z_]\w*\.)+(?!csv\b)\w+)(?:\([^`]*\))?`(?!`)")


def automodules() -> list[str]:
    return re.findall(r"automodule:: (\S+)", REFERENCE)


def names(page: Path) -> Iterator[str]:
    """The names of ours on a page, from the package down: `delays.none` is asvrg.delays.none."""
    ours = {name for name in dir(asvrg) if not name.startswith("_")} | {"drivers"}
    for name in DOTTED.findall(page.read_text()):
        name = name.removeprefix("asvrg.")
        if name.partition(".")[0] in ours and "(" not in name:
            yield name


def exists(name: str) -> bool:
    value: Any = asvrg
    for part in name.split("."):
        if not hasattr(value, part) and part not in getattr(value, "__annotations__", {}):
            return False
        value = getattr(value, part, None)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_on_pages_exist(page: Path) -> None:
    assert mpi is asvrg.drivers.mpi  # so that its names are found
    assert not [name for name in names(page) if not exists(name)]


def test_names_that_do_not_exist_are_found() -> None:
    assert exists("transforms.svrg")
    assert exists("drivers.mpi.serve")
    assert not exists("transforms.saga")


def test_the_reference_has_every_public_module() -> None:
    listed = {importlib.import_module(name) for name in automodules()}
    facade = {value for name in asvrg.__all__ if hasattr(value := getattr(asvrg, name), "__path__")}
    modules = {value for name in asvrg.__all__ if type(value := getattr(asvrg, name)) is type(mpi)}
    assert facade | modules | {mpi} <= listed
    assert len(automodules()) == len(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).is_file(), f"{page.name} links to {target}."


@pytest.mark.parametrize(
    ("page", "binary"), [("train_shared", train_shared), ("distributed", train_distributed)]
)
def test_flags_in_tables_exist(page: str, binary: Any) -> None:
    values = flags.FlagValues()
    binary.define_flags(values)
    rows = re.findall(r"^\| (`--.*?) \|", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE)
    mentioned = {flag for row in rows for flag in re.findall(r"--(\w+)", row)}
    assert mentioned
    assert mentioned <= set(values)


def test_what_others_cite_agrees_with_the_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert f"\n## {PROJECT['version']} - " in (ROOT / "CHANGELOG.md").read_text()
    (paper,) = citation["references"]
    assert f"doi:{paper['doi']}" in (ROOT / "README.md").read_text()


def test_the_licence_is_the_one_that_is_named() -> None:
    title, version = (line.strip() for line in (ROOT / "LICENSE").read_text().split("\n")[1:3])
    assert (title, version) == ("Apache License", "Version 2.0, January 2004")
    assert PROJECT["license"] == "Apache-2.0"


@pytest.mark.timeout(120)
def test_the_distributed_program_runs_as_it_stands() -> None:
    done = mpiexec(["docs/distributed_program.py"], 3)
    assert done.returncode == 0, done.stderr
    assert "epoch 10: loss" in done.stdout
    assert done.stdout.rstrip().endswith("x = [0.0, 1.0, 2.0, 3.0, 4.0]")


def test_the_tables_of_the_paper_s_figures_are_those_of_the_csv() -> None:
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    lines = report.report(ROOT / "experiments" / "results")
    assert "\n".join(lines).strip() in readme
    assert {line[2:10] for line in lines if line.startswith("| Figure")} >= {
        f"Figure {number}" for number in (1, 2, 3)
    }
