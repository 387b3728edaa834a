"""Pages: none is lost, none is handed out twice, and every sequence reads back what was appended to it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mla_edu import GQAConfig, MLAConfig
from mla_edu.cache import PagedLatentCache
from mla_edu.cache.paged import PageAllocator

MLA = MLAConfig(
    hidden_size=24,
    num_attention_heads=3,
    q_lora_rank=None,
    kv_lora_rank=7,
    qk_nope_head_dim=5,
    qk_rope_head_dim=6,
    v_head_dim=9,
)
FP8 = MLA.model_copy(update={"kv_lora_rank": 128})


def new_rows(count, seed=0, batch=1, rank=7):
    rows = torch.randn(batch, count, rank + 6, generator=torch.Generator().manual_seed(seed))
    return rows[..., :rank], rows[..., rank:]


def paged(**options):
    defaults = {"num_pages": 6, "page_size": 4, "max_sequences": 3, "dtype": torch.float32}
    cache = PagedLatentCache(MLA, **(defaults | options))
    cache.pages.fill_(float("nan"))
    return cache


class Pages(RuleBasedStateMachine):
    """Any order of appending and freeing, on a pool that runs out, beside a list per sequence."""

    def __init__(self):
        super().__init__()
        self.cache = paged()
        self.expected = [torch.empty(0, 13) for _ in range(3)]
        self.seed = 0

    @rule(sequences=st.sets(st.integers(0, 2)).map(sorted), count=st.integers(0, 9))
    def append(self, sequences, count):
        self.seed += 1
        c_kv, k_pe = new_rows(count, self.seed, len(sequences))
        lengths = [len(rows) for rows in self.expected]
        needed = sum(-(-(lengths[s] + count) // 4) - -(-lengths[s] // 4) for s in sequences)
        if needed > self.cache.allocator.num_free:
            with pytest.raises(ValueError, match=f"{needed} pages are needed"):
                self.cache.append(c_kv, k_pe, sequences)
            return
        self.cache.append(c_kv, k_pe, sequences)
        for sequence, new in zip(sequences, torch.cat((c_kv, k_pe), dim=-1), strict=True):
            self.expected[sequence] = torch.cat((self.expected[sequence], new))

    @rule(sequence=st.integers(0, 2))
    def free(self, sequence):
        pages = self.cache.block_table[sequence]
        self.cache.pages[pages[pages >= 0].long()] = float("nan")
        self.cache.free(sequence)
        self.expected[sequence] = torch.empty(0, 13)

    @precondition(lambda self: self.cache.allocator.num_free == 6)
    @rule()
    def an_empty_cache_has_every_page(self):
        assert sorted(self.cache.allocator.allocate(6)) == list(range(6))
        self.cache.allocator.free(range(6))

    @invariant()
    def every_sequence_reads_back(self):
        for sequence, rows in enumerate(self.expected):
            assert torch.equal(self.cache.gather(sequence), rows)
        assert self.cache.seq_lens.tolist() == self.cache.lengths == [len(rows) for rows in self.expected]

    @invariant()
    def no_page_is_lost_or_shared(self):
        used = self.cache.block_table[self.cache.block_table >= 0].tolist()
        assert len(set(used)) == len(used) == sum(-(-len(rows) // 4) for rows in self.expected)
        assert len(used) + self.cache.allocator.num_free == 6

    @invariant()
    def memory_outside_sequences_is_not_written(self):
        assert self.cache.pages.isnan().any(dim=-1).sum() == 24 - sum(map(len, self.expected))


TestPages = Pages.TestCase
TestPages.settings = settings(max_examples=25, stateful_step_count=15)


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


def test_fp8_pages_hold_656_bytes_a_token_and_read_back_what_they_hold():
    cache = PagedLatentCache(FP8, num_pages=3, page_size=4, dtype=torch.uint8)
    assert cache.pages.shape == (3, 4, 128 + 4 + 12)
    c_kv, k_pe = (part.bfloat16() for part in new_rows(6, rank=128))
    cache.append(c_kv, k_pe)
    rows = cache.gather(0)
    assert torch.equal(rows[:, 128:], k_pe[0].float())
    assert torch.allclose(rows[:, :128], c_kv[0].float(), rtol=1 / 16, atol=1e-4)


def test_stored_rows_carry_no_gradient():
    cache = paged()
    c_kv, k_pe = new_rows(2)
    cache.append(c_kv.clone().requires_grad_(), k_pe, [0])
    assert not cache.pages.requires_grad


@pytest.mark.parametrize(
    ("c_kv", "k_pe", "sequences", "message"),
    [
        (*new_rows(24), [1], "6 pages are needed; expected at most the 5 free of 6"),
        (*new_rows(1), [3], "sequence is 3; expected 0 to 2"),
        (*new_rows(1, batch=2), [1, 1], r"sequences is \[1, 1\]; expected each once"),
        (*new_rows(1, batch=2), [1], r"c_kv has shape \[2, 1, 7\]; expected \[1, 1, 7\]"),
        (new_rows(1)[0], new_rows(2)[1], [1], r"k_pe has shape \[1, 2, 6\]; expected \[1, 1, 6\]"),
        (new_rows(1)[0][0], new_rows(1)[1], [1], r"c_kv has shape \[1, 7\]; expected"),
        (new_rows(1)[0], new_rows(1)[1].double(), [1], "k_pe is torch.float64 on cpu; expected torch.float32 on cpu"),
    ],
)
def test_what_does_not_fit_leaves_the_pages_as_they_were(c_kv, k_pe, sequences, message):
    cache = paged(max_seq_len=24)
    cache.append(*new_rows(3), [0])
    with pytest.raises(ValueError, match=message):
        cache.append(c_kv, k_pe, sequences)
    assert cache.lengths == [3, 0, 0] and cache.allocator.num_free == 5


def test_a_sequence_stays_within_its_table():
    with pytest.raises(ValueError, match="sequence 2 would hold 9 tokens; expected at most max_seq_len = 8"):
        paged(max_seq_len=8).append(*new_rows(9), [2])


def test_bad_sizes_and_configurations_are_named():
    with pytest.raises(ValueError, match="page_size is 0; expected at least 1"):
        paged(page_size=0)
    with pytest.raises(ValueError, match="kv_lora_rank is 7; expected a multiple of 128"):
        paged(dtype=torch.uint8)
    with pytest.raises(TypeError, match="config is a GQAConfig; expected a MLAConfig"):
        PagedLatentCache(
            GQAConfig(hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=10), num_pages=2
        )
