"""What the source of the package says, from its syntax trees; nothing is imported."""

import ast
import copy
import re
from pathlib import Path

PACKAGE = "mla_edu"
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


def origin(modules, name):
    """Where a name of the package is defined, by what its modules import."""
    while True:
        module, _, last = name.rpartition(".")
        further = modules.get(module)
        if further is None or last not in further.inside:
            return name
        name = further.inside[last]


def default_of(node):
    """The default that a field states in a call of pydantic's ``Field``."""
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "Field":
        for keyword in node.value.keywords:
            if keyword.arg == "default":
                return ast.unparse(keyword.value)
    return None


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

    def __init__(self, modules, module):
        self.modules, self.module = modules, module

    def visit_Name(self, node):
        name = ast.unparse(node)
        first, dot, rest = name.partition(".")
        found = self.module.inside.get(first, f"{self.module.name}.{first}")
        home, _, last = origin(self.modules, found + dot + rest).rpartition(".")
        module = self.modules.get(home)
        if module is None or last not in module.constants:
            return node
        return Values(self.modules, module).visit(copy.deepcopy(module.constants[last]))

    visit_Attribute = visit_Name
