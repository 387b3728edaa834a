"""One meaning for each letter: the symbols of all formulas are those of the table of notation."""

from collections import Counter

import pytest

from execute_notebooks import chapters
from symbols import notation, symbols_in, uses

INDICES = frozenset("tsij")


def test_each_symbol_of_a_formula_has_a_row():
    rows, _ = notation()
    pages = {row.symbol: {row.page} if row.page else {path.stem for path in chapters()} for row in rows}
    unknown = {symbol: used - pages.get(symbol, set()) for symbol, used in uses().items()}
    assert {symbol: used for symbol, used in unknown.items() if used} == {}


def test_each_row_has_a_symbol_of_its_own():
    rows, _ = notation()
    assert len(rows) > 30
    assert [symbol for symbol, count in Counter(row.symbol for row in rows).items() if count > 1] == []


def test_symbols_of_one_page_are_used_there():
    rows, _ = notation()
    used = uses()
    assert [row for row in rows if row.page and used.get(row.symbol) != {row.page}] == []


@pytest.mark.parametrize(
    ("formula", "symbols"),
    [
        ("d_c + d_h^R", ["d_c", "d_h^{R}"]),
        ("c_t^{KV} = W^{DKV} h_t", ["t", "c^{KV}", "W^{DKV}", "t", "h"]),
        (r"W_i^{UK\,\top} q_{t,i}", ["i", "W^{UK}", "t", "i", "q"]),
        (r"R_{s-t}^\top", ["s", "t", "R"]),
        ("d_c'", ["d_c'"]),
        (r"e^{x_j - m}", ["j", "x", "m", "e"]),
        (r"\sum_{j'} \exp(a_{j'})", ["j'", "j'", "a"]),
        (r"\frac{1}{\sqrt{d_h}} \text{ per head}", ["d_h"]),
        (r"10000^{-2j/d}", ["j", "d"]),
    ],
)
def test_symbols_are_read_with_the_scripts_that_name_them(formula, symbols):
    assert sorted(symbols_in(formula, INDICES)) == sorted(symbols)
