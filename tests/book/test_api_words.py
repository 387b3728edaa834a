"""What the API pages make of plain text: formulas, names, signs; and where a long name breaks."""

import re
import sys
from pathlib import Path

import pytest
from docutils import nodes
from sphinx import addnodes

sys.path.append(str(Path(__file__).resolve().parents[2] / "book" / "_ext"))

from api_words import breakable, parts, plain_types

MARKS = {nodes.math: "$", nodes.literal: "`", nodes.Text: ""}


def shown(text):
    made = [(MARKS[type(part)], part.astext()) for part in parts(text)]
    return "".join(f"{mark}{said}{mark}" for mark, said in made)


@pytest.mark.parametrize(
    ("text", "page"),
    [
        ("MLA d_c + d_h^R (Table 1).", "MLA $d_c + d_h^R$ (Table 1)."),
        ("(MHA: n_g = n_h; MQA: 1)", "(MHA: $n_g = n_h$; MQA: 1)"),
        (
            "GQA: n_h * 2 d_h. MLA: n_h\n(2 d_c - d_v), since",
            r"GQA: $n_h \cdot 2 d_h$. MLA: $n_h\,(2 d_c - d_v)$, since",
        ),
        ("d_c’: width, if 2 d_c <= d_h", r"$d_c'$: width, if $2 d_c \le d_h$"),
        ("at 1/s = 2 d_c / (d_c 2 d_h) + 1/C, with", r"at $1/s = 2 d_c / (d_c \cdot 2 d_h) + 1/C$, with"),
        ("passes 2 (W - 1) / W of it (W ranks)", "passes $2 (W - 1) / W$ of it (W ranks)"),
        ("before W_UK or W^UK; (W_UK^T q)^T c", r"before $W^{UK}$ or $W^{UK}$; $(W^{UK\,\top}\,q)^\top\,c$"),
        ("at 10**6 and 2**-13.", "at $10^{6}$ and $2^{-13}$."),
        ("not always hidden_size / num_heads.", "not always `hidden_size / num_heads`."),
        ("times sqrt(hidden_size / rank) on", "times `sqrt(hidden_size / rank)` on"),
        ("[batch, heads * s_q].", "`[batch, heads * s_q]`."),
        ("by heads=16,128 dtype=fp8_mla.", "by `heads=16,128` `dtype=fp8_mla`."),
        ("“fp8_mla” or “bytes in flight”, “As it is”", '`"fp8_mla"` or `"bytes in flight"`, “As it is”'),
        ("after “claim-“; “” if not", 'after `"claim-"`; `""` if not'),
        ("0 and -inf where", "0 and −inf where"),
        ("tp x dp GPUs; min(a, b * c); p - q", "tp × dp GPUs; min(a, b × c); p − q"),
    ],
)
def test_formulas_and_names_are_set_as_such(text, page):
    assert shown(text) == page


@pytest.mark.parametrize(
    "text",
    ["With s new tokens and C keys in all", "Student (1908), sec. 2.1.2", "a well-known x, drawn 2 times", "W-th"],
)
def test_words_stay_words(text):
    assert shown(text) == text


@pytest.mark.parametrize(("kind", "shown"), [("class", "to('a')"), ("method", "to('a') -> Table")])
def test_a_signature_shows_types_without_quotes_and_no_return_of_a_class(kind, shown):
    default = addnodes.desc_sig_literal_string("", "'a'")
    returns = addnodes.desc_returns("", "", addnodes.desc_sig_literal_string("", "'Table'"))
    arguments = addnodes.desc_parameterlist("", "", addnodes.desc_parameter("", "", default))
    signature = addnodes.desc_signature("", "", addnodes.desc_name("", "to"), arguments, returns)
    addnodes.desc("", signature, objtype=kind)
    plain_types(signature)
    assert signature.astext() == shown


def test_a_name_in_a_heading_breaks_after_a_dot_and_a_long_part_of_it_between_its_words():
    code = '<code><span class="pre">mla_edu.serving.results_of_SomeLongBenchmark()</span></code>'
    broken = code
    for part in ("edu.", "serving.", "results_", "of_", "Some", "Long"):
        broken = broken.replace(part, f"{part}<wbr/>")
    assert breakable(f'<h2 id="a">{code}</h2><p>{code}</p>') == f'<h2 id="a">{broken}</h2><p>{code}</p>'
    assert breakable(f'<nav id="pst-page-toc-nav">{code}</nav>') == f'<nav id="pst-page-toc-nav">{broken}</nav>'


def test_no_formula_of_the_reference_stands_as_text(html):
    page = (html / "book" / "api" / "cost.html").read_text(encoding="utf-8")
    assert page.count('class="katex"') > 20
    assert not re.search(r"\bd_h", re.sub(r"<annotation.*?</annotation>", "", page))
