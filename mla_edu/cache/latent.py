"""Latents and rotary keys of past tokens, in a row for each sequence or in pages."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.cache.layer import LayerCache, check_config, check_dtype, check_table
from mla_edu.cache.pages import PageTable
from mla_edu.cache.table import SequenceTable, Step
from mla_edu.config import MLAConfig
from mla_edu.cost import fp8_row_bytes
from mla_edu.kernels.api import Backend, check_backend, mla_decode
from mla_edu.ops.fp8 import pack_fp8, unpack_fp8
from mla_edu.ops.latent import latent_attention


class Latents(LayerCache):
    """What ``LatentCache`` and ``PagedLatentCache`` share: a row per token, ``c_kv``, then ``k_pe``."""

    config: MLAConfig

    def __init__(self, config: MLAConfig, table: SequenceTable, memory: Tensor):
        self.config = config
        super().__init__(table, memory)

    def append(
        self, c_kv: Float[Tensor, "batch new kv_lora_rank"], k_pe: Float[Tensor, "batch new qk_rope_head_dim"]
    ) -> None:
        """Store the rows of new tokens, without their gradients; outside a step, for all sequences.

        Raises:
            ValueError: shape, dtype or device differ from the cache's, or there is no room; nothing is stored.
        """
        with self.step(c_kv.shape[1]) as step:
            self.table.write(self.memory[0], self._pack(self._rows(step, c_kv, k_pe)))

    def read(self) -> Iterator[tuple[slice, Float[Tensor, "some length row"]]]:
        """The rows of the sequences, new tokens included, each with its place in the batch.

        Sequences of one length come together, as a view; pages come one sequence after the other, as a copy.
        """
        for place, (rows,) in self.table.read(*self.memory):
            yield place, self._unpack(rows)

    def _rows(self, step: Step, c_kv: Tensor, k_pe: Tensor) -> Float[Tensor, "batch new row"]:
        self._check_new(step, c_kv=(c_kv, (self.config.kv_lora_rank,)), k_pe=(k_pe, (self.config.qk_rope_head_dim,)))
        return torch.cat((c_kv, k_pe), dim=-1).detach()

    def _pack(self, rows: Tensor) -> Tensor:
        return rows

    def _unpack(self, rows: Tensor) -> Tensor:
        return rows


class LatentCache(Latents):
    """What MLA keeps of every token: its latent and the rotary key that all heads share, and nothing else.

    A row holds ``c_kv``, after its RMSNorm, and then ``k_pe``, rotated: ``kv_lora_rank + qk_rope_head_dim`` numbers,
    576 in DeepSeek-V3 (DeepSeek-V2 paper, Table 1). Memory past the length of a sequence is never read.

    Args:
        config: of the layer that will fill it.
        batch_size: sequences.
        max_seq_len: tokens that fit in each.
        dtype: of the stored numbers; the layer's own.
        device: where they lie; None for torch's default.
        table: of the sequences, which other layers share; None for one of its own, of the sizes above.

    Attributes:
        rows: the memory, ``[batch, max_seq_len, kv_lora_rank + qk_rope_head_dim]``.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``, ``table`` not a ``SequenceTable``, or ``dtype`` or ``device`` is
            not one.
        ValueError: a size is not positive, ``dtype`` is not one that a layer computes in, or there is no such device.
    """

    def __init__(
        self,
        config: MLAConfig,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        *,
        table: SequenceTable | None = None,
    ):
        check_config(config, MLAConfig)
        check_dtype(dtype)
        table = SequenceTable(batch_size, max_seq_len, device) if table is None else table
        check_table(table, SequenceTable)
        shape = (*table.memory_shape, config.elements_per_token)
        self.rows = torch.empty(shape, dtype=dtype, device=table.seq_lens.device)
        super().__init__(config, table, self.rows)

    @property
    def c_kv(self) -> Float[Tensor, "batch max_seq_len kv_lora_rank"]:
        """The latents: a view of the memory, filled or not."""
        return self.rows[..., : self.config.kv_lora_rank]

    @property
    def k_pe(self) -> Float[Tensor, "batch max_seq_len qk_rope_head_dim"]:
        """The rotated shared keys: a view of the memory, filled or not."""
        return self.rows[..., self.config.kv_lora_rank :]

    def attend(
        self, q: Float[Tensor, "batch new heads row"], sm_scale: float
    ) -> Float[Tensor, "batch new heads kv_lora_rank"]:
        """Causal attention of the newest tokens' absorbed queries over all that is stored, the new tokens included.

        Args:
            q: of the tokens of the step under way; outside a step, of the newest tokens of all sequences.
            sm_scale: what the scores are multiplied by.
        """
        rank = self.config.kv_lora_rank
        outputs = [
            latent_attention(q[place], rows, kv_lora_rank=rank, sm_scale=sm_scale) for place, rows in self.read()
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class PagedLatentCache(Latents):
    """The rows of ``LatentCache``, in the pages of a table that other layers may share.

    Args:
        config: of the layer that will fill it.
        table: lengths and pages of the sequences.
        dtype: of the stored numbers, the layer's own; ``torch.uint8`` for the fp8 layout of ``mla_edu.ops.fp8``, whose
            layer computes in bf16.
        backend: of ``mla_decode``, which attends.

    Attributes:
        pages: the memory, ``[num_pages + spare_pages, page_size, row]``, a row being ``kv_lora_rank +
            qk_rope_head_dim`` numbers or, in fp8, 656 bytes for DeepSeek-V3.

    Raises:
        TypeError: ``config`` is not an ``MLAConfig``, ``table`` not a ``PageTable``, or ``dtype`` not one.
        ValueError: ``config`` does not fit the fp8 layout, or an unknown ``dtype`` or backend.
    """

    table: PageTable

    def __init__(
        self, config: MLAConfig, table: PageTable, dtype: torch.dtype = torch.bfloat16, backend: Backend = "auto"
    ):
        check_config(config, MLAConfig)
        check_table(table)
        check_dtype(dtype, torch.uint8)
        check_backend(backend)
        self.backend: Backend = backend
        self.is_fp8 = dtype == torch.uint8
        width = config.elements_per_token
        if self.is_fp8:
            width = fp8_row_bytes(config.kv_lora_rank, config.qk_rope_head_dim)
        self.pages = torch.empty((*self._shape(table), width), dtype=dtype, device=table.seq_lens.device)
        super().__init__(config, table, self.pages)

    def _shape(self, table: PageTable) -> tuple[int, int]:
        """Pages, and tokens of each that are here."""
        return table.memory_shape

    @property
    def new_dtype(self) -> torch.dtype:
        """What new tokens come in: bf16 for fp8 rows."""
        return torch.bfloat16 if self.is_fp8 else self.pages.dtype

    def attend(
        self, q: Float[Tensor, "batch new heads row"], sm_scale: float
    ) -> Float[Tensor, "batch new heads kv_lora_rank"]:
        """As ``LatentCache.attend``, through ``mla_decode``: no gradient flows back."""
        if not q.shape[1]:
            return q[..., : self.config.kv_lora_rank]
        step = self.table.now()
        return mla_decode(
            q,
            self.pages,
            self.table.blocks(step),
            step.seq_lens,
            kv_lora_rank=self.config.kv_lora_rank,
            sm_scale=sm_scale,
            backend=self.backend,
        )

    def _pack(self, rows: Tensor) -> Tensor:
        return pack_fp8(rows, self.config.kv_lora_rank) if self.is_fp8 else rows

    def _unpack(self, rows: Tensor) -> Tensor:
        return unpack_fp8(rows, self.config.kv_lora_rank).to(self.new_dtype) if self.is_fp8 else rows
