"""The allocator takes back only what it gave, and only once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_edu.cache import PageAllocator


@given(st.lists(st.integers(0, 9), max_size=8))
def test_allocator_takes_back_only_what_it_gave_and_only_once(pages):
    allocator = PageAllocator(8)
    given_out = allocator.allocate(5)
    if len(set(pages)) == len(pages) and set(pages) <= set(given_out):
        allocator.free(pages)
        assert allocator.num_free == 3 + len(pages)
    else:
        with pytest.raises(ValueError, match="expected pages in use, each once"):
            allocator.free(pages)
        assert allocator.num_free == 3
