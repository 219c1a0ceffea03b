"""How the site is built: from the Markdown of this repository, its notebooks and its docstrings.

The repository itself is the source folder, so that a link means the same here and in the site.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "Stability shootout"
release = metadata.version("ptycho-stability-shootout")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "results", "notebooks/results"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "force"  # committed without outputs
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
smartquotes = False

html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_extra_path = ["site/index.html"]  # the start page lies one folder down
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def write_math(translator: Any, node: nodes.Node, as_block: bool = False) -> None:
    """Formulas as MathML, which browsers draw by themselves: nothing is loaded from elsewhere."""
    translator.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Tell Sphinx of the formulas."""
    inline = (lambda translator, node: write_math(translator, node), None)
    block = (lambda translator, node: write_math(translator, node, as_block=True), None)
    app.add_html_math_renderer("mathml", inline, block)
