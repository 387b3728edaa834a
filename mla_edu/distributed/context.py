"""Context parallelism in decoding: the tokens of each sequence are dealt over the ranks, one after the other in turn.

Token t lies on rank t mod W and on no other, so that W ranks keep W times as many tokens. All ranks' queries attend on
every rank to the tokens that it has; partial results are merged by their log-sum-exps (vLLM calls it decode context
parallelism). Heads are dealt too: a rank makes the queries of its own ones, and takes their results through W_O.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mla_edu.cache.latent import PagedLatentCache
from mla_edu.cache.layer import check_table
from mla_edu.cache.pages import PageTable
from mla_edu.config import MLAConfig
from mla_edu.distributed.heads import check_same_layer, local_layer
from mla_edu.distributed.ranks import Ranks, check_ranks
from mla_edu.kernels.api import Backend, mla_decode
from mla_edu.layers.inputs import check_hidden_states, step_of
from mla_edu.layers.mla import MultiHeadLatentAttention, head_by_head
from mla_edu.ops.rope import check_positions
from mla_edu.ops.softmax import merge_weights
from mla_edu.validation import check_flag, check_integer, shown


def num_local(length: Any, rank: int, size: int) -> Any:
    """How many of a sequence's first ``length`` tokens lie on a rank; an integer, or a tensor of them.

    Always reckoned from the length of the whole sequence. What a rank holds cannot be counted up or down by what a step
    adds or takes back: of four new tokens, two ranks may get two each, or three ranks one, one and two.

    Raises:
        TypeError: ``length`` is neither an integer nor a tensor of integers.
        ValueError: ``size`` is no positive integer, or ``rank`` none below it.
    """
    if isinstance(length, Tensor):
        counts = length.dtype != torch.bool and not (length.is_floating_point() or length.is_complex())
    else:
        counts = isinstance(length, int) and not isinstance(length, bool)
    if not counts:
        found = f"a tensor of {length.dtype}" if isinstance(length, Tensor) else shown(length)
        raise TypeError(f"length is {found}; expected an integer, or a tensor of integers")
    check_integer("size", size)
    check_integer("rank", rank, 0, size - 1)
    return (length + size - 1 - rank) // size


class ContextLatentCache(PagedLatentCache):
    """A rank's part of the latents of all sequences, in the pages of a table that knows the whole sequences.

    A page of the table spans all ranks: of its tokens each rank holds every W-th, a W-th of a page of memory. So the
    table, the scheduler and shared beginnings are on every rank what they would be on one.

    Args:
        config: of the layer that will fill it.
        table: lengths and pages of the whole sequences, the same on all ranks.
        ranks: over which the tokens are dealt.
        dtype: of the stored numbers, or ``torch.uint8`` for rows in fp8, as for ``PagedLatentCache``.
        backend: of ``mla_decode``, which attends.

    Attributes:
        pages: the memory of this rank, ``[num_pages, page_size / W, row]``.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``, ``table`` not a ``PageTable``, or ``ranks`` not a ``Ranks``.
        ValueError: a page does not divide by the ranks, ``config`` does not fit the fp8 layout, or an unknown backend.
    """

    def __init__(
        self,
        config: MLAConfig,
        table: PageTable,
        ranks: Ranks,
        dtype: torch.dtype = torch.bfloat16,
        backend: Backend = "auto",
    ):
        check_table(table)
        check_ranks(ranks)
        if table.page_size % ranks.size:
            raise ValueError(f"page_size is {table.page_size}; expected a multiple of the {ranks.size} ranks")
        self.ranks = ranks
        super().__init__(config, table, dtype, backend)

    def _shape(self, table: PageTable) -> tuple[int, int]:
        num_pages, page_size = table.memory_shape
        return num_pages, page_size // self.ranks.size

    def append(
        self, c_kv: Float[Tensor, "batch new kv_lora_rank"], k_pe: Float[Tensor, "batch new qk_rope_head_dim"]
    ) -> None:
        """Store those of the new tokens that this rank holds; the arguments and errors are ``PagedLatentCache``'s."""
        with self.step(c_kv.shape[1]) as step:
            rows = self._rows(step, c_kv, k_pe)
            slots = self.table.new_slots(step)
            own = slots % self.ranks.size == self.ranks.rank  # as of positions, since pages divide by the ranks
            self.pages.flatten(0, 1)[slots[own] // self.ranks.size] = self._pack(rows)[own]

    def attend_part(
        self, q: Float[Tensor, "batch new heads row"], sm_scale: float
    ) -> tuple[Float[Tensor, "batch new heads kv_lora_rank"], Float[Tensor, "batch new heads"]]:
        """Causal attention of the newest tokens' absorbed queries over this rank's tokens alone.

        Each query has its own number of tokens that it sees here, and so is a sequence to ``mla_decode``.

        Args:
            q: of all heads, for the tokens of the step under way; outside a step, of the newest ones of all sequences.
            sm_scale: what the scores are multiplied by.

        Returns:
            the result, and the logarithm of the sum of exponentials; where this rank has no token, 0 and -inf.
        """
        step, (batch, new) = self.table.now(), q.shape[:2]
        limits = step.seq_lens[:, None] - new + 1 + torch.arange(new, device=q.device, dtype=torch.int32)
        out, lse = mla_decode(
            q.flatten(0, 1)[:, None],
            self.pages,
            step.select(self.table.block_table).repeat_interleave(new, dim=0),
            num_local(limits, self.ranks.rank, self.ranks.size).flatten(),
            kv_lora_rank=self.config.kv_lora_rank,
            sm_scale=sm_scale,
            backend=self.backend,
            return_lse=True,
        )
        return out[:, 0].unflatten(0, (batch, new)), lse[..., 0].unflatten(0, (batch, new))

    def attend(self, q: Tensor, sm_scale: float) -> Tensor:  # noqa: ARG002
        """Nothing: what one rank has is a part.

        Raises:
            TypeError: always; ``attend_part`` and the exchange of ``ContextParallelAttention`` are what is meant.
        """
        raise TypeError("cache is a ContextLatentCache; expected a ContextParallelAttention to attend over it")


class ContextParallelAttention(nn.Module):
    """An MLA layer, always absorbed, over a cache whose tokens are dealt over the ranks.

    Each rank is given the same hidden states, computes the latents of all new tokens and keeps its share, and returns
    the same bits.

    Args:
        layer: whole, the same on all ranks.
        ranks: among which heads and tokens are dealt.
        before_absorption: exchange the queries before W_UK has widened them, with all of W_UK on every rank: fewer
            bytes travel, each rank absorbs for all heads.

    Attributes:
        local: the layer of this rank's heads.
        config: of ``local``; make the cache for it.

    Raises:
        TypeError: ``layer`` is not a ``MultiHeadLatentAttention``, ``ranks`` not a ``Ranks``, or ``before_absorption``
            neither True nor False.
        ValueError: there are more ranks than heads, or the ranks have layers of different configurations.
    """

    def __init__(self, layer: MultiHeadLatentAttention, ranks: Ranks, *, before_absorption: bool = False):
        super().__init__()
        if not isinstance(layer, MultiHeadLatentAttention):
            raise TypeError(f"layer is a {type(layer).__name__}; expected a MultiHeadLatentAttention")
        check_flag("before_absorption", before_absorption)
        check_same_layer(layer, ranks)
        ranks.check_same(before_absorption=before_absorption)
        local = local_layer(layer, ranks)
        assert isinstance(local, MultiHeadLatentAttention)
        self.ranks, self.local, self.config = ranks, local, local.config
        self.before_absorption = before_absorption
        if before_absorption:
            w_uk = local.up()[0]
            self.all_w_uk = nn.Parameter(ranks.all_gather(w_uk, "weights").flatten(0, 1), requires_grad=False)

    def forward(
        self, hidden_states: Float[Tensor, "batch seq hidden"], cache: ContextLatentCache
    ) -> Float[Tensor, "batch seq hidden"]:
        """Causal attention of the new tokens over the cached ones of all ranks and themselves.

        Args:
            hidden_states: the new tokens, on all ranks the same.
            cache: of this rank; its share of the new tokens is appended. Positions follow from the table's lengths.

        Raises:
            TypeError: ``cache`` is not a ``ContextLatentCache``.
            ValueError: ``hidden_states`` or ``cache`` does not fit the layer, or the positions run past the range of
                the rotary scaling; the cache is left as it was.
            RankLost: a rank has ended, or did not come in time.
        """
        local = self.local
        if not isinstance(cache, ContextLatentCache):
            raise TypeError(f"cache is a {type(cache).__name__}; expected a ContextLatentCache")
        check_hidden_states(hidden_states, self.config.hidden_size, local.o_proj.weight)
        with step_of(cache, hidden_states, (ContextLatentCache,), self.config) as (positions, end):
            check_positions(end, self.config.rope_scaling)
            q_nope, q_pe = local.queries(hidden_states, positions)
            cache.append(*local.latents(hidden_states, positions))
            out, lse = cache.attend_part(self._queries_of_all(q_nope, q_pe), local.sm_scale)
            latent = self.merged(out, lse).to(out.dtype)
            return self.ranks.all_reduce(local.output(latent), "attention")

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(self, hidden_states: Tensor, cache: ContextLatentCache) -> Tensor:
            """As ``forward``."""

    def _queries_of_all(
        self, q_nope: Float[Tensor, "batch seq heads nope"], q_pe: Float[Tensor, "batch seq heads rope"]
    ) -> Float[Tensor, "batch seq all_heads row"]:
        """Absorbed queries of the heads of all ranks, rank after rank."""
        if not self.before_absorption:
            return self._gather_heads(self.local.absorb(q_nope, q_pe))
        q = self._gather_heads(torch.cat((q_nope, q_pe), dim=-1))
        q_nope, q_pe = q.split((self.config.qk_nope_head_dim, self.config.qk_rope_head_dim), dim=-1)
        return torch.cat((head_by_head(q_nope, self.all_w_uk), q_pe), dim=-1)

    def _gather_heads(self, q: Float[Tensor, "batch seq heads width"]) -> Float[Tensor, "batch seq all_heads width"]:
        return self.ranks.all_gather(q, "queries").movedim(0, 2).flatten(2, 3)

    def merged(
        self, out: Float[Tensor, "batch seq all_heads kv_lora_rank"], lse: Float[Tensor, "batch seq all_heads"]
    ) -> Float[Tensor, "batch seq heads kv_lora_rank"]:
        """Attention of this rank's heads over the tokens of all ranks.

        Each rank weighs its part by all ranks' log-sum-exps, and the parts are added up where the head is.
        """
        weights, _ = merge_weights(self.ranks.all_gather(lse, "lse"))
        part = (weights[self.ranks.rank][..., None] * out).to(out.dtype)
        return self.ranks.reduce_scatter(part.unflatten(2, (self.ranks.size, -1)).movedim(2, 0), "outputs")
