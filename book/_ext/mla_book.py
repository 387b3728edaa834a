"""What the book adds to its Sphinx extensions.

Figures that are SVG stand in the page itself, so that they take its ink in light and
in dark mode. A page that is no notebook can show the widget of
one.

The API pages, which sphinx-autoapi makes from the source text, are said more
plainly. Signatures and types stand as the source has them, so that shapes such as
``Float[Tensor, "batch seq dim"]`` stay readable; a default that is a constant of the
package stands there as its value. A field is described once: by the comment behind
it, or by what the docstring of its class says. Nothing of the package is imported.
"""

import ast
import builtins
import copy
import functools
import gc
import html
import json
import re
from pathlib import Path

from docutils import nodes
from myst_nb.core.render import WIDGET_STATE_MIMETYPE, WIDGET_VIEW_MIMETYPE
from myst_nb.core.render import sanitize_script_content as sanitize
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

PACKAGE = "mla_edu"
API_PAGES = "book/api/"
# The name of an option, whose hyphens would become a dash; or what is code already.
OPTION = re.compile(r"(``.*?``)|(?<!\S)(--[a-z][\w-]*)")
# What a docstring, once it is reStructuredText, says of one field or argument.
SAID = re.compile(
    r"^:(?P<kind>ivar|param) (?P<name>\w+): (?P<text>.*(?:\n +.*)*)\n?", re.MULTILINE
)
# What a constant may be made of, to stand where its name does.
CONSTANT = (ast.Constant, ast.Name, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)


class Module:
    """What the syntax tree of one module says about its definitions."""

    def __init__(self, name, path):
        self.name = name
        self.lines = Path(path).read_text(encoding="utf-8").splitlines()
        self.definitions = {}  # full name -> class, function, or declared field
        self.outside = set()  # names that come from other libraries
        self.aliases = set()  # plain names assigned at the top
        self.constants = {}  # name -> what it is, of numbers and texts among them
        self.inside = {}  # name -> full name, of what comes from the package
        tree = ast.parse("\n".join(self.lines))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                self.outside |= {
                    (alias.asname or alias.name).partition(".")[0]
                    for alias in node.names
                }
            elif isinstance(node, ast.ImportFrom):
                names = {alias.asname or alias.name: alias.name for alias in node.names}
                if (node.module or "").partition(".")[0] == PACKAGE:
                    self.inside |= {
                        own: f"{node.module}.{name}" for own, name in names.items()
                    }
                else:
                    self.outside |= {*names, (node.module or "").partition(".")[0]}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                self.aliases |= {
                    target.id for target in node.targets if isinstance(target, ast.Name)
                }
                self._assign(node.targets[0], node.value)
        self._collect(tree, name)

    def _assign(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for each in zip(target.elts, value.elts, strict=True):
                self._assign(*each)
        elif isinstance(target, ast.Name):
            parts = (part for part in ast.walk(value) if isinstance(part, ast.expr))
            if all(isinstance(part, CONSTANT) for part in parts):
                self.constants[target.id] = value

    def _collect(self, node, prefix):
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                self.definitions[f"{prefix}.{child.name}"] = child
                self._collect(child, f"{prefix}.{child.name}")
            elif isinstance(child, ast.FunctionDef):
                self.definitions[f"{prefix}.{child.name}"] = child
            elif isinstance(child, ast.AnnAssign) and isinstance(
                child.target, ast.Name
            ):
                self.definitions[f"{prefix}.{child.target.id}"] = child

    def comment(self, node):
        """The comment that ends a line of a statement, or else the one above it."""
        for line in reversed(self.lines[node.lineno - 1 : node.end_lineno]):
            trailing = re.search(r"\s#:?\s+(.+)$", line)
            if trailing and not trailing.group(1).startswith("fmt:"):
                return trailing.group(1)
        above = []
        for line in reversed(self.lines[: node.lineno - 1]):
            if not line.lstrip().startswith("#"):
                break
            above.insert(0, line.lstrip(" #:"))
        return " ".join(above)


def read_source(app):
    """Take types, and the comments behind fields, from the syntax trees."""
    app.mla_modules = {}
    # A module is one still where its package offers a function of the same name.
    modules = app.env.autoapi_objects
    app.env.autoapi_all_objects |= modules
    for name, package in modules.items():
        package.children = [
            child for child in package.children if f"{name}.{child.name}" not in modules
        ]
    for name, obj in app.env.autoapi_all_objects.items():
        if obj.type in {"module", "package"}:
            app.mla_modules[name] = Module(name, obj.obj["file_path"])
    app.mla_definitions = {}
    for module in app.mla_modules.values():
        app.mla_definitions |= module.definitions
        for name, node in module.definitions.items():
            obj = app.env.autoapi_all_objects.get(name)
            if obj is None:
                continue
            if isinstance(node, ast.AnnAssign):
                obj.obj["annotation"] = written(node.annotation)
                obj.annotation = obj.obj["annotation"]
                obj.value = obj.value or default_of(node)
                obj.docstring = obj.docstring or sentence(module.comment(node))
            elif isinstance(node, ast.ClassDef):
                tell_fields(app, obj)
            elif obj.type == "property" and node.returns:
                obj.annotation = written(node.returns)


def default_of(node):
    """The default that a field states in a call of pydantic's ``Field``."""
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Field":
        for keyword in node.value.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
    return None


def tell_fields(app, obj):
    """Move what a class says of its fields to their own entries.

    Of a class with an ``__init__``, arguments of the same name are something else.
    """
    fields = {
        child.name: child
        for child in obj.children
        if isinstance(app.mla_definitions.get(child.id), ast.AnnAssign)
    }
    takes_fields = f"{obj.id}.__init__" not in app.mla_definitions

    def move(found):
        field = fields.get(found["name"])
        if field is None or (found["kind"] == "param" and not takes_fields):
            return found[0]
        field.docstring = sentence(" ".join(found["text"].split()))
        return ""

    obj.docstring = SAID.sub(move, obj.docstring)


def name_in_full(app, doctree):
    """Types are those of their module: two modules may have a ``Request``.

    Sphinx would find another object of the same last name for what is none of ours.
    """
    for node in list(doctree.findall(addnodes.pending_xref)):
        if node.get("refdomain") != "py":
            continue
        module = app.mla_modules.get(node.get("py:module"))
        target = node.get("reftarget", "")
        if module and target in module.inside:
            target = node["reftarget"] = origin(app, module.inside[target])
        elif f"{node.get('py:module')}.{target}" in app.mla_definitions:
            target = node["reftarget"] = f"{node['py:module']}.{target}"
        else:
            target = node["reftarget"] = origin(app, target)
        for text in list(node.findall(nodes.Text)):
            if text.startswith(f"{PACKAGE}."):  # a base, which autoapi names in full
                text.parent.replace(text, nodes.Text(text.rpartition(".")[2]))
        if is_plain(app, node, target):
            node.replace_self(node.children)


def sentence(text):
    """A comment as a sentence: with a full stop."""
    return text and text.rstrip(".,;: ") + "."


def parse_docstring(app, what, name, obj, options, lines):
    """Turn a Google docstring into reStructuredText, in place."""
    lines[:] = restructured(what, tuple(lines))


@functools.cache  # autoapi asks again for each module that imports a name
def restructured(what, lines):
    """The lines of a Google docstring as reStructuredText."""
    if what not in {"attribute", "data"}:
        # A property as a method: else napoleon takes "Width: in heads" for a type.
        what = "method" if what == "property" else what
        settings = Config(napoleon_use_rtype=False, napoleon_use_ivar=True)
        lines = GoogleDocstring(lines, settings, what=what).lines()
    return [
        OPTION.sub(lambda found: found[1] or f"``{found[2]}``", each) for each in lines
    ]


class Plain(ast.NodeTransformer):
    """``Annotated[T, ...]``, as a command's options have it, becomes ``T``."""

    def visit_Subscript(self, node):
        if isinstance(node.value, ast.Name) and node.value.id == "Annotated":
            return node.slice.elts[0]
        return self.generic_visit(node)


class Shapes(ast.NodeTransformer):
    """``Int[Tensor, " batch"]``, whose space is for linters, without it."""

    def visit_Subscript(self, node):
        if isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
            shape = node.slice.elts[1]
            if isinstance(shape, ast.Constant) and isinstance(shape.value, str):
                shape.value = shape.value.strip()
        return self.generic_visit(node)


def written(node):
    """A type as its source."""
    return ast.unparse(Shapes().visit(copy.deepcopy(node)))


class Values(ast.NodeTransformer):
    """A default with values in the place of constants' names."""

    def __init__(self, app, module):
        self.app, self.module = app, module

    def visit_Name(self, node):
        name = ast.unparse(node)
        first, dot, rest = name.partition(".")
        found = self.module.inside.get(first, f"{self.module.name}.{first}")
        home, _, last = origin(self.app, found + dot + rest).rpartition(".")
        module = self.app.mla_modules.get(home)
        if module is None or last not in module.constants:
            return node
        return Values(self.app, module).visit(copy.deepcopy(module.constants[last]))

    visit_Attribute = visit_Name


def write_signature(app, what, name, obj, options, args, retann):
    """The signature as in the source; none for a class whose fields say it all."""
    node = app.mla_definitions.get(name)
    if isinstance(node, ast.ClassDef):
        node = app.mla_definitions.get(f"{name}.__init__")
        if node is None:
            return "", None
    if not isinstance(node, ast.FunctionDef) or what == "apiproperty":
        return args, retann
    found = Plain().visit(copy.deepcopy(node.args))
    values = Values(app, app.mla_modules[module_of(app, name)])
    found.defaults = [values.visit(each) for each in found.defaults]
    found.kw_defaults = [each and values.visit(each) for each in found.kw_defaults]
    arguments = written(found)
    if what in {"apiclass", "apimethod", "apiexception"}:
        arguments = re.sub(r"^(self|cls)(, |$)", "", arguments)
    return f"({arguments})", written(node.returns) if node.returns else None


def module_of(app, name):
    """The module in which a name in full is defined."""
    while name not in app.mla_modules:
        name = name.rpartition(".")[0]
    return name


def skip_member(app, what, name, obj, skip, options):
    """Leave out what a module only imports, and names that nothing is said of.

    A declared field needs no words: its name and type say something.
    """
    undeclared = obj.type == "data" or (
        obj.type == "attribute" and obj.id not in app.mla_definitions
    )
    if (
        "original_path" in obj.obj
        or obj.name == "model_config"
        or (undeclared and not obj.docstring)
    ):
        return True
    return None


def origin(app, name):
    """Where a name of the package is defined, by what its modules import."""
    while True:
        module, _, last = name.rpartition(".")
        further = app.mla_modules.get(module)
        if further is None or last not in further.inside:
            return name
        name = further.inside[last]


def is_plain(app, node, target):
    """Whether a name is no object of the reference: of Python, of a library, an alias.

    It is what it is in the module where it stands, or where that imports it from.
    """
    if target.startswith(f"{PACKAGE}."):
        module, _, name = target.rpartition(".")
        module = app.mla_modules.get(module)
    else:
        name = target.partition(".")[0]
        module = app.mla_modules.get(node.get("py:module"))
    outside = module and name in module.outside | module.aliases
    return outside or hasattr(builtins, target)


def resolve(app, env, node, contnode):
    """Link a name of the package that is not in full, by its last part.

    Names of other libraries and type aliases are printed as they stand.
    """
    if node["refdomain"] != "py":
        return None
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    objects = env.get_domain("py").objects
    found = [name for name in objects if name.rpartition(".")[2] == last]
    if len(found) == 1 and found[0].startswith(PACKAGE):
        entry = objects[found[0]]
        place = node["refdoc"], entry.docname, entry.node_id
        return make_refnode(app.builder, *place, contnode, found[0])
    modules = app.mla_modules.values()
    known = {name for module in modules for name in module.outside}
    aliases = {name for module in modules for name in module.aliases}
    return contnode if target.partition(".")[0] in known or last in aliases else None


def api_pages(app, env, added, changed, removed):
    """Read the API pages anew: Sphinx does not see that they follow the source."""
    return [name for name in env.found_docs if name.startswith(API_PAGES)]


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
    parts = "api_words citations code_changes formulas finish minutes sharing units"
    for name in parts.split():
        app.setup_extension(name)
    app.add_directive("saved-widget", SavedWidget)
    app.connect("builder-inited", read_source, priority=900)
    app.connect("autodoc-process-docstring", parse_docstring)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", name_in_full)
    app.connect("missing-reference", resolve)
    app.connect("env-get-outdated", api_pages)
    app.connect(
        "doctree-read", inline_figures, priority=900
    )  # once Sphinx knows where the images lie
    app.connect("html-page-context", drop_live_code, priority=900)
    return {"version": "1", "parallel_read_safe": True}
