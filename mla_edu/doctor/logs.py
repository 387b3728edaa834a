"""Memory lines as llama.cpp, ollama, vLLM, SGLang and TensorRT-LLM print them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mla_edu.doctor.figures import Figure, parse_figure
from mla_edu.files import check_path, read_text

LONGEST = 2**28  # bytes of a log
VLLM_BLOCK = 16  # tokens, unless --block-size says otherwise
SIZE = r"(\d[\d,.]*\s?[KMGT]i?B)"


@dataclass(frozen=True)
class Reading:
    """What a log says of a cache."""

    tool: str
    figure: Figure
    tokens: int | None  # for which that is the room; None: the log does not say


def read_log(source: str | Path) -> Reading:
    """The size of the cache in a log, and the tokens that it is for.

    llama.cpp and ollama print it for each device, and all devices are added. vLLM, SGLang and TensorRT-LLM print what
    one GPU has. Of lines that come again, the last counts.

    Args:
        source: the file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        TypeError: ``source`` is not a path.
        ValueError: it is no text, or holds no line that is known.
    """
    check_path("source", source)
    text = read_text(source, "a log", LONGEST)
    for read in READERS:
        if reading := read(text):
            return reading
    names = "llama.cpp, ollama, vLLM, SGLang or TensorRT-LLM"
    raise ValueError(f"{source} has no line about the size of a cache; expected one as {names} print it")


def _last(pattern: str, text: str) -> re.Match[str] | None:
    found = list(re.finditer(pattern, text))
    return found[-1] if found else None


def _number(pattern: str, text: str) -> int | None:
    match = _last(pattern, text)
    return None if match is None else int(match[1].replace(",", ""))


def _added(sizes: list[str]) -> Figure:
    figures = [parse_figure(each, "a size in the log") for each in sizes]
    return Figure(sum(each.bytes for each in figures), sum(each.rounding for each in figures))


def _llama_cpp(text: str) -> Reading | None:
    """Buffers where they are printed, else the total of each cache: a model with windows has two."""
    buffers = dict(re.findall(rf"(\S+) KV buffer size = +{SIZE}", text))
    totals = re.findall(rf"llama_kv_cache\w*: +size = +{SIZE} \( *(\d+) cells", text)
    old = _last(rf"KV self size += +{SIZE}", text)
    if buffers:
        figure = _added(list(buffers.values()))
    elif totals:
        figure = _added([size for size, _ in totals])
    elif old:
        figure = _added([old[1]])
    else:
        return None
    cells = max((int(count) for _, count in totals), default=None)
    tokens = cells or _number(r"\bkv_size = (\d+)", text) or _number(r"n_ctx += (\d+)", text)
    return Reading("llama.cpp", figure, tokens)


def _ollama(text: str) -> Reading | None:
    devices = dict(re.findall(rf'msg="kv cache" device=(\S+) size="{SIZE}"', text))
    if not devices:
        return None
    tokens = _number(r"(?:KvSize:|--ctx-size |OLLAMA_CONTEXT_LENGTH[:=])([1-9]\d*)", text)
    return Reading("ollama", _added(list(devices.values())), tokens)


def _vllm(text: str) -> Reading | None:
    needed = _last(rf"max seq len \((\d+)\)[^\n]*?{SIZE} KV cache is needed", text)
    if needed:
        return Reading("vLLM", _added([needed[2]]), int(needed[1]))
    size = _last(rf"Available KV cache memory: {SIZE}", text) or _last(rf"kv_cache_size={SIZE}", text)
    if size is None:
        return None
    tokens = _number(r"GPU KV cache size: ([\d,]+) tokens", text)
    blocks = _number(r"# GPU blocks: (\d+)", text)
    length = _number(r"block_size=(\d+)", text) or VLLM_BLOCK
    return Reading("vLLM", _added([size[1]]), tokens or (blocks and blocks * length))


def _sglang(text: str) -> Reading | None:
    """Its GB are GiB: it divides by 2**30."""
    line = _last(r"KV Cache is allocated\.[^\n]*#tokens: (\d+)([^\n]*)", text)
    if line is None:
        return None
    sizes = re.findall(r"(?:K|V|KV) size: ([\d.]+) GB", line[2])
    return Reading("SGLang", _added([f"{size} GiB" for size in sizes]), int(line[1])) if sizes else None


def _tensorrt_llm(text: str) -> Reading | None:
    line = _last(rf"Allocated {SIZE} for max tokens in paged KV cache \((\d+)\)", text)
    return line and Reading("TensorRT-LLM", _added([line[1]]), int(line[2]))


READERS: tuple[Callable[[str], Reading | None], ...] = (_llama_cpp, _ollama, _vllm, _sglang, _tensorrt_llm)
