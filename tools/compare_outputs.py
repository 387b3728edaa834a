"""Whether the outputs of a notebook are those that were committed.

Text, tables and the state of widgets have to be equal. A figure has to show the same: its identifiers are numbered
as they appear, and its coordinates may differ by what no eye sees, since the last digits of a coordinate depend on
the processor that computed it.
"""

import difflib
import json
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from nbformat import NotebookNode

SLACK = 0.02  # points: a coordinate is written in hundredths, and may be rounded up here and down there
UNCHECKED = {"nbval-ignore-output", "nbval-skip"}
_SVG = "image/svg+xml"
_COORDINATES = {"d", "x", "y", "width", "height", "points", "transform", "viewBox"}
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_SHOWN_LINES = 12


def notebook_differences(committed: NotebookNode, executed: NotebookNode) -> list[str]:
    """What differs, in words, a paragraph for each cell; nothing for cells that are tagged as not compared.

    Args:
        committed: as it stands in the repository, in the normal form of `execute_notebooks.normalise`.
        executed: the same cells after a run, in that form too.
    """
    found = []
    for number, (before, after) in enumerate(zip(committed.cells, executed.cells, strict=True)):
        if before.cell_type == "code" and not UNCHECKED & set(before.metadata.get("tags", [])):
            found += [
                f"cell {number}: {words}\n{_indented(before.source, 3)}"
                for words in output_differences(before.outputs, after.outputs)
            ]
    states = [notebook.metadata.get("widgets", {}) for notebook in (committed, executed)]
    return found + [f"saved state of the widgets: {words}" for words in _json_difference(*states)]


def output_differences(committed: list[NotebookNode], executed: list[NotebookNode]) -> list[str]:
    """What differs between the outputs of one cell, in words."""
    kinds = [[_kind(output) for output in outputs] for outputs in (committed, executed)]
    if kinds[0] != kinds[1]:
        return [f"expected {_listed(kinds[0])}, got {_listed(kinds[1])}"]
    return [
        f"{_kind(before)}: {words}"
        for before, after in zip(committed, executed, strict=True)
        for words in _differences(before, after)
    ]


def svg_differences(committed: str, executed: str) -> list[str]:
    """What differs between two pictures beside identifiers, comments and less than `SLACK` in a coordinate."""
    before, after = (list(_marks(svg)) for svg in (committed, executed))
    shapes = [[shape for shape, _ in marks] for marks in (before, after)]
    if shapes[0] != shapes[1]:
        return [_line_difference(*shapes)]
    moved = [
        f"{shape}: expected {' '.join(map(str, here))}, got {' '.join(map(str, there))}"
        for (shape, here), (_, there) in zip(before, after, strict=True)
        if any(abs(a - b) > SLACK for a, b in zip(here, there, strict=True))
    ]
    return ["coordinates differ\n" + _shortened(moved)] if moved else []


def _kind(output: NotebookNode) -> str:
    if output.output_type == "stream":
        return output.name
    if output.output_type == "error":
        return output.ename
    return f"{output.output_type} of {', '.join(sorted(output.data))}"


def _listed(kinds: list[str]) -> str:
    return " and ".join(kinds) or "no output"


def _differences(before: NotebookNode, after: NotebookNode) -> Iterator[str]:
    """Of two outputs of one kind."""
    if before.output_type == "stream":
        yield from _text_difference(before.text, after.text)
    elif before.output_type == "error":  # a traceback shows where Python is installed
        yield from _text_difference(before.evalue, after.evalue)
    else:
        yield from _json_difference(before.metadata, after.metadata)
        for mime, data in before.data.items():
            compare = svg_differences if mime == _SVG else _text_difference
            yield from (_json_difference if isinstance(data, dict) else compare)(data, after.data[mime])


def _text_difference(before: str, after: str) -> Iterator[str]:
    if before != after:
        yield _line_difference(before.splitlines(keepends=True), after.splitlines(keepends=True))


def _json_difference(before: object, after: object) -> Iterator[str]:
    yield from _text_difference(*(json.dumps(value, indent=1, sort_keys=True) for value in (before, after)))


def _line_difference(before: list[str], after: list[str]) -> str:
    lines = list(difflib.unified_diff(before, after, n=0))[2:]
    return "expected (-) and got (+)\n" + _shortened([repr(line)[1:-1] for line in lines if line[0] != "@"])


def _shortened(lines: list[str]) -> str:
    rest = len(lines) - _SHOWN_LINES
    return _indented("\n".join(lines[:_SHOWN_LINES] + ([f"and {rest} more"] if rest > 0 else [])), _SHOWN_LINES + 1)


def _indented(text: str, num_lines: int) -> str:
    return "\n".join(f"    {line[:200]}" for line in text.splitlines()[:num_lines])


def _marks(svg: str) -> Iterator[tuple[str, list[float]]]:
    """Each element and text of a picture in order: what it is, and the coordinates taken out of it."""
    root = ElementTree.fromstring(svg)
    names = [element.get("id") for element in root.iter() if element.get("id")]
    numbered = {name: f"#{number}" for number, name in enumerate(dict.fromkeys(names))}

    def reference(match: re.Match[str]) -> str:
        return numbered.get(match[1], match[0])

    def walk(element: ElementTree.Element, depth: int) -> Iterator[tuple[str, list[float]]]:
        numbers, words = [], [" " * depth + element.tag.rpartition("}")[2]]
        for name, value in sorted(element.items()):
            if name in _COORDINATES:
                numbers += map(float, _NUMBER.findall(value))
                value = _NUMBER.sub("0", value)
            elif name == "id":
                value = numbered[value]
            else:
                value = re.sub(r"#([\w-]+)", reference, value)
            words.append(f"{name.rpartition('}')[2]}={' '.join(value.split())}")
        yield " ".join(words + [repr(element.text)] * bool((element.text or "").strip())), numbers
        for child in element:
            yield from walk(child, depth + 1)
            if (child.tail or "").strip():
                yield " " * depth + repr(child.tail), []

    return walk(root, 0)
