"""How Sphinx builds these pages; CONTRIBUTING.md has the command."""

from __future__ import annotations

from typing import Any

import torch_clipped

project = "torch-clipped"
author = "The torch-clipped authors"
release = version = torch_clipped.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"torch-clipped {version}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_copyright = False

myst_heading_anchors = 3  # links like [below](#zclip), as GitHub makes them
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_mock_imports = ["transformers", "lightning"]  # the callbacks are described where these are not installed, too
autodoc_type_aliases = {
    "Array": "numpy.ndarray",
    "Samples": "torch_clipped.heavy_tails.Samples",
}
python_use_unqualified_type_names = True
napoleon_use_ivar = True
nitpick_ignore_regex = [  # not ours, and what is private
    ("py:.*", r"(collections|pathlib|types|torch|numpy|matplotlib|transformers|lightning|torch_clipped\._engine)\..*"),
    ("py:class", r".*\.(Batch|Target)"),  # type variables
]
nitpick_ignore = [  # where a name is imported for type checkers only, Sphinx takes all types of the signature as they are written
    ("py:class", name)
    for name in (
        "Array",
        "Axes",
        "Collectors",
        "NDArray",
        "Numbers",
        "Optimizer",
        "ParamsT",
        "Samples",
        "Tensor",
        "Trainer",
        "np.int64",
        "npt.ArrayLike",
    )
]


def _formulas_as_written(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make code blocks of what is indented behind an ordinary paragraph: the formulas of our docstrings."""
    for i in range(len(lines) - 1, 1, -1):
        if lines[i].startswith("    ") and not lines[i - 1] and lines[i - 2][:1].strip():
            lines[i:i] = [".. code-block:: text", ""]


def setup(app: Any) -> None:
    """Look at docstrings before napoleon, which comes at 500, turns their sections into fields."""
    app.connect("autodoc-process-docstring", _formulas_as_written, priority=400)
