"""Keys and values of past tokens, in a row for each sequence or in pages."""

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.cache.layer import LayerCache, check_config, check_dtype, check_table
from mla_edu.cache.pages import PageTable
from mla_edu.cache.table import SequenceTable
from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.ops.softmax import attention, causal_mask


class KeysAndValues(LayerCache):
    """What ``KVCache`` and ``PagedKVCache`` share: keys and values of every head that has its own.

    ``2 * num_key_value_heads * head_dim`` numbers per token; of an MLA layer, whose heads all have their own,
    ``num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim + v_head_dim)``.
    """

    config: GQAConfig | MLAConfig

    def __init__(self, config: GQAConfig | MLAConfig, table: SequenceTable, dtype: torch.dtype):
        check_dtype(dtype)
        self.config = config
        if isinstance(config, MLAConfig):
            heads, widths = config.num_attention_heads, (config.qk_head_dim, config.v_head_dim)
        else:
            heads, widths = config.num_key_value_heads, (config.head_dim, config.head_dim)
        self.keys, self.values = (
            torch.empty((*table.memory_shape, heads, width), dtype=dtype, device=table.seq_lens.device)
            for width in widths
        )
        super().__init__(table, self.keys, self.values)

    def append(
        self, keys: Float[Tensor, "batch new kv_heads dim"], values: Float[Tensor, "batch new kv_heads v_dim"]
    ) -> None:
        """Store the keys and values of new tokens, without their gradients; outside a step, for all sequences.

        Raises:
            ValueError: shape, dtype or device differ from the cache's, or there is no room; nothing is stored.
        """
        with self.step(keys.shape[1]) as step:
            self._check_new(step, keys=(keys, self.keys.shape[2:]), values=(values, self.values.shape[2:]))
            self.table.write(self.keys, keys.detach())
            self.table.write(self.values, values.detach())

    def attend(
        self, q: Float[Tensor, "batch new heads dim"], sm_scale: float, sliding_window: int | None = None
    ) -> Float[Tensor, "batch new heads v_dim"]:
        """Causal attention of the newest tokens' queries over all that is stored, the new tokens included.

        Args:
            q: of the tokens of the step under way; outside a step, of the newest tokens of all sequences.
            sm_scale: what the scores are multiplied by.
            sliding_window: a query sees at most this many keys, its own included.
        """
        outputs = [
            attention(
                q[place],
                keys,
                values,
                sm_scale=sm_scale,
                mask=causal_mask(q.shape[1], keys.shape[1], sliding_window=sliding_window, device=q.device),
            )
            for place, (keys, values) in self.table.read(self.keys, self.values)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class KVCache(KeysAndValues):
    """Keys and values of every token so far, a row of memory for each sequence.

    Memory past the length of a sequence is never read.

    Args:
        config: of the layer that will fill it.
        batch_size: sequences.
        max_seq_len: tokens that fit in each.
        dtype: of the stored numbers; the layer's own.
        device: where they lie; None for torch's default.
        table: of the sequences, which other layers share; None for one of its own, of the sizes above.

    Attributes:
        keys: the memory, ``[batch, max_seq_len, kv_heads, head_dim]``.
        values: likewise, as wide as the layer's values.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``, ``table`` not a ``SequenceTable``, or
            ``dtype`` or ``device`` is not one.
        ValueError: a size is not positive, ``dtype`` is not one that a layer computes in, or there is no such device.
    """

    def __init__(
        self,
        config: GQAConfig | MLAConfig,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        *,
        table: SequenceTable | None = None,
    ):
        check_config(config, GQAConfig, MLAConfig)
        table = SequenceTable(batch_size, max_seq_len, device) if table is None else table
        check_table(table, SequenceTable)
        super().__init__(config, table, dtype)


class PagedKVCache(KeysAndValues):
    """Keys and values of every token so far, in the pages of a table that other layers may share.

    Args:
        config: of the layer that will fill it.
        table: lengths and pages of the sequences.
        dtype: of the stored numbers; the layer's own.

    Attributes:
        keys: the memory, ``[num_pages + spare_pages, page_size, kv_heads, head_dim]``.
        values: likewise, as wide as the layer's values.

    Raises:
        TypeError: ``config`` is neither a ``GQAConfig`` nor an ``MLAConfig``, ``table`` not a ``PageTable``, or
            ``dtype`` not one.
        ValueError: ``dtype`` is not one that a layer computes in.
    """

    def __init__(self, config: GQAConfig | MLAConfig, table: PageTable, dtype: torch.dtype = torch.bfloat16):
        check_config(config, GQAConfig, MLAConfig)
        check_table(table)
        super().__init__(config, table, dtype)
