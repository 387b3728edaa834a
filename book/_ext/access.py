"""What the theme's markup lacks for those who do not see the page."""

import re

CHANGES = [
    # The name of a control is the text on it.
    (
        r'(<button class="btn search-button-field[^>]*?)'
        r' title="Search" aria-label="Search"',
        r"\1",
    ),
    (r' (?:data-bs-placement|data-bs-title)="[^"]*"| data-bs-toggle="tooltip"', ""),
    (r'aria-label="Color mode"', 'aria-label="Color mode" title="Color mode"'),
    (r'(<summary[^>]*?) aria-label="Toggle hidden content"', r"\1"),
    # The sidebar is a landmark; what unfolds in it has a name.
    (
        r'<div id="pst-primary-sidebar"',
        '<div id="pst-primary-sidebar" role="complementary" aria-label="Book"',
    ),
    (
        r'(<a class="[^"]*reference internal[^>]*>([^<]*)</a><details[^>]*>)<summary>',
        r'\1<summary aria-label="Pages of: \2">',
    ),
    # A list of references is a list of paragraphs.
    (r' role="doc-biblioentry"', ""),
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    # A header that heads nothing is a cell.
    (r"<th\b([^>]*)>\s*(?:<p></p>)?\s*</th>", r"<td\1></td>"),
]
SOURCES = "<h1>All modules for which code is available</h1>"


def parameters(found):
    """The parameters of a signature, which Sphinx writes as definitions of nothing."""
    lines = found[1].replace("<dd>", "<div>").replace("</dd>", "</div>")
    return f'<div class="mla-parameters">{lines}</div>'


def mend(page):
    """A page with the names and roles that it lacks."""
    for pattern, replacement in CHANGES:
        page = re.sub(pattern, replacement, page)
    page = re.sub(r"<dl>\s*(<dd>.*?)</dl>", parameters, page, flags=re.S)
    if SOURCES in page:  # there a list stands beside the item that it belongs to
        before, heading, index = page.partition(SOURCES)
        index, end, after = index.partition("</article>")
        index = re.sub(r"</li>\s*<ul>", "<ul>", index)
        index = re.sub(r"</ul>\s*(?=<li>|</ul>)", "</ul></li>", index)
        page = before + heading + index + end + after
    return page
