"""Papers of the same authors and year: 2024a, 2024b, in the order of titles.

The bibliography is in the order of authors, be they persons or not.
"""

from collections import defaultdict

from pybtex.plugin import register_plugin
from pybtex.style.formatting.alpha import Style
from pybtex.style.sorting.author_year_title import SortingStyle


class ByName(SortingStyle):
    """By names as they are read: braces, which keep that of a team whole, sort last."""

    def person_key(self, person):
        return super().person_key(person).replace("{", "").replace("}", "")


class Bibliography(Style):
    """Works as the style "alpha" writes them, in this order."""

    default_sorting_style = "by_name"


def reads(entry):
    """A citation as it reads: two authors, or the first of more, and the year."""
    names = [" ".join(person.last_names) for person in entry.persons["author"]]
    shown = names if len(names) < 3 else [names[0], "and others"]
    return (*shown, entry.fields["year"])


def tell_apart(entries):
    """Give each of several years that would read alike a letter of its own."""
    alike = defaultdict(list)
    for entry in entries:
        alike[reads(entry)].append(entry)
    for found in alike.values():
        if len(found) > 1:
            found.sort(key=lambda entry: entry.fields["title"].strip("{").lower())
            for place, entry in enumerate(found):
                entry.fields["year"] += chr(ord("a") + place)


def read_years(app, env, docnames):
    tell_apart(env.get_domain("cite").bibdata.data.entries.values())


def register():
    register_plugin("pybtex.style.sorting", "by_name", ByName)
    register_plugin("pybtex.style.formatting", "by_name", Bibliography)


def setup(app):
    register()
    app.connect("env-before-read-docs", read_years)
    return {"version": "1", "parallel_read_safe": True}
