"""The state of a recurrent layer: of one size however long the text, and no way back beyond the last step."""

import torch
from jaxtyping import Float
from torch import Tensor

from mla_edu.cache.layer import LayerCache, check_config, check_dtype, check_table
from mla_edu.cache.table import SequenceTable
from mla_edu.config import Mamba2Config


class StateCache(LayerCache):
    """What a Mamba-2 layer keeps of each sequence: its state, and the last inputs of its convolution.

    The states before and after the last step are both kept, so that a step that fails in another layer, or whose
    tokens are taken back, leaves the layer as it was.

    Args:
        config: of the layer that will fill it.
        table: lengths of the sequences; other layers may share it.
        dtype: of the convolution's inputs; the state is at least float32.

    Raises:
        TypeError: ``config`` is not a ``Mamba2Config``, ``table`` not a ``SequenceTable``, or ``dtype`` not one.
        ValueError: ``dtype`` is not one that a layer computes in.
    """

    config: Mamba2Config

    def __init__(self, config: Mamba2Config, table: SequenceTable, dtype: torch.dtype = torch.bfloat16):
        check_config(config, Mamba2Config)
        check_dtype(dtype)
        check_table(table, SequenceTable)
        device, wide = table.seq_lens.device, torch.promote_types(dtype, torch.float32)
        rows = (2, table.batch_size)
        self.config = config
        self.inputs = torch.zeros(*rows, config.conv_kernel - 1, config.conv_width, dtype=dtype, device=device)
        state = (config.num_heads, config.head_dim, config.state_size)
        self.states = torch.zeros(*rows, *state, dtype=wide, device=device)
        # Of each sequence the tokens behind either copy; -1 for one that holds nothing.
        self._held = [[0, -1] for _ in range(table.batch_size)]
        super().__init__(table, self.inputs, self.states)

    def read(self) -> tuple[Float[Tensor, "batch taps width"], Float[Tensor, "batch heads dim state"]]:
        """The inputs and the states before the step under way, of its sequences.

        Raises:
            ValueError: a sequence was cut back further than its last step.
        """
        sequences = list(self.table.now().sequences)
        copies = [self._copy(sequence) for sequence in sequences]
        return self.inputs[copies, sequences], self.states[copies, sequences]

    def write(self, inputs: Float[Tensor, "batch taps width"], states: Float[Tensor, "batch heads dim state"]) -> None:
        """Keep what the step under way has made of them, without gradients."""
        step = self.table.now()
        for row, (sequence, length) in enumerate(zip(step.sequences, step.lengths, strict=True)):
            copy = 1 - self._copy(sequence)
            self.inputs[copy, sequence] = inputs[row].detach()
            self.states[copy, sequence] = states[row].detach()
            self._held[sequence][copy] = length

    def _copy(self, sequence: int) -> int:
        """Which copy is of the tokens that the table holds; an empty sequence begins with zeros."""
        length, held = self.table.lengths[sequence], self._held[sequence]
        if length == 0:
            self.inputs[0, sequence] = 0
            self.states[0, sequence] = 0
            self._held[sequence] = [0, -1]
        elif length not in held:
            there = " or ".join(str(tokens) for tokens in sorted(held) if tokens >= 0)
            raise ValueError(
                f"sequence {sequence} holds {length} tokens; expected {there}, "
                "since a recurrent state cannot be cut back"
            )
        return self._held[sequence].index(length)
