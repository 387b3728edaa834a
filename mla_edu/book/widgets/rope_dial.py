"""Positions in, score out, with one toy head three times.

Rotated as usual; with the bracket moved across the rotation, as if absorption were allowed; and decoupled.
``rope_dial.js`` computes the same in the browser, with functions of the same names.
"""

from mla_edu.book.widgets.parts import Number, Widget, source

THETA = 100.0  # a small base: every pair turns within a few dozen tokens
VECTORS = {
    "q": [-0.2, -0.7, 1.2, 1.0, 0.8, -0.2, -0.1, -0.9],
    "w_uk": [  # [8, 5], from the latent to the key
        [0.1, -0.4, 0.7, 0.2, 0.6],
        [-0.2, 0.3, -0.8, 1.1, 0.3],
        [0.7, -0.7, 0.6, -1.1, -0.6],
        [0.4, 1.4, 0.7, 0.1, -0.9],
        [1.3, -0.2, 0.4, -0.4, -0.2],
        [0.1, -1.0, 1.7, 1.1, -0.6],
        [0.3, -0.1, 0.2, 1.4, 0.9],
        [-0.2, 0.6, -0.2, 0.5, 0.3],
    ],
    "c": [1.0, 0.4, 0.4, -0.8, 0.0],
    "q_rope": [-0.8, -0.8, 1.4, -0.4],
    "k_rope": [-1.0, 0.2, 1.9, -0.3],
}


def quantities(key_position: int, distance: int) -> dict[str, float]:
    """The scores of a query ``distance`` tokens behind its key, as inner products before scale and softmax.

    Returns:
        ``rotated``, the ordinary score q^T R_{s-t} W_UK c; ``absorbed``, (W_UK^T q)^T c, which knows no distance, and
        its ``error`` as a stand-in for the first; ``content``, ``rotary`` and their sum ``decoupled``.
    """
    import torch  # the other widgets do without it

    from mla_edu.ops.rope import rope_frequencies, rotate

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        frequencies = rope_frequencies(len(x), THETA)
        return rotate(x[None, None, None], torch.tensor([[position]]), frequencies, pairing="interleaved").flatten()

    q, w_uk, c, q_rope, k_rope = (torch.tensor(numbers, dtype=torch.float64) for numbers in VECTORS.values())
    query_position = key_position + distance
    rotated = turned(q, query_position) @ turned(w_uk @ c, key_position)
    absorbed = (q @ w_uk) @ c
    rotary = turned(q_rope, query_position) @ turned(k_rope, key_position)
    found = {
        "rotated": rotated,
        "absorbed": absorbed,
        "error": absorbed - rotated,
        "content": absorbed,
        "rotary": rotary,
        "decoupled": absorbed + rotary,
    }
    return {name: score.item() for name, score in found.items()}


class RopeDial(Widget):
    """A query and a key as turning hands, and their score against the distance between them."""

    _esm = source("rope_dial.js")
    _css = source("rope_dial.css")

    key_position = Number(0, 63)
    distance = Number(0, 63)

    def __init__(self, key_position: int = 0, distance: int = 5):
        """A view with these settings.

        Args:
            key_position: s, 0 to 63.
            distance: t - s, how far the query stands behind the key, 0 to 63.

        Raises:
            ValueError: a number out of range.
        """
        super().__init__({**VECTORS, "theta": THETA}, key_position=key_position, distance=distance)

    @property
    def quantities(self) -> dict[str, float]:
        """``quantities`` of the present settings."""
        return quantities(self.key_position, self.distance)

    def text(self) -> str:
        """Where query and key stand, and their three scores."""
        found = {name: f"{value:.3f}" for name, value in self.quantities.items()}
        return (
            f"query at {self.key_position + self.distance}, key at {self.key_position}, distance {self.distance}\n"
            f"rotated {found['rotated']}\n"
            f"bracket moved across the rotation {found['absorbed']}, off by {found['error']}\n"
            f"decoupled: content {found['content']} + rotary {found['rotary']} = {found['decoupled']}"
        )
