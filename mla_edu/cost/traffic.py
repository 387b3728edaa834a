"""What travels between GPUs, in bytes received: in a decode step, and when a cache moves."""

from dataclasses import dataclass

from mla_edu.config import MLAConfig
from mla_edu.cost.formats import CacheFormat
from mla_edu.cost.memory import Layer, check_layer, find_model, sequence_bytes
from mla_edu.cost.parallel import Parallelism, check_layout, sequence_share
from mla_edu.hf import ModelSpec
from mla_edu.validation import check_flag, check_integer

ACTIVATION = 2  # bytes of a number that travels: 16 bits
LSE = 4  # bytes of a log-sum-exp: fp32


def all_reduce_bytes(config: Layer, ranks: int, num_tokens: int = 1) -> int:
    """Bytes that each rank receives when ``ranks`` of them add up the hidden states of ``num_tokens`` tokens.

    Tensor parallelism does it once after attention and once after the MLP of each layer. A ring passes 2 (W - 1) / W of
    the states to each rank: 25,088 bytes for a token of DeepSeek-V3 and eight ranks.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
        ValueError: a number is not positive.
    """
    states = _states(config, ranks, num_tokens)
    return -(-2 * (ranks - 1) * states // ranks)


def gather_bytes(config: Layer, ranks: int, num_tokens: int = 1) -> int:
    """Bytes that each rank receives when data-parallel attention meets experts that all ranks share.

    The hidden states of ``num_tokens`` tokens of each rank are gathered before the experts, and the sums scattered back
    after: (W - 1) tokens' states each way. Ranks with fewer tokens are padded to the most, so give that number.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``.
        ValueError: a number is not positive.
    """
    states = _states(config, ranks, num_tokens)
    return 2 * (ranks - 1) * states


def _states(config: Layer, ranks: int, num_tokens: int) -> int:
    check_layer(config)
    check_integer("ranks", ranks)
    check_integer("num_tokens", num_tokens)
    return num_tokens * config.hidden_size * ACTIVATION


@dataclass(frozen=True)
class ContextTraffic:
    """Bytes that each rank receives for one layer, where a sequence's tokens are dealt over the ranks."""

    queries: int  # of the other ranks' heads
    lse: int  # log-sum-exps of all heads, by which partial results are merged
    outputs: int  # partial results of this rank's own heads

    @property
    def total(self) -> int:
        """All of it."""
        return self.queries + self.lse + self.outputs


def context_bytes(
    config: MLAConfig, ranks: int, num_tokens: int = 1, *, before_absorption: bool = False
) -> ContextTraffic:
    """What ``ranks`` ranks exchange for ``num_tokens`` new tokens of an MLA layer whose cached tokens they share.

    Each rank's queries go to all others, which attend over their tokens with all heads; the log-sum-exps go to all, and
    the partial results, still latents, to the rank that has the head. It does not depend on how much is cached.

    Args:
        config: the layer.
        ranks: among which its heads and the cached tokens are dealt; heads are padded where they do not divide.
        num_tokens: new ones.
        before_absorption: gather the queries before W^UK has widened them from d_h to d_c numbers. Each rank then needs
            all of W^UK.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``, or ``before_absorption`` neither True nor False.
        ValueError: a number is not positive, or ``ranks`` exceeds the heads.
    """
    check_layer(config, MLAConfig)
    check_flag("before_absorption", before_absorption)
    check_integer("ranks", ranks, highest=config.num_attention_heads)
    check_integer("num_tokens", num_tokens)
    heads = -(-config.num_attention_heads // ranks)
    width = (config.qk_nope_head_dim if before_absorption else config.kv_lora_rank) + config.qk_rope_head_dim
    others = num_tokens * (ranks - 1) * heads
    return ContextTraffic(
        queries=others * width * ACTIVATION,
        lse=others * ranks * LSE,
        outputs=others * config.kv_lora_rank * ACTIVATION,
    )


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that the busiest GPU receives in one decode step, through all layers."""

    states: int  # hidden states: added up after attention and after the MLP, or gathered and scattered back
    attention: int  # queries, log-sum-exps and partial results, where tokens are dealt

    @property
    def total(self) -> int:
        """All of it."""
        return self.states + self.attention


def step_bytes(model: str | ModelSpec, layout: Parallelism, batch_size: int = 1) -> StepTraffic:
    """What travels when each of ``batch_size`` sequences gets one token, in one of the three plain layouts.

    With heads or tokens dealt out, hidden states are added up twice in each layer (``all_reduce_bytes``); with
    sequences dealt out they are gathered before each layer's MLP or experts and scattered back (``gather_bytes``), for
    as many as the fullest GPU has. With tokens dealt out, each layer with a latent exchanges ``context_bytes`` besides.
    Embeddings, logits and what a router sends are not counted.

    Args:
        model: with MLA in the layers that cache, all of one kind.
        layout: at most one of ``tensor``, ``data`` and ``context`` above 1, without a pipeline.
        batch_size: sequences, over all GPUs.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: another layout or model, or a number that is not positive.
    """
    spec = find_model(model)
    check_integer("batch_size", batch_size)
    check_layout(spec, layout)
    if layout.num_gpus != max(layout.tensor, layout.data, layout.context):
        raise ValueError(f"layout is {layout}; expected one of tensor, data and context above 1")
    if not isinstance(spec.config, MLAConfig) or any(group.role != "kv" for group in spec.cache):
        raise ValueError(f"model is {spec.name}; expected one with MLA, its widths known, and no index keys")
    if layout.data > 1:
        on_each = -(-batch_size // layout.data)
        return StepTraffic(spec.num_layers * gather_bytes(spec.config, layout.data, on_each), 0)
    states = 2 * spec.num_layers * all_reduce_bytes(spec.config, layout.group, batch_size)
    latents = sum(group.layers for group in spec.cache)
    return StepTraffic(states, latents * context_bytes(spec.config, layout.context, batch_size).total)


@dataclass(frozen=True)
class Move:
    """Bytes of one sequence's cache that is moved: to GPUs that decode it, or out to a larger memory."""

    once: int  # one copy, which is enough to send or to store
    each: int  # all that the GPUs of its group hold, where each of them sends or stores its own


def move_bytes(model: str | ModelSpec, num_tokens: int, layout: Parallelism, dtype: CacheFormat = "bf16") -> Move:
    """What moves of a sequence from or to the GPUs of ``layout``: prefill to decode, or offload.

    With tensor parallelism every GPU of a group has the same latents; a sender that does not know it moves ``each``.

    Raises:
        TypeError: ``model`` is neither a name nor a ``ModelSpec``, or ``layout`` no ``Parallelism``.
        ValueError: unknown model or dtype, a number out of range, or a layout that the model does not allow.
    """
    spec = find_model(model)
    share = sequence_share(spec, num_tokens, layout, dtype).total
    return Move(once=sequence_bytes(spec, num_tokens, dtype), each=layout.group * layout.pipeline * share)
