"""What makes the pages light: no style rule without a use, icons that are drawn, formulas rendered beforehand."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "book" / "_ext"))

import access  # noqa: E402
import finish  # noqa: E402
import formulas  # noqa: E402
import icons  # noqa: E402
import style_sheets  # noqa: E402

# Style sheets


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".a{x:1}.b{x:2}", ".a{x:1}\n"),
        (".a, p > .b, q{x:1}", ".a,q{x:1}\n"),
        ("#a.b{x:1}#a{x:2}", "#a{x:2}\n"),
        ("p:not(.b){x:1} :is(.b, .a) i{x:2}", "p:not(.b){x:1}\n:is(.b, .a) i{x:2}\n"),
        (".a[href='.b']{x:1}", ".a[href='.b']{x:1}\n"),
        ("@media (x){.b{x:1}}@media (y){.a{x:1}.b{x:2}}", "@media (y){\n.a{x:1}\n}\n"),
        ("@keyframes k{from{x:1}to{x:2}}.b{x:1}", "@keyframes k{from{x:1}to{x:2}}\n"),
        (
            '.a{x:url(data:x;y,.b{)}/* .a{} */.a::after{content:"}"}',
            '.a{x:url(data:x;y,.b{)}\n.a::after{content:"}"}\n',
        ),
        ('.a{font:var(--fa-font-solid);content:"x"}', ""),
    ],
)
def test_rules_stay_where_a_page_can_use_them(css, kept):
    assert style_sheets.reduce([("_static/x.css", css)], {"a"}, "") == kept


def test_custom_properties_stay_where_something_reads_them():
    css = ":root{--a:1;--b:var(--c);--c:2;--d:var(--e);--e:3;--f:4}p{x:var(--a);y:var(--b)}"
    reduced = style_sheets.reduce([("_static/x.css", css)], set(), 'style="x: var(--f)"')
    assert reduced == ":root{--a:1;--b:var(--c);--c:2;--f:4}\np{x:var(--a);y:var(--b)}\n"


def test_fonts_stay_where_a_rule_names_them():
    faces = '@font-face{font-family:"One";src:url(f/1.woff2)}@font-face{font-family:"Two";src:url(f/2.woff2)}'
    reduced = style_sheets.reduce([("_static/styles/x.css", faces + "p{font-family:Two}")], set(), "")
    assert reduced == '@font-face{font-family:"Two";src:url(styles/f/2.woff2)}\np{font-family:Two}\n'


# Pages

PAGE = """<html data-theme="auto"><head><meta name="viewport" content="a" /><meta name="viewport" content="b">
<link rel="stylesheet" href="../_static/one.css?v=1" /><link href="../_static/two.css" rel="stylesheet">
<script src="../_static/one.js"></script><script src="../_static/widget-host.js"></script>
<script>let x = 1;</script><script>let x = 1;</script>
<script type="application/vnd.jupyter.widget-state+json">{"state": 1}</script>
</head><body>text{}</body></html>"""


def test_page_loads_one_style_sheet_and_one_script():
    page = finish.tidy(finish.load_less("book/x.html", PAGE, "_static/all.css", "_static/all.js"))
    assert finish.LINK.findall(page) == ["../_static/all.css"]
    assert finish.SOURCE.findall(page) == ["../_static/all.js", "../_static/widget-host.js"]
    assert page.count("let x = 1") == page.count("viewport") == 1
    assert page.index("</head>") < page.index("widget-state") < page.index("</body>")
    assert 'data-theme="light"' in page
    formula = PAGE.replace("{}", '<span class="katex">x</span>')
    page = finish.load_less("book/x.html", formula, "_static/all.css", "_static/all.js")
    assert finish.LINK.findall(page) == ["../_static/all.css", "../_static/katex/katex.css"]


def test_assets_come_in_an_order_that_each_page_follows():
    pages = {
        "x.html": '<script src="_static/a.js"></script><script src="_static/c.js"></script>',
        "book/y.html": '<script src="../_static/a.js"></script><script src="../_static/b.js"></script>'
        '<script src="../_static/c.js"></script>',
    }
    assert finish.assets(pages, finish.SOURCE) == ["_static/a.js", "_static/b.js", "_static/c.js"]


def test_icons_are_drawn_and_an_unknown_one_is_an_error():
    drawn = icons.draw_icons('<i class="theme-switch fa-solid fa-moon   fa-lg" data-mode="dark" title="Dark"></i>')
    assert drawn.startswith('<svg class="mla-icon theme-switch fa-solid fa-moon fa-lg" data-mode="dark" viewBox=')
    assert 'aria-hidden="true"' in drawn
    with pytest.raises(ValueError):
        icons.draw_icons('<i class="fas fa-dragon"></i>')


def test_what_unfolds_in_the_sidebar_has_a_name():
    page = '<a class="reference internal" href="x.html">The package</a><details><summary><span></span></summary>'
    assert '<summary aria-label="Pages of: The package">' in access.mend(page)
    assert access.mend('<th class="head"></th><th>x</th>') == '<td class="head"></td><th>x</th>'


# Formulas


@pytest.fixture
def render():
    renderer = formulas.Renderer()
    yield renderer
    renderer.stop()


def test_formula_is_html_for_the_eye_and_mathml_for_the_ear(render):
    html = render(r"\frac{a}{b}", display=True)
    assert html.startswith('<span class="katex-display">')
    assert "<mfrac>" in html
    assert '<span class="katex-html" aria-hidden="true">' in html
    assert not render("x", display=False).startswith('<span class="katex-display">')


@pytest.mark.parametrize("tex", [r"\frac{a", r"\unknown", "a % b", "\N{SNOWMAN}"])
def test_formula_that_cannot_be_rendered_is_refused(render, tex):
    with pytest.raises(ValueError):
        render(tex, display=False)
    assert "mrow" in render("x", display=False)


def test_lines_of_a_displayed_formula_are_aligned(render):
    assert formulas.lines("a = b") == "a = b"
    assert formulas.lines("a &= b \\\\ c &= d") == r"\begin{split}a &= b \\ c &= d\end{split}"
    assert formulas.lines("a\n\nb") == r"\begin{aligned}a\\b\end{aligned}"
    assert "mtable" in render(formulas.lines("a\n\nb \\\\ c"), display=True)


def test_style_sheet_names_the_fonts_that_are_copied():
    css = formulas.style_sheet((formulas.KATEX / "dist" / "katex.min.css").read_text(encoding="utf-8"))
    assert css.count("@font-face") == css.count(".woff2") == css.count("url(") == len(formulas.FONTS)
