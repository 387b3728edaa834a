"""The rotation of a layer's queries and keys, with frequencies that no cast of the layer rounds."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mla_edu.ops.rope import Pairing, rope_frequencies, rope_magnitude, rotate
from mla_edu.rope_scaling import RopeScaling


class Rotary:
    """Turns queries and keys by their positions; leaves them as they are where ``theta`` is None.

    ``rotary(x, positions)`` takes and gives ``[batch, seq, heads, width]``; positions are ``[batch or 1, seq]``.

    No module: as a buffer its frequencies would be rounded whenever the layer is cast to a smaller dtype.

    Args:
        width: numbers of a query or key that are rotated.
        theta: base of the angles.
        scaling: how they are stretched for a longer context.
        pairing: which numbers make a pair.

    Attributes:
        frequencies: of each pair, in float64 on the CPU; None where nothing is rotated.
    """

    def __init__(self, width: int, theta: float | None, scaling: RopeScaling | None, pairing: Pairing):
        self.pairing: Pairing = pairing
        self.magnitude = rope_magnitude(scaling)
        self.frequencies = None if theta is None else rope_frequencies(width, theta, scaling)
        self._copies: dict[torch.device, Tensor] = {}  # one for each device, so that a step copies nothing

    def __call__(
        self, x: Float[Tensor, "batch seq heads width"], positions: Int[Tensor, "batch_or_1 seq"]
    ) -> Float[Tensor, "batch seq heads width"]:
        """``x`` turned by its positions."""
        if self.frequencies is None:
            return x
        if positions.device not in self._copies:
            self._copies[positions.device] = self.frequencies.to(positions.device)
        turned = rotate(x, positions, self._copies[positions.device], pairing=self.pairing)
        return turned if self.magnitude == 1 else turned * self.magnitude
