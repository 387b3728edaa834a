"""One style sheet in place of a dozen: only the rules that some page can use.

A rule stays where each class and each id of its selector is a word of a page or of a
script. Custom properties stay where something reads them.
"""

import posixpath
import re

TOKEN = re.compile(
    r"""/\*.*?\*/|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|url\([^"')]*\)|[{};]""", re.S
)
NAME = re.compile(r"""[.#]((?:[\w-]|\\.)+)""")
# What draws a letter of the icon font draws nothing: see icons.py.
ICON_FONT = re.compile(r"--fa-font|font-family:\s*\"?Font Awesome")
NESTED = ("@media", "@supports", "@layer", "@container")


def parse(css):
    """A style sheet as a list of (prelude, body).

    The body is a list of the same kind, the text of the declarations, or None for a
    statement such as ``@charset "utf-8";``.
    """
    stack, start, prelude = [[]], 0, ""
    pieces = []

    def text():
        joined = " ".join("".join(pieces).split())
        pieces.clear()
        return joined

    opened = []  # preludes of the blocks that are open
    for token in TOKEN.finditer(css):
        pieces.append(css[start : token.start()])
        start = token.end()
        mark = token[0]
        if mark.startswith("/*"):
            continue
        inside_rule = bool(opened) and not opened[-1].startswith(NESTED)
        if mark == "{" and not inside_rule:
            prelude = text()
            opened.append(prelude)
            stack.append([])
        elif mark == "{":  # a keyframe, within its animation
            pieces.append("{")
            opened.append("")
        elif mark == "}" and opened[-1] == "":
            pieces.append("}")
            opened.pop()
        elif mark == "}":
            prelude, children = opened.pop(), stack.pop()
            rest = text().strip("; ")
            body = children if prelude.startswith(NESTED) else rest
            stack[-1].append((prelude, body))
        elif mark == ";" and not opened:
            stack[-1].append((text(), None))
        elif mark == ";" and not inside_rule:
            pieces.clear()
        else:
            pieces.append(mark)
    return stack[0]


def split(text, at):
    """Parts of a text between the marks that stand in no bracket and no quote."""
    parts, depth, quote, start = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[i - 1] != "\\" else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == at and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def is_usable(selector, words):
    """Whether the classes and ids that a selector asks for are there.

    What stands in ``:not()`` and ``:is()`` asks for nothing.
    """
    plain = re.sub(r"\[[^\]]*\]", "", selector)
    while re.search(r":[\w-]+\([^()]*\)", plain):
        plain = re.sub(r":[\w-]+\([^()]*\)", "", plain)
    names = (re.sub(r"\\(.)", r"\1", name) for name in NAME.findall(plain))
    return all(name in words for name in names)


def keep(rules, words):
    """The rules that some page can use."""
    kept = []
    for prelude, body in rules:
        if isinstance(body, list):
            inner = keep(body, words)
            if inner:
                kept.append((prelude, inner))
        elif prelude.startswith("@") or body is None:
            kept.append((prelude, body))
        elif not ICON_FONT.search(body):
            selectors = [s for s in split(prelude, ",") if is_usable(s, words)]
            if selectors and body:
                kept.append((",".join(selectors), body))
    return kept


def write(rules):
    """A style sheet from its rules."""
    text = []
    for prelude, body in rules:
        if body is None:
            text.append(f"{prelude};\n")
        elif isinstance(body, list):
            text.append(f"{prelude}{{\n{write(body)}}}\n")
        else:
            text.append(f"{prelude}{{{body}}}\n")
    return "".join(text)


def drop_properties(rules, read):
    """The rules without custom properties that no text in ``read`` asks for."""
    kept = []
    for prelude, body in rules:
        if isinstance(body, list):
            kept.append((prelude, drop_properties(body, read)))
        elif body is None or prelude.startswith("@") or "--" not in body:
            kept.append((prelude, body))
        else:
            wanted = [
                part
                for part in split(body, ";")
                if not part.startswith("--") or part.partition(":")[0].strip() in read
            ]
            if wanted:
                kept.append((prelude, ";".join(wanted)))
    return kept


def properties(text):
    """The custom properties that a text asks for."""
    return set(re.findall(r"(?:var\(\s*|getPropertyValue\(\W*)(--[\w-]+)", text))


def drop_fonts(rules):
    """The rules without fonts that none of them names."""
    text = write([rule for rule in rules if rule[0] != "@font-face"])
    kept = []
    for prelude, body in rules:
        if prelude == "@font-face":
            family = re.search(r"font-family:\s*([^;]+)", body)[1].strip(" \"'")
            if family not in text and family.replace("\\", "") not in text:
                continue
        kept.append((prelude, body))
    return kept


def relocate(css, old, new):
    """Style rules with their relative addresses seen from another folder."""

    def move(found):
        target = found[2]
        if re.match(r"[a-z]+:|/|#", target):
            return found[0]
        path = posixpath.normpath(posixpath.join(old, target))
        return f"url({found[1]}{posixpath.relpath(path, new or '.')}{found[1]})"

    return re.sub(r"""url\((["']?)([^"')]+)\1\)""", move, css)


def reduce(sheets, words, scripts):
    """One style sheet, in the folder ``_static``, from several.

    Args:
        sheets: Pairs of a path in the book and the text of a style sheet, in order.
        words: The words that pages and scripts use.
        scripts: What pages and scripts say beside; they too read custom properties.

    """
    rules = []
    for path, css in sheets:
        moved = relocate(css, posixpath.dirname(path), "_static")
        rules += keep(parse(moved), words)
    rules = [rule for rule in rules if not rule[0].startswith("@charset")]
    while True:
        read = properties(write(rules)) | properties(scripts)
        fewer = drop_properties(rules, read)
        if fewer == rules:
            return write(drop_fonts(rules))
        rules = fewer
