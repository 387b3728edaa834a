"""The mistakes that caches and calculators are known to make, each as a change to what is counted.

A change gives another model, or another way to weigh it; the counting itself is that of ``cost``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.cost import CacheFormat, NumberFormat, Parallelism, sequence_bytes, sequence_share
from mla_edu.hf import CacheGroup, ModelSpec

PAGES = (16, 64, 128, 256)  # tokens of a page
BLOCK_FORMATS = {"q8_0": 34, "q4_0": 18}  # llama.cpp's: bytes of 32 numbers
Scope = Literal["gpu", "added", "divided"]


@dataclass(frozen=True)
class Count:
    """A way to weigh a model's cache, right or wrong."""

    model: ModelSpec
    num_tokens: int
    layout: Parallelism
    batch_size: int
    dtype: CacheFormat
    blocks: int | None = None  # bytes of 32 numbers, in a format of BLOCK_FORMATS, whatever ``dtype`` says
    states: bool = True
    scope: Scope = "gpu"  # of one; "added": the copies of all; "divided": one copy over the GPUs

    def weigh(self) -> int:
        """Its bytes."""
        dtype = "fp8" if self.blocks else self.dtype
        together = -(-self.batch_size // self.layout.data)
        if self.scope == "divided":
            whole = self.batch_size * sequence_bytes(self.model, self.num_tokens, dtype)
            return -(-whole // self.layout.num_gpus)
        share = sequence_share(self.model, self.num_tokens, self.layout, dtype)
        kv = share.kv * self.blocks // 32 if self.blocks else share.kv
        held = together * (kv + share.index + (share.state or 0) * self.states)
        return held * self.layout.num_gpus if self.scope == "added" else held


@dataclass(frozen=True)
class Mistake:
    """A change to a ``Count``. Of mistakes with the same ``about``, only one can be made at a time."""

    about: str
    what: tuple[str, ...]  # in words; more than one counts as so many mistakes
    count: Count


def mistakes(count: Count) -> Iterator[Mistake]:
    """Every known mistake that can be made in ``count``, and changes something."""
    for about, found in (
        ("content", _contents(count)),
        ("layers", _layers(count)),
        ("tokens", _tokens(count)),
        ("index", _index(count)),
        ("state", _states(count)),
        ("format", _formats(count)),
        ("scope", _scopes(count)),
    ):
        yield from (Mistake(about, what, changed) for what, changed in found)


Changes = Iterator[tuple[tuple[str, ...], Count]]
Content = tuple[tuple[str, ...], int, int]  # in words; numbers for a token of a layer; heads that share them


def _with_groups(count: Count, groups: list[CacheGroup]) -> Count:
    return replace(count, model=count.model.model_copy(update={"cache": tuple(groups)}))


def _contents(count: Count) -> Changes:
    """Other numbers for each token of a layer, with the heads among which they can be shared out."""
    model, config = count.model, count.model.config
    found: list[Content] = []
    if isinstance(config, MLAConfig):
        found = _of_latents(config)
    elif isinstance(config, GQAConfig):
        found = _of_groups(config)
    else:
        widths = {group.elements for group in model.cache if group.role == "kv"}
        found = [(("times two",), 2 * width, 1) for width in widths] if len(widths) == 1 else []
    own = {group.elements for group in model.cache if group.role == "kv"}
    if config is not None and own != {config.elements_per_token}:
        return  # layers that are not alike: no one width stands for all
    # No row is made for these numbers: they are counted in 16 bits where the cache is meant to have one.
    plain = count if count.dtype in get_args(NumberFormat) else replace(count, dtype="bf16")
    for what, elements, heads in found:
        if {elements} != own:
            change = {"elements": elements, "heads": heads}
            yield (
                what,
                _with_groups(plain, [g.model_copy(update=change) if g.role == "kv" else g for g in model.cache]),
            )


def _of_latents(config: MLAConfig) -> list[Content]:
    heads, latent, rotary = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
    key, value, hidden = config.qk_head_dim, config.v_head_dim, config.hidden_size
    expanded = "keys and values expanded to every head"
    found: list[Content] = [
        ((expanded,), heads * (key + value), heads),
        (("V stored beside the latent",), 2 * latent + rotary, 1),
        (("times two, as if the latent were a key and a value",), 2 * (latent + rotary), 1),
        (("rotary key left out",), latent, 1),
        (("times two", "rotary key left out"), 2 * latent, 1),
        (("rotary key of each head",), latent + heads * rotary, 1),
        (("a latent of each head",), heads * (latent + rotary), heads),
        (("hidden size for the latent",), hidden, 1),
        (("keys and values of hidden_size / heads for every head",), 2 * hidden, heads),
    ]
    if value < key:
        found.append(((expanded + ", values as wide as keys",), heads * 2 * key, heads))
    if (padded := 1 << (key - 1).bit_length()) > key:
        found.append(((expanded + ", padded to a power of two",), heads * 2 * padded, heads))
    if hidden % heads == 0:
        found.append((("one key and value of hidden_size / heads",), 2 * hidden // heads, 1))
    return found


def _of_groups(config: GQAConfig) -> list[Content]:
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    found: list[Content] = [
        (("query heads for key/value heads",), 2 * heads * width, heads),
        (("keys alone, or no factor 2",), groups * width, groups),
        (("times two",), 4 * groups * width, groups),
        (("keys and values of hidden_size",), 2 * config.hidden_size, groups),
    ]
    if config.hidden_size % heads == 0:
        found.append((("width of a head from hidden_size",), 2 * groups * (config.hidden_size // heads), groups))
    return found


def _layers(count: Count) -> Changes:
    groups = count.model.cache
    more = [group.model_copy(update={"layers": group.layers + 1}) for group in groups]
    yield ("a layer more, as for multi-token prediction",), _with_groups(count, more)
    twice = [group.model_copy(update={"layers": 2 * group.layers}) for group in groups]
    yield ("layers counted twice",), _with_groups(count, twice)
    if sum(group.layers for group in groups if group.role == "kv") < count.model.num_layers:
        kv = [group for group in groups if group.role == "kv"]
        if len(kv) == 1:
            every = kv[0].model_copy(update={"layers": count.model.num_layers})
            others = [group for group in groups if group.role != "kv"]
            yield ("every layer counted as one that keeps all",), _with_groups(count, [every, *others])


def _tokens(count: Count) -> Changes:
    groups = count.model.cache
    kv = [group for group in groups if group.role == "kv"]
    if any(group.stride > 1 for group in kv):
        every = kv[0].model_copy(update={"layers": count.model.num_layers, "window": None, "stride": 1})
        index = [group for group in groups if group.role != "kv"]
        yield ("every token kept, though blocks are pooled",), _with_groups(count, [every, *index])
    elif any(group.window for group in kv):
        yield ("window ignored",), _with_groups(count, [g.model_copy(update={"window": None}) for g in groups])
    for page in PAGES:
        filled = -(-count.num_tokens // page) * page
        if filled != count.num_tokens > 1:  # what is said per token knows no pages
            yield (f"pages of {page} tokens, the last one full",), replace(count, num_tokens=filled)


def _index(count: Count) -> Changes:
    kept = [group for group in count.model.cache if group.role != "index"]
    if len(kept) < len(count.model.cache):
        yield ("keys of the indexer left out",), _with_groups(count, kept)


def _states(count: Count) -> Changes:
    if count.model.state_elements:
        yield ("recurrent states or unfinished blocks left out",), replace(count, states=False)


def _formats(count: Count) -> Changes:
    alike = {"fp16", "bf16"}  # two bytes each: one of them is enough
    for dtype in get_args(CacheFormat):
        if dtype not in ("fp16", count.dtype) and not {dtype, count.dtype} <= alike:
            yield (f"in {dtype} instead of {count.dtype}",), replace(count, dtype=dtype)
    for name, blocks in BLOCK_FORMATS.items():
        yield (f"in {name} instead of {count.dtype}",), replace(count, blocks=blocks)


def _scopes(count: Count) -> Changes:
    if count.layout.num_gpus > 1:
        yield ("the copies of all GPUs added up",), replace(count, scope="added")
        yield ("divided by the GPUs, though each holds a copy",), replace(count, scope="divided")
