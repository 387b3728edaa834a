"""Files of prompts: one a line, or JSON lines."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from mla_edu.files import each_once, read_text
from mla_edu.serving.request import SamplingParams


class Prompt(SamplingParams):
    """A prompt and how its tokens are chosen: what a JSON line holds."""

    prompt: Annotated[str, Field(strict=True, min_length=1)]  # how the text begins


def read_prompts(path: str | Path, params: SamplingParams) -> list[Prompt]:
    """The prompts of a file, empty lines left out; in a ``.jsonl`` each line is an object.

    Args:
        path: of the file.
        params: of all prompts; an object can have its own values.

    Raises:
        OSError: there is no such file.
        ValueError: it is no text, has no prompt, or a line is bad; names the file and the line.
    """
    lines = read_text(path, "one prompt a line").splitlines()
    shared, found = params.model_dump(), []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = (
                json.loads(line, object_pairs_hook=each_once) if Path(path).suffix == ".jsonl" else {"prompt": line}
            )
            if not isinstance(values, dict):
                raise ValueError(f'{line[:40]!r} is no object; expected one such as {{"prompt": "def "}}')
            found.append(Prompt(**shared | values))
        except (ValueError, RecursionError) as error:
            kind = 'expected an object such as {"prompt": "def "}: ' if isinstance(error, json.JSONDecodeError) else ""
            raise ValueError(f"{path}, line {number}: {kind}{error}") from None
    if not found:
        raise ValueError(f"{path} has no prompt; expected one a line")
    return found
