"""The comparison of outputs sees what a reader would see, and nothing that only a processor would."""

import copy
import re

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from compare_outputs import notebook_differences, output_differences, svg_differences
from mla_edu.book import figure, show


@pytest.fixture(scope="module")
def picture():
    fig, ax = figure()
    ax.bar([1, 2, 3], [1, 4, 9], label="bars")
    ax.plot([1, 2, 3], [2, 1 / 3, 7], "o--", label="line")
    ax.set(title="a title", xlabel="tokens", ylabel="bytes")
    ax.legend()
    return show(fig, "three bars and a line with circles").svg


def nudged(svg, by):
    """Each coordinate of a path or a mark moved, as rounding on another processor moves it."""

    def attribute(match):
        numbers = re.sub(r"-?\d+(\.\d+)?", lambda number: f"{float(number[0]) + by:.6f}", match[2])
        return f'{match[1]}="{numbers}"'

    return re.sub(r'\b(d|x|y)="([^"]*)"', attribute, svg)


@pytest.mark.parametrize("by", [0.01, -0.01, 1e-6])
def test_the_last_digit_of_a_coordinate_is_not_seen(picture, by):
    assert nudged(picture, by) != picture
    assert svg_differences(picture, nudged(picture, by)) == []


def test_names_of_clip_paths_and_marks_are_not_seen(picture):
    renamed = re.sub(r'((?:id="|#)f)([0-9a-f]{8}-)', r"\1other\2", picture)
    assert renamed != picture
    assert svg_differences(picture, renamed) == []


def test_a_reference_to_another_mark_is_seen(picture):
    first, second = list(dict.fromkeys(re.findall(r' id="([^"]+)"', picture)))[:2]
    assert svg_differences(picture, picture.replace(f'href="#{first}"', f'href="#{second}"', 1))


def test_comments_and_white_space_between_elements_are_not_seen(picture):
    changed = picture.replace("<!-- tokens -->", "<!-- other -->").replace(">\n", ">\n\n")
    assert changed != picture
    assert svg_differences(picture, changed) == []


def changed_once(pattern, replacement):
    def change(svg):
        changed, count = re.subn(pattern, replacement, svg, count=1)
        assert count == 1
        return changed

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda svg: nudged(svg, 0.05), id="all moved by a twentieth of a point"),
        pytest.param(changed_once(r"(\nL [\d.]+ )[\d.]+", r"\g<1>50.5"), id="a bar's corner"),
        pytest.param(changed_once(r'(<use [^>]*y=")[\d.]+', r"\g<1>7"), id="a mark moved"),
        pytest.param(changed_once(r"<use [^>]*/>", ""), id="a mark missing"),
        pytest.param(changed_once(r"\nL [\d. ]+", ""), id="a line with a point less"),
        pytest.param(changed_once(r"\nL ", "\nM "), id="a line torn"),
        pytest.param(changed_once(r'<path (?!id)[^>]*clip-path[^>]*style="fill: var[^>]*/>', ""), id="a bar missing"),
        pytest.param(changed_once(r"fill: var\(--mla-key, #c4581c\)", "fill: var(--mla-key, #c4581d)"), id="colour"),
        pytest.param(changed_once("stroke-dasharray: [^;]*", "stroke-dasharray: 1,2"), id="dashes"),
        pytest.param(changed_once("stroke-width: 2", "stroke-width: 3"), id="width of a line"),
        pytest.param(changed_once("stroke-opacity: 0.25", "stroke-opacity: 0.5"), id="opacity"),
        pytest.param(changed_once("a title</text>", "another title</text>"), id="text"),
        pytest.param(changed_once("three bars", "four bars"), id="alternative text"),
        pytest.param(changed_once("rotate\\(-90", "rotate(-80"), id="rotation"),
        pytest.param(changed_once('viewBox="0 0', 'viewBox="0 10'), id="view"),
        pytest.param(changed_once(' clip-path="[^"]*"', ""), id="what is cut off"),
    ],
)
def test_a_change_of_what_is_shown_is_seen(picture, change):
    if change(picture) == picture:
        raise ValueError("nothing was changed")
    assert svg_differences(picture, change(picture))


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def result(**data):
    return new_output("execute_result", {key.replace("_", "/"): value for key, value in data.items()})


def error(name, text):
    return new_output("error", ename=name, evalue=text, traceback=[])


OUTPUTS = [
    stream("1.25 x\n"),
    result(text_html="<b>5</b>", text_plain="5"),
    error("A", "why"),
]


def test_equal_outputs_have_no_difference():
    assert output_differences(OUTPUTS, copy.deepcopy(OUTPUTS)) == []


@pytest.mark.parametrize(
    "executed",
    [
        pytest.param(OUTPUTS[:2], id="one is missing"),
        pytest.param([*OUTPUTS, stream("more")], id="one too many"),
        pytest.param([OUTPUTS[1], OUTPUTS[0], OUTPUTS[2]], id="another order"),
        pytest.param([stream("1.26 x\n"), *OUTPUTS[1:]], id="a digit"),
        pytest.param([stream("1.25 x"), *OUTPUTS[1:]], id="the end of a line"),
        pytest.param([stream("1.25 x\n", "stderr"), *OUTPUTS[1:]], id="another stream"),
        pytest.param([OUTPUTS[0], result(text_html="<b>6</b>", text_plain="5"), OUTPUTS[2]], id="HTML"),
        pytest.param([OUTPUTS[0], result(text_plain="5"), OUTPUTS[2]], id="HTML is missing"),
        pytest.param([*OUTPUTS[:2], error("A", "why not")], id="an error's text"),
        pytest.param([*OUTPUTS[:2], error("B", "why")], id="an error's name"),
        pytest.param(
            [OUTPUTS[0], new_output("display_data", OUTPUTS[1].data), OUTPUTS[2]], id="displayed, not a result"
        ),
    ],
)
def test_a_change_of_the_outputs_is_seen(executed):
    assert output_differences(OUTPUTS, executed)


def notebook(output, tags=(), widget=1):
    made = new_notebook(cells=[new_code_cell("work()", outputs=[output], metadata={"tags": list(tags)})])
    made.metadata["widgets"] = {"state": {"count": widget}}
    return made


def test_the_report_names_the_cell_and_both_outputs():
    (words,) = notebook_differences(notebook(stream("error 1e-15\n")), notebook(stream("error 2e-15\n")))
    assert words.startswith("cell 0: stdout: expected (-) and got (+)")
    assert "-error 1e-15" in words and "+error 2e-15" in words and "work()" in words


def test_cells_whose_output_depends_on_the_machine_are_not_compared():
    tags = ["nbval-ignore-output"]
    assert notebook_differences(notebook(stream("a"), tags), notebook(stream("b"), tags)) == []


def test_the_saved_state_of_widgets_is_compared():
    (words,) = notebook_differences(notebook(stream("a"), widget=1), notebook(stream("a"), widget=2))
    assert words.startswith("saved state of the widgets") and '"count": 2' in words
