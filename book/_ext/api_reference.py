"""The API pages, which sphinx-autoapi makes from the source text, said more plainly.

Signatures and types stand as the source has them, so that shapes such as
``Float[Tensor, "batch seq dim"]`` stay readable; a default that is a constant of the
package stands there as its value. A field is described once: by the comment behind
it, or by what the docstring of its class says. Nothing of the package is imported.
"""

import ast
import builtins
import copy
import functools
import re

from api_source import PACKAGE, Module, Plain, Values, default_of, origin, written
from docutils import nodes
from sphinx import addnodes
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.nodes import make_refnode

API_PAGES = "book/api/"
# The name of an option, whose hyphens would become a dash; or what is code already.
OPTION = re.compile(r"(``.*?``)|(?<!\S)(--[a-z][\w-]*)")
# What a docstring, once it is reStructuredText, says of one field or argument.
SAID = re.compile(
    r"^:(?P<kind>ivar|param) (?P<name>\w+): (?P<text>.*(?:\n +.*)*)\n?", re.MULTILINE
)


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


def sentence(text):
    """A comment as a sentence: with a full stop."""
    return text and text.rstrip(".,;: ") + "."


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
            target = node["reftarget"] = origin(app.mla_modules, module.inside[target])
        elif f"{node.get('py:module')}.{target}" in app.mla_definitions:
            target = node["reftarget"] = f"{node['py:module']}.{target}"
        else:
            target = node["reftarget"] = origin(app.mla_modules, target)
        for text in list(node.findall(nodes.Text)):
            if text.startswith(f"{PACKAGE}."):  # a base, which autoapi names in full
                text.parent.replace(text, nodes.Text(text.rpartition(".")[2]))
        if is_plain(app, node, target):
            node.replace_self(node.children)


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
    values = Values(app.mla_modules, app.mla_modules[module_of(app, name)])
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


def api_pages(app, env, added, changed, removed):
    """Read the API pages anew: Sphinx does not see that they follow the source."""
    return [name for name in env.found_docs if name.startswith(API_PAGES)]


def setup(app):
    app.connect("builder-inited", read_source, priority=900)
    app.connect("autodoc-process-docstring", parse_docstring)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", name_in_full)
    app.connect("missing-reference", resolve)
    app.connect("env-get-outdated", api_pages)
    return {"version": "1", "parallel_read_safe": True}
