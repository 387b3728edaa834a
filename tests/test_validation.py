"""Errors stay a line, whatever the value."""

import pytest
import torch

from mla_edu.config import GQAConfig
from mla_edu.cost import weight_bytes
from mla_edu.validation import check_device, check_flag, check_integer, readable, shown


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 10**400, 10**5000, list(range(10**5)), {i: i for i in range(10**4)}, [[[[[[[[[["deep"]]]]]]]]]]],
    ids=["long text", "large", "larger than Python writes", "long list", "large dict", "deep"],
)
def test_a_bad_value_is_shown_in_at_most_a_line(value):
    assert len(shown(value)) < 300
    with pytest.raises(ValueError, match=r"^size is .*; expected an integer from 1 to 9$") as caught:
        check_integer("size", value, 1, 9)
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError) as caught:
        GQAConfig(hidden_size=value, num_attention_heads=1, num_key_value_heads=1, head_dim=2)
    assert len(str(caught.value)) < 400 and "hidden_size" in str(caught.value)


def test_a_value_that_is_short_is_shown_as_it_is():
    for value in (None, "8", 3, [1, "a"], {"b": 1}, 1.5, True):
        assert shown(value) == repr(value)


@pytest.mark.parametrize("value", ["no", "false", 0, 1, None, []])
def test_only_true_and_false_are_flags(value):
    with pytest.raises(TypeError, match="validate is .*; expected True or False"):
        check_flag("validate", value)
    check_flag("validate", True)


def test_a_width_is_a_number_that_a_tensor_can_have():
    with pytest.raises(ValueError, match="head_dim is 1000.*; expected less than or equal to 9223372036854775807"):
        GQAConfig(hidden_size=8, num_attention_heads=1, num_key_value_heads=1, head_dim=10**400)


def test_a_model_is_a_name_or_a_spec():
    with pytest.raises(TypeError, match="model is a NoneType; expected a name of the registry or a ModelSpec"):
        weight_bytes(None)


def test_a_value_of_several_lines_is_shown_in_one():
    assert "\n" in repr(torch.zeros(2, 2)) and "\n" not in shown(torch.zeros(2, 2))


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "\u202egnp.json", "x" * 5000, "\udce9"])
def test_a_name_that_a_screen_would_obey_is_spelt_out(name):
    assert readable("été 😀/config.json") == "été 😀/config.json"
    said = readable(name)
    assert said.isprintable() and said.isascii() and len(said) < 300


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("nowhere", ValueError, "device is 'nowhere'; expected one that is there: Expected one of cpu, cuda"),
        ("cpu\n", ValueError, "device is 'cpu.n'; expected one that is there"),
        (-1, ValueError, "device is -1; expected one that is there"),
        (2**70, ValueError, "device is .*; expected one that is there"),
        (True, TypeError, "device is True; expected a torch.device or its name, such as 'cpu'"),
        (1.5, TypeError, "device is 1.5; expected a torch.device"),
    ],
)
def test_a_device_is_one_that_is_there(device, error, message):
    check_device(None)
    check_device("cpu")
    with pytest.raises(error, match=message):
        check_device(device)


def test_a_tag_that_is_none_is_told_in_the_words_of_the_others():
    with pytest.raises(ValueError, match="rope_scaling: rope_type is 'x'; expected one of 'linear', 'llama3'"):
        GQAConfig(
            hidden_size=8,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            rope_scaling={"rope_type": "x", "factor": 2.0},
        )
