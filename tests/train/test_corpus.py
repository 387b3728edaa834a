import hashlib
import os

import pytest

from mla_edu.train.corpus import standard_library, text_files


@pytest.fixture
def library(tmp_path):
    """Forty files that each name themselves, and two that do not count."""
    for i in range(40):
        (tmp_path / f"module_{i}.py").write_text(f"<{i}>")
    for folder in ("test", "site-packages"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "other.py").write_text("<other>")
    return tmp_path


def text(tokens):
    return bytes(tokens.tolist()).decode()


def test_every_file_is_on_one_side(library):
    corpus = standard_library(library)
    parts = [text(part).strip("<>").split("><") for part in (corpus.train, corpus.validation)]
    assert corpus.num_files == 40
    assert sorted(parts[0] + parts[1], key=int) == [str(i) for i in range(40)]
    assert 0 < len(parts[1]) < len(parts[0])


def test_split_follows_the_name_alone(library):
    before = text(standard_library(library).validation)
    (library / "one_more.py").write_text("<99>")
    after = text(standard_library(library).validation)
    assert after.replace("<99>", "") == before


def test_hash_is_of_all_bytes_in_the_order_of_names(library):
    names = sorted(path.name for path in library.glob("*.py"))
    expected = hashlib.sha256(b"".join((library / name).read_bytes() for name in names)).hexdigest()
    assert standard_library(library).sha256 == expected


def test_folder_without_a_library_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds 0 .py files; expected Python's standard library"):
        standard_library(tmp_path)


def test_running_python_has_a_library_large_enough_to_learn_from():
    corpus = standard_library()
    assert len(corpus.train) > 3_000_000
    assert 0.03 < len(corpus.validation) / len(corpus.train) < 0.3


def test_the_split_of_a_folder_moves_with_it(library, tmp_path):
    before = text_files([library])
    moved = library.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    after = text_files([moved])
    assert text(after.validation) == text(before.validation) and after.sha256 == before.sha256


def test_files_of_one_name_in_two_folders_both_count(library, tmp_path):
    assert text_files([library, str(library)]).num_files == 2 * text_files([library]).num_files


def test_a_pipe_is_no_text_and_is_not_waited_for(library):
    os.mkfifo(library / "pipe")
    for place in (library / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="text: .* is a device or a pipe; expected a file or a folder"):
            text_files([place])
    assert text_files([library]).num_files == 42
