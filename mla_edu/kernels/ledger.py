"""How many bytes a kernel moves, counted by Triton's interpreter as it runs: no GPU, no estimate.

Every load and store of the interpreted kernels is counted, number by number, under the name of the tensor that it
touches. What a GPU's caches would spare is not taken off: these are the bytes that programs ask for.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor


@dataclass
class Ledger:
    """Bytes by the name of a tensor; ``"other"`` is all memory that got no name, such as partial results."""

    loaded: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)


@contextmanager
def traffic(**tensors: Tensor) -> Iterator[Ledger]:
    """Count what interpreted kernels load and store while the block runs.

    Args:
        tensors: those to tell apart, under names of the caller's choice; views count as the memory that they look at.

    Raises:
        RuntimeError: Triton is not interpreted in this process.
    """
    from triton.runtime import interpreter

    from mla_edu.kernels import launch

    if not launch.INTERPRETED:
        raise RuntimeError("Triton does not interpret here; expected TRITON_INTERPRET=1 in the environment")
    spans = {name: _span(tensor) for name, tensor in tensors.items()}
    ledger, backend = Ledger(), interpreter._interpreter
    load, store = backend.load, backend.store

    def count(book: Counter[str], addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        touched = addresses[np.broadcast_to(mask, addresses.shape).astype(bool)]  # a scalar comparison is an int
        left = touched.size
        for name, (start, end) in spans.items():
            hits = int(((touched >= start) & (touched < end)).sum())
            book[name] += hits * size
            left -= hits
        book["other"] += left * size

    class Counting:
        def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
            count(ledger.loaded, addresses, mask, np.dtype(dtype).itemsize)
            return load(addresses, mask, other, dtype)

        def store(self, addresses: Any, values: Any, mask: Any) -> Any:
            count(ledger.stored, addresses, mask, values.dtype.itemsize)
            return store(addresses, values, mask)

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

    interpreter._interpreter = Counting()
    try:
        yield ledger
    finally:
        interpreter._interpreter = backend


def _span(tensor: Tensor) -> tuple[int, int]:
    start = tensor.untyped_storage().data_ptr()
    return start, start + tensor.untyped_storage().nbytes()


def ideal_bytes(q: Tensor, kv_cache: Tensor, seq_lens: Tensor, kv_lora_rank: int) -> dict[str, int]:
    """What a decode step must move at least: every cached row and every query in once, every result out once.

    Returns:
        Bytes under ``"kv_cache"``, ``"q"`` and ``"out"``.
    """
    row = kv_cache.shape[2] * kv_cache.element_size()
    out = q[..., :kv_lora_rank].numel() * q.element_size()
    return {"kv_cache": int(seq_lens.sum()) * row, "q": q.numel() * q.element_size(), "out": out}
