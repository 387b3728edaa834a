"""The API pages, made from the source text by sphinx-autoapi, with three things added.

The comment behind a field becomes its description, type aliases of the package need no page of their own, and
docstrings in Google style are parsed everywhere but in the one-line descriptions of properties.
"""

import re
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

PACKAGE = "mla_edu"
API_PAGES = "book/api/"


def parse_docstring(app, what, name, obj, options, lines):
    """Turn a Google docstring into reStructuredText, in place."""
    if what not in {"attribute", "data", "property"}:  # there napoleon takes "Width: in heads" for a type
        settings = Config(napoleon_use_rtype=False, napoleon_google_docstring=True)
        lines[:] = GoogleDocstring(lines, settings, app, what, name, obj, options).lines()


def describe_fields(app):
    """Give each class field without a docstring the comment that follows it or stands above it."""
    for module in app.env.autoapi_all_objects.values():
        if module.type in {"module", "package"}:
            source = Path(module.obj["file_path"]).read_text(encoding="utf-8").splitlines()
            for cls in (child for child in module.children if child.type == "class"):
                for field in (child for child in cls.children if child.type == "attribute"):
                    if not field.docstring and not field.inherited and "from_line_no" in field.obj:
                        field.docstring = field_comment(source, field.obj["from_line_no"], field.obj["to_line_no"])


def field_comment(lines, first, last):
    """The comment at the end of a statement's last line, or else the comment lines just above it."""
    trailing = re.search(r"\s#:?\s+(.+)$", lines[last - 1])
    if trailing:
        return trailing.group(1)
    above = []
    for line in reversed(lines[: first - 1]):
        if not line.lstrip().startswith("#"):
            break
        above.insert(0, line.lstrip(" #:"))
    return " ".join(above)


def resolve_alias(app, env, node, contnode):
    """Print the name of a type alias of the package as it stands."""
    aliases = {name.rpartition(".")[2] for name, obj in env.autoapi_all_objects.items() if obj.type == "data"}
    if node["refdomain"] == "py" and node["reftarget"].removeprefix(f"{PACKAGE}.").rpartition(".")[2] in aliases:
        return contnode
    return None


def api_pages(app, env, added, changed, removed):
    """Read the API pages anew in every build: Sphinx does not know that they follow from the source files."""
    return [name for name in env.found_docs if name.startswith(API_PAGES)]


def setup(app):
    app.connect("autodoc-process-docstring", parse_docstring)
    app.connect("builder-inited", describe_fields, priority=900)  # after autoapi has read the package
    app.connect("missing-reference", resolve_alias)
    app.connect("env-get-outdated", api_pages)
    return {"version": "1", "parallel_read_safe": True}
