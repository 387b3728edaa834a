"""What all widgets have in common: settings that are checked, words where no widget runs, and no need of torch."""

import json
import subprocess
import sys

import pytest

from mla_edu.bench.results import layer_steps
from mla_edu.book import widgets
from mla_edu.book.widgets.parts import Number, Widget


class Doubler(Widget):
    """Twice a number."""

    _esm = "export default { render() {} };"
    number = Number(2, 1000)

    def __init__(self, number=3):
        super().__init__({"factor": 2}, number=number)

    @property
    def quantities(self):
        return {"double": 2 * self.number}

    def text(self):
        return f"<{self.quantities['double']}>"


def test_the_browser_gets_the_data_and_the_limits():
    assert json.loads(Doubler().data) == {"factor": 2, "limits": {"number": [2, 1000]}}


@pytest.mark.parametrize("value", [1, 1001, True, 2.0, "3", None])
def test_numbers_are_checked_when_they_are_set(value):
    doubler = Doubler()
    with pytest.raises(ValueError, match=f"number is {value!r}; expected an integer from 2 to 1,000"):
        doubler.number = value
    assert doubler.number == 3


def test_viewers_that_run_no_widget_get_the_answer_as_text():
    data, _ = Doubler(4)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert (data["text/plain"], data["text/html"]) == ("<8>", "<pre>&lt;8&gt;</pre>")


def test_every_widget_has_one_answer():
    for name in widgets.__all__:
        kind = getattr(widgets, name)
        made = kind([], layer_steps()) if name == "MeasuredResults" else kind()
        found = made.quantities
        assert found and isinstance(found if isinstance(found, dict) else found[0], dict)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from mla_edu.book.widgets import KVCacheExplorer"
    result = run(f"{code}; print(KVCacheExplorer().quantities[0]['bytes_total'])")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 0


def test_missing_anywidget_names_the_extra():
    result = run("import sys; sys.modules['anywidget'] = None; import mla_edu.book.widgets")
    assert "ImportError: mla_edu.book.widgets needs anywidget: pip install 'mla-edu[widgets]'" in result.stderr
