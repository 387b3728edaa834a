"""What the book adds to its Sphinx extensions.

Figures that are SVG stand in the page itself, so that they take its ink in light and
in dark mode. A page that is no notebook can show the widget of one.
"""

import gc
import html
import json
import re
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import WIDGET_STATE_MIMETYPE, WIDGET_VIEW_MIMETYPE
from myst_nb.core.render import sanitize_script_content as sanitize
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util.docutils import SphinxDirective


def inline_figures(app, doctree):
    """Put SVG figures, displayed by a cell or linked in Markdown, into the page.

    A picture that is a paragraph of its own takes its place: a figure cannot stand in
    one. Its text alternative is the one in the SVG; the caption is that of the link, or
    else what the alternative says first.
    """
    number = 0
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"])
        svg = (
            path.read_text(encoding="utf-8")
            if path.suffix == ".svg" and path.is_file()
            else ""
        )
        if 'role="img"' in svg:
            svg = (
                svg[svg.index("<svg") :].strip().replace('class="mla-figure" ', "", 1)
            )  # the class goes to the figure
            number += 1
            told = html.unescape(re.search('aria-label="([^"]*)"', svg)[1])
            words = html.escape(image.get("alt") or told.split(". ")[0]).rstrip(".")
            figure = nodes.raw(
                "",
                f'<figure class="mla-figure">{svg}<figcaption><b>Figure {number}.</b> '
                f"{words}.</figcaption></figure>",
                format="html",
            )
            alone = isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1
            (image.parent if alone else image).replace_self(figure)


class SavedWidget(SphinxDirective):
    """Show the first widget of a notebook, from the state that the notebook saved."""

    required_arguments = 1  # the notebook, relative to the page

    def run(self):
        name, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(name)
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        state = notebook["metadata"].get("widgets", {}).get(WIDGET_STATE_MIMETYPE)
        views = [
            output["data"][WIDGET_VIEW_MIMETYPE]
            for cell in notebook["cells"]
            for output in cell.get("outputs", ())
            if WIDGET_VIEW_MIMETYPE in output.get("data", {})
        ]
        if not state or not views:
            raise self.error(f"{name} has saved no widget; execute it")
        page = self.env, self.env.docname
        body = {"type": WIDGET_STATE_MIMETYPE, "body": sanitize(json.dumps(state))}
        NbMetadataCollector.add_js_file(*page, "ipywidgets_state", None, body)
        for script, attributes in self.config.nb_ipywidgets_js.items():
            NbMetadataCollector.add_js_file(*page, script, script, attributes)
        view = sanitize(json.dumps(views[0]))
        script = f'<script type="{WIDGET_VIEW_MIMETYPE}">{view}</script>'
        return [nodes.raw("", script, format="html")]


def drop_live_code(app, pagename, templatename, context, doctree):
    """Leave out Thebe, which no page uses and whose constants name another host."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe"
        not in str(getattr(script, "filename", ""))
        + str(getattr(script, "attributes", {})).lower()
    ]


def setup(app):
    # A build makes millions of nodes and drops few: to look for garbage after each
    # 700, as Python does, takes as long as all the rest.
    gc.set_threshold(300_000, 20, 50)
    app.setup_extension("api_words")
    app.setup_extension("citations")
    app.setup_extension("code_changes")
    app.setup_extension("formulas")
    app.setup_extension("finish")
    app.setup_extension("minutes")
    app.setup_extension("sharing")
    app.setup_extension("units")
    app.setup_extension("api_reference")
    app.add_directive("saved-widget", SavedWidget)
    app.connect(
        "doctree-read", inline_figures, priority=900
    )  # once Sphinx knows where the images lie
    app.connect("html-page-context", drop_live_code, priority=900)
    return {"version": "1", "parallel_read_safe": True}
