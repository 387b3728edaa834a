"""Files of a user are read or refused, whatever they are."""

import json
import os

import pytest

from mla_edu.files import check_folder, open_file, parse_user_yaml, read_text
from mla_edu.hf.config_file import read_json_object
from mla_edu.models.config import read_mapping


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_is_read_as_windows_and_others_write_it(tmp_path, encoding):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "größe"}', encoding=encoding)
    assert read_json_object(path, "a config.json") == {"model_type": "größe"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xfe\xff", "is not a text in UTF-8; expected a log"),
        (b"GGUF\x03\0\0\0", "is not a text in UTF-8; expected a log"),
        ("{}".encode("utf-16-be"), "is not a text in UTF-8; expected a log"),
        (b"x" * 101, "has more than 100 bytes; expected a log"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data, message):
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(path, "a log", 100)


def test_a_file_is_not_read_beyond_the_limit(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(10**13)  # takes no room on the disk
    with pytest.raises(ValueError, match="has more than 67,108,864 bytes; expected a config.json"):
        read_text(path, "a config.json")


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (("pipe", "is no regular file"), (".", "is a folder")):
        with pytest.raises(ValueError, match=message):
            read_text(tmp_path / name, "a log")
    for name in ("loop", "nowhere", "x" * 5000, "a\0b", "nowhere/a"):
        with pytest.raises(FileNotFoundError, match="no such file; expected a log"):
            read_text(tmp_path / name, "a log")
    with pytest.raises(ValueError, match="/dev/zero is no regular file"):
        read_text("/dev/zero", "a log")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "is not valid JSON: nested too deep"),
        ('{"a":' * 200_000, "is not valid JSON: nested too deep"),
        ('{"a": %s}' % ("9" * 5000), "is not valid JSON: a number has 5000 digits"),
        ("", "is empty; expected a JSON object"),
        ("model: a", "is not valid JSON: Expecting value"),
        ("null", "holds null; expected a JSON object"),
        ("[]", "holds a list; expected a JSON object"),
        ('"x"', "holds a string; expected a JSON object"),
        ("true", "holds true or false; expected a JSON object"),
        ("1.5", "holds a number; expected a JSON object"),
    ],
)
def test_what_is_no_json_object_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json_object(path, "a config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ("a: " + "{a: " * 200_000, "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
        ("a: &b 1\nc: *b", "has an alias"),
        (f"a: {'9' * 5000}", "4300 digits"),
        ("a: 2026-13-45", "month must be in"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: 1\na: 2", "a is given twice"),
    ],
)
def test_yaml_of_a_user_is_an_answer_or_one_error(tmp_path, text, message):
    """In C such nesting ends the process."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_user_yaml(text)
    assert "\n" not in str(caught.value)
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml is not YAML: "):
        read_mapping(path)


def test_yaml_of_a_user_is_read():
    values = {"a": [1, 2.5, None, "x"], "b": {"c": True}}
    assert parse_user_yaml(json.dumps(values)) == values


@pytest.mark.parametrize("value", [None, 1, True, b"a", ["a"]])
def test_a_number_is_no_path_and_closes_no_open_file(value):
    with pytest.raises(TypeError, match="path is .*; expected a path"):
        read_text(value, "a text")
    os.fstat(1)  # still open


def test_an_error_while_reading_names_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("x")
    with pytest.raises(OSError, match=r"Input/output error: '.*a'"), open_file(path, "a text"):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("text", ["1e-3", "-2E5", "+1.5e3", "3.e+2", "1.0e-3", "7", "-0.5", ".5"])
def test_a_number_of_a_user_s_yaml_is_what_python_reads(text):
    (value,) = parse_user_yaml(f"a: {text}").values()
    assert value == float(text) and isinstance(value, int) == (text == "7")


@pytest.mark.parametrize("text", ["e3", "1e", "1e-3x", "0x1e+3", "v1e3"])
def test_a_word_of_a_user_s_yaml_is_no_number(text):
    assert parse_user_yaml(f"a: {text}") == {"a": text}


def test_a_file_in_place_of_its_folder_is_a_hint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    check_folder("folder", tmp_path, "a folder")
    with pytest.raises(ValueError, match=f"config.json is no folder; expected a checkpoint, such as {tmp_path}$"):
        check_folder("folder", tmp_path / "config.json", "a checkpoint")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mla.yaml").write_text("")
    with pytest.raises(ValueError, match="mla.yaml is no folder; expected a checkpoint$"):
        check_folder("folder", tmp_path / "configs" / "mla.yaml", "a checkpoint")
    with pytest.raises(FileNotFoundError, match="x+.*: no such folder; expected a checkpoint"):
        check_folder("folder", "x" * 5000, "a checkpoint")
    with pytest.raises(TypeError, match="folder is 5; expected a path"):
        check_folder("folder", 5, "a checkpoint")
