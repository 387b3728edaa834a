"""Published statements put on trial: a ruling for each, and one table of all, made from the rulings.

A verdict is not written down but follows from the cases that were computed: all hold, none holds, or some do. Who
chooses the cases has a hand in it, so a ruling names them.

In a statement, a finding and a case, names of code stand between backticks, and formulas between dollars: ``$W_UK^T$``.
"""

import html
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from mla_edu.book.figures import KEY, NEUTRAL, QUERY, ROPE, THEMED

VERDICTS = {"right": "✓", "wrong": "✗", "true under a condition": "◐", "read, not computed": "§"}
_COLOURS = dict(zip(VERDICTS, (ROPE, KEY, QUERY, NEUTRAL), strict=True))
# The sign stays beside the word: a colour never says anything alone. The lists stay in sight, below a page's header.
_STYLE = """\
.mla-docket .mla-tally { display: flex; gap: 2px; height: 0.9em; margin: 0.6em 0; }
.mla-docket .mla-tally span { background: var(--verdict); forced-color-adjust: none; }
.mla-docket .mla-counts { display: flex; flex-wrap: wrap; gap: 0.2em 1.6em; list-style: none; margin: 0; padding: 0; }
.mla-docket b {
  display: inline-block;
  min-width: 1.7em;
  border: 2px solid var(--verdict);
  border-radius: 3px;
  line-height: 1.3;
  text-align: center;
}
.mla-docket .mla-filters {
  position: sticky;
  top: 0;
  z-index: 1;
  padding: 0.9em 0;
  border-bottom: 1px solid rgb(128 128 128 / 0.35);
  background: var(--pst-color-background, Canvas);
}
.bd-article .mla-docket .mla-filters { top: 3rem; }
.cell_output:has(.mla-docket) { overflow: visible; }
.mla-docket label { margin-right: 1.5em; }
.mla-docket select {
  height: 1.9rem;
  max-width: 100%;
  padding: 0 0.1rem;
  border: 0;
  border-bottom: 1px solid var(--pst-color-text-muted, GrayText);
  border-radius: 0;
  background: var(--pst-color-background, var(--jp-layout-color0, Canvas));
  color: inherit;
  font: 400 0.88rem var(--mla-sans, sans-serif);
}
.mla-docket { font-size: 0.88em; line-height: 1.4; }
.mla-docket table { width: 100%; border-collapse: collapse; margin-top: 0.8em; }
.mla-docket :is(th, td) { text-align: left; vertical-align: top; padding: 0.35em 0.7em 0.35em 0; }
.mla-docket td:nth-child(2) { min-width: 7.5em; }
.mla-docket .mla-cases { margin: 0.1em 0 0; color: var(--pst-color-text-muted, GrayText); }
.mla-docket td { border-top: 1px solid rgb(128 128 128 / 0.35); }
.mla-ruling { border-left: 3px solid var(--verdict, rgb(128 128 128 / 0.5)); padding-left: 0.9em; margin: 0.6em 0; }
.mla-ruling p { margin: 0.2em 0; }
@media (max-width: 600px) {
  .mla-docket label { display: grid; grid-template-columns: 4em 1fr; align-items: center; margin: 0 0 0.4em; }
  .mla-docket thead { display: none; }
  .mla-docket :is(tr, td) { display: block; }
  .mla-docket td { border: 0; padding: 0; }
  .mla-docket tr { border-top: 1px solid rgb(128 128 128 / 0.35); padding: 0.5em 0; }
}
""" + "\n".join(f'[data-verdict="{name}"] {{ --verdict: {THEMED[colour]}; }}' for name, colour in _COLOURS.items())

# On a page the choice stands in the address; in a notebook the script finds no table and does nothing.
_SCRIPT = """\
for (const list of document.currentScript?.closest(".mla-docket")?.querySelectorAll("select") ?? []) {
  const wanted = new URLSearchParams(location.search).get(list.dataset.filter);
  if ([...list.options].some(({ value }) => value === wanted)) list.value = wanted;
  list.addEventListener("change", () => {
    const query = new URLSearchParams(location.search);
    if (list.selectedIndex) query.set(list.dataset.filter, list.value);
    else query.delete(list.dataset.filter);
    const text = query.toString();
    history.replaceState(history.state, "", `${location.pathname}${text && `?${text}`}${location.hash}`);
  });
}"""

MOST_CASES = 3  # that a row of the table names on each side; one more is named rather than counted
_MARKED = re.compile(r"`([^`]+)`|\$([^$]+)\$")
_PIECE = re.compile(_MARKED.pattern + r"|\d[\d.,]*(?:e-\d+| [kMG]i?B\b)")
_LETTER = re.compile(r"(?<![&A-Za-z])([A-Za-z]+)(?:_([A-Za-z]+))?('?)(?:\^([A-Za-z]+))?")


def _plain(text: str) -> str:
    """A text without its marks."""
    return _MARKED.sub(lambda mark: mark[1] or mark[2], text)


def _html(text: str) -> str:
    """A text with its names of code and its formulas set as such; a number and its unit stay on one line."""

    def letter(found: re.Match[str]) -> str:
        base, below, prime, above = found.groups()
        low, high = f"<sub>{below}</sub>" if below else "", f"<sup>{above}</sup>" if above else ""
        return f"<i>{base}</i>{low}{'′' if prime else ''}{high}"

    def piece(found: re.Match[str]) -> str:
        code, formula = found.groups()
        if code:
            return f"<code>{code}</code>"
        return f'<span style="white-space: nowrap">{_LETTER.sub(letter, formula) if formula else found[0]}</span>'

    return _PIECE.sub(piece, html.escape(text, quote=False))


def _listed(cases: tuple[str, ...]) -> str:
    """Cases in a few words: of a long list the first, and how many more there are."""
    few = cases if len(cases) <= MOST_CASES + 1 else (*cases[:MOST_CASES], f"{len(cases) - MOST_CASES} more")
    return "; ".join(few)


@dataclass(frozen=True)
class Ruling:
    """What became of one statement."""

    anchor: str  # the statement's section on the page, after "claim-"
    topic: str
    statement: str  # in the words of its source
    verdict: str  # one of VERDICTS
    finding: str  # what was computed or read, in a sentence without its full stop
    holds: tuple[str, ...] = ()  # cases in which the statement is true
    fails: tuple[str, ...] = ()  # cases in which it is not
    source: str | None = None  # where the finding was read, if it was not computed
    universal: bool = False  # whether the statement speaks of all cases, so that one which fails makes it wrong

    @property
    def _notes(self) -> list[str]:
        notes = {"Holds": "; ".join(self.holds), "Fails": "; ".join(self.fails), "Source": self.source}
        lines = [f"{label}: {text}." for label, text in notes.items() if text]
        told = self.universal and self.verdict == "wrong" and self.holds
        return [*lines, "Said of all cases: one that fails makes it wrong."] if told else lines

    @property
    def _row(self) -> str:
        """The finding and the cases, as a cell of the table."""
        sides = {"Holds": self.holds, "Fails": self.fails}
        cases = " ".join(f"{label}: {_html(_listed(side))}." for label, side in sides.items() if side)
        finding = f'<span class="mla-finding">{_html(self.finding)}</span>'
        return finding + (f'<p class="mla-cases">{cases}</p>' if cases else "")

    def __repr__(self) -> str:
        return _plain("\n".join([f"{VERDICTS[self.verdict]} {self.verdict}: {self.finding}.", *self._notes]))

    def _repr_html_(self) -> str:
        verdict = f"<strong>{VERDICTS[self.verdict]} {self.verdict}:</strong> {_html(self.finding)}."
        lines = "".join(f"<p>{line}</p>" for line in [verdict, *map(_html, self._notes)])
        return f'<div class="mla-ruling" data-verdict="{self.verdict}">{lines}</div>'


class Docket:
    """The rulings of a page, in the order in which they were made.

    Attributes:
        rulings: by anchor. Hearing a statement again replaces its ruling.
    """

    def __init__(self) -> None:
        self.rulings: dict[str, Ruling] = {}

    def rule(
        self,
        anchor: str,
        topic: str,
        statement: str,
        holds: bool | Mapping[str, bool],
        finding: str,
        *,
        universal: bool = False,
    ) -> Ruling:
        """Try a statement that can be computed.

        Args:
            anchor: lower-case words joined by hyphens; the statement's section has it after ``claim-``.
            topic: what the table can be filtered by.
            statement: in the words of its source.
            holds: whether the statement is true; or for each case in which it might be, whether it is true there.
                True in all of them is "right", in none "wrong", in some "true under a condition".
            finding: what was computed, in a sentence without its full stop.
            universal: whether the statement's own words speak of all cases ("all", "no", "always"). Then one case that
                fails makes it "wrong".

        Raises:
            TypeError: a case is neither True nor False.
            ValueError: ``anchor`` is not of that form, or there is no case.
        """
        cases = holds if isinstance(holds, Mapping) else {"": holds}
        for case, value in cases.items():
            if not isinstance(value, bool):
                raise TypeError(f"holds is {value!r}{f' for {case!r}' if case else ''}; expected True or False")
        if not cases:
            raise ValueError("holds is empty; expected at least one case")
        some = any(cases.values()) and not universal
        verdict = "right" if all(cases.values()) else "true under a condition" if some else "wrong"
        true = tuple(case for case, value in cases.items() if value and case)
        false = tuple(case for case, value in cases.items() if not value and case)
        ruling = Ruling(anchor, topic, statement, verdict, finding, holds=true, fails=false, universal=universal)
        return self._enter(ruling)

    def read(self, anchor: str, topic: str, statement: str, *, source: str, finding: str) -> Ruling:
        """Enter a statement that nothing here can compute, with what its source says. Arguments as in ``rule``.

        Raises:
            ValueError: ``anchor`` is not of that form, or ``source`` is empty.
        """
        if not source:
            raise ValueError("source is empty; expected where the finding was read")
        return self._enter(Ruling(anchor, topic, statement, "read, not computed", finding, source=source))

    def _enter(self, ruling: Ruling) -> Ruling:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", ruling.anchor):
            raise ValueError(f"anchor is {ruling.anchor!r}; expected lower-case words joined by hyphens")
        self.rulings[ruling.anchor] = ruling
        return ruling

    def count(self) -> dict[str, int]:
        """How many statements got each verdict."""
        counted = Counter(ruling.verdict for ruling in self.rulings.values())
        return {verdict: counted[verdict] for verdict in VERDICTS}

    def __repr__(self) -> str:
        rulings = self.rulings.values()
        return "\n".join(_plain(f"{VERDICTS[r.verdict]} {r.statement} | {r.finding}") for r in rulings)

    def _repr_html_(self) -> str:
        """All rulings as a table with links to their sections. Two lists filter it, by style sheet alone.

        On a page the choice stands in the address.
        """
        topics = Counter(ruling.topic for ruling in self.rulings.values())
        style, choices = _STYLE, ""
        for attribute, counted in (("verdict", self.count()), ("topic", topics)):
            options = [f"<option>all ({len(self.rulings)})</option>"]
            for value, number in counted.items():
                chosen, name = html.escape(value), f'"{value}"'
                options.append(f'<option value="{chosen}">{chosen} ({number})</option>')
                style += (
                    f"\n.mla-docket:has([data-filter={attribute}] [value={name}]:checked) "
                    f"tbody tr:not([data-{attribute}={name}]) {{ display: none; }}"
                )
            choices += f'<label>{attribute} <select data-filter="{attribute}">{"".join(options)}</select></label>\n'
        tally = "".join(
            f'<span data-verdict="{verdict}" style="flex: {number}"></span>' for verdict, number in self.count().items()
        )
        counts = "".join(
            f'<li data-verdict="{verdict}"><b>{VERDICTS[verdict]}</b> {number} {verdict}</li>'
            for verdict, number in self.count().items()
        )
        rows = "\n".join(
            f'<tr data-verdict="{r.verdict}" data-topic="{html.escape(r.topic)}">'
            f'<td><a href="#claim-{r.anchor}">{_html(r.statement)}</a></td>'
            f"<td><b>{VERDICTS[r.verdict]}</b> {r.verdict}</td><td>{r._row}</td></tr>"
            for r in self.rulings.values()
        )
        head = "<thead><tr><th>statement</th><th>verdict</th><th>what was found</th></tr></thead>"
        return (
            f'<div class="mla-docket"><style>{style}</style>\n'
            f'<p>{len(self.rulings)} statements</p>\n<div class="mla-tally" aria-hidden="true">{tally}</div>\n'
            f'<ul class="mla-counts">{counts}</ul>\n<div class="mla-filters">{choices}</div><script>{_SCRIPT}</script>'
            f"<table>{head}\n<tbody>\n{rows}\n</tbody></table></div>"
        )
