"""Files of prompts: what each line asks for, and a bad line named."""

import pytest

from mla_edu.serving import SamplingParams
from mla_edu.serving.prompts import read_prompts

SHARED = SamplingParams(max_new_tokens=9, temperature=0.5)


def test_a_line_is_a_prompt_and_an_object_may_have_its_own_values(tmp_path):
    (tmp_path / "a.txt").write_text("one {\n\n  two \n")
    assert [one.prompt for one in read_prompts(tmp_path / "a.txt", SHARED)] == ["one {", "  two "]
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "max_new_tokens": 3, "seed": 1}')
    found = read_prompts(tmp_path / "a.jsonl", SHARED)
    assert [(one.prompt, one.max_new_tokens, one.temperature, one.seed) for one in found] == [
        ("one", 9, 0.5, None),
        ("two", 3, 0.5, 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n\n{"prompt": ', "line 3: "),
        ('{"prompt": "a"}\n["b"]', "line 2: .* is no object"),
        ('{"prompt": ""}', "line 1: Prompt: prompt is ''"),
        ('{"prompt": "a", "max_new_tokens": 0}', "line 1: Prompt: max_new_tokens is 0; expected greater than 0"),
        ("\n", "has no prompt; expected one a line"),
    ],
)
def test_a_bad_line_is_named(text, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "a.jsonl", SHARED)
