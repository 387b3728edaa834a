"""Text to tokens and back: a checkpoint's own tokenizer, or bytes."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mla_edu.files import check_path
from mla_edu.hf.config_file import read_json_object
from mla_edu.validation import check_integer


class Tokens:
    """The tokens of a model that lies in a folder.

    Read from ``tokenizer.json``; a model of 256 tokens without that file reads and writes bytes. Where
    ``tokenizer_config.json`` asks for ``add_bos_token`` and the tokenizer puts none, ``bos_token_id`` of
    ``config.json`` goes in front.

    Args:
        folder: of the model.
        vocab_size: of the model.

    Attributes:
        stop_tokens: that end a text, as ``config.json`` names them.

    Raises:
        TypeError: ``folder`` is no path.
        ValueError: there is no tokenizer, or it is not one, or a token that ends a text is no integer.
        ImportError: ``tokenizers`` is not installed.
    """

    def __init__(self, folder: str | Path, vocab_size: int):
        check_path("folder", folder)
        path = Path(folder) / "tokenizer.json"
        self._tokenizer: Any = None
        if path.is_file():
            try:
                from tokenizers import Tokenizer
            except ImportError:
                raise ImportError("tokenizer.json needs tokenizers: pip install 'mla-edu[hf]'") from None
            try:
                self._tokenizer = Tokenizer.from_file(str(path))
            except Exception as error:  # the class that tokenizers raises
                raise ValueError(f"{path} is not a tokenizer: {error}") from None
        elif vocab_size != 256:
            raise ValueError(f"{path}: no such file; expected it, since the model has {vocab_size:,} tokens, not bytes")
        config = read_json_object(Path(folder) / "config.json", "a config.json")
        ends, options = config.get("eos_token_id"), Path(folder) / "tokenizer_config.json"
        for end in ends if isinstance(ends, list) else [] if ends is None else [ends]:
            check_integer(f"{folder}: eos_token_id", end, 0)
        adds = options.is_file() and read_json_object(options, "a tokenizer_config.json").get("add_bos_token")
        first = config.get("bos_token_id")
        self._first: list[int] = [first] if adds is True and isinstance(first, int) else []
        self.stop_tokens = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that its tokenizer puts in front."""
        if self._tokenizer is None:
            return list(text.encode())
        tokens = list(self._tokenizer.encode(text).ids)
        return tokens if tokens[:1] == self._first else self._first + tokens

    def stream(self) -> Callable[[int], str]:
        """A function that takes token after token and returns the letters that are complete with it."""
        if self._tokenizer is None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            return lambda token: decoder.decode(bytes([token]))
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._tokenizer, token) or ""
