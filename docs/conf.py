"""How Sphinx builds these pages: `sphinx-build -W -b html docs docs/_build`, without a network."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_ROOT = Path(__file__).parent.parent
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]

project = _PROJECT["name"]
release = version = _PROJECT["version"]
author = copyright = "The asvrg developers"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"asvrg {release}"
html_show_sourcelink = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3  # a link may point at a heading

default_role = "code"  # single backticks in docstrings
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# A type checker sees Any; a reader sees the name that the docstrings explain.
autodoc_type_aliases = {
    name: name
    for name in ("Array", "BatchGradFn", "Data", "GradFn", "MapFn", "Observe", "PyTree", "Schedule")
}
# Importing asvrg.drivers.mpi starts no MPI; should that change, the pages are made all the same.
autodoc_mock_imports = ["mpi4py", "mpi4jax"]


def _to_restructured_text(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """What the docstrings write plainly: ||v|| is a norm, and indented lines are code.

    And the K. of "num_workers: K." is a name, not the number of an item in a list.
    """
    del app, what, name, obj, options
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            line = line.replace("|", r"\|")
        lines[i] = re.sub(r"^(\s*(:[^:]+: )?)(?=\(?[A-Za-z][.)](\s|$))", r"\1\\ ", line)
        if (
            re.search(r"\w:$", line)
            and lines[i + 1 : i + 2] == [""]
            and lines[i + 2].startswith("    ")
        ):
            lines[i] += ":"


def _skip(app, what, name, obj, skip, options):  # type: ignore[no-untyped-def]
    """The fields of a NamedTuple stand among its attributes already."""
    del app, what, name, options
    return skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number")


def _name_aliases(app, what, name, obj, options, signature, returned):  # type: ignore[no-untyped-def]
    """The names of autodoc_type_aliases, also where Sphinx leaves its wrapper around them."""
    del app, what, name, obj, options
    pattern = r"TypeAliasForwardRef\('(\w+)'\)"
    return tuple(text and re.sub(pattern, r"\1", text) for text in (signature, returned))


def setup(app):  # type: ignore[no-untyped-def]
    """Connects what the configuration alone cannot say; 900: after napoleon."""
    app.connect("autodoc-process-docstring", _to_restructured_text, priority=900)
    app.connect("autodoc-process-signature", _name_aliases)
    app.connect("autodoc-skip-member", _skip)
