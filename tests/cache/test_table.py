"""Steps: lengths grow when one ends and stay when it fails, and every layer reads back what it wrote."""

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mla_edu import MLAConfig
from mla_edu.cache import KVCache, LatentCache, PageTable, SequenceTable

MLA = MLAConfig(
    hidden_size=8,
    num_attention_heads=2,
    q_lora_rank=None,
    kv_lora_rank=6,
    qk_nope_head_dim=4,
    qk_rope_head_dim=2,
    v_head_dim=3,
)
SUBSETS = st.lists(st.integers(0, 2), unique=True)


class Tables(RuleBasedStateMachine):
    """Any order of growing, failing, truncating, for two layers over one table, beside a list per sequence."""

    def make_table(self):
        return SequenceTable(batch_size=3, max_seq_len=11)

    def fits(self, sequences, count):
        return all(len(self.expected[sequence]) + count <= 11 for sequence in sequences)

    def __init__(self):
        super().__init__()
        self.table = self.make_table()
        self.layers = [torch.full((*self.table.memory_shape, width), torch.nan) for width in (5, 2)]
        self.expected = [torch.empty(0, 5) for _ in range(3)]
        self.generator = torch.Generator().manual_seed(0)

    def grow(self, sequences, count):
        new = torch.randn(len(sequences), count, 5, generator=self.generator)
        with self.table.step(count, sequences) as step:
            lengths = [len(self.expected[sequence]) for sequence in sequences]
            assert step.positions.tolist() == [list(range(length, length + count)) for length in lengths]
            assert step.seq_lens.tolist() == step.lengths == [length + count for length in lengths]
            self.table.write(self.layers[0], new)
            self.table.write(self.layers[1], new[..., :2])
        return new

    @rule(sequences=SUBSETS, count=st.integers(0, 7))
    def step(self, sequences, count):
        if not self.fits(sequences, count):
            with pytest.raises(ValueError, match="expected at most"):
                self.grow(sequences, count)
            return
        for sequence, new in zip(sequences, self.grow(sequences, count), strict=True):
            self.expected[sequence] = torch.cat((self.expected[sequence], new))

    @rule(sequences=SUBSETS, count=st.integers(1, 5))
    def failing_step(self, sequences, count):
        if not self.fits(sequences, count):
            return
        with pytest.raises(RuntimeError, match="in mid-step"), self.table.step(count, sequences):
            raise RuntimeError("in mid-step")

    @rule(sequences=SUBSETS | st.none(), length=st.integers(0, 11))
    def truncate(self, sequences, length):
        self.table.truncate(length, sequences)
        for sequence in range(3) if sequences is None else sequences:
            self.expected[sequence] = self.expected[sequence][:length]

    @invariant()
    def every_layer_reads_back_what_it_wrote(self):
        lengths = [len(rows) for rows in self.expected]
        assert self.table.lengths == self.table.seq_lens.tolist() == lengths
        read = [None] * 3
        for place, (wide, narrow) in self.table.read(*self.layers):
            for sequence in range(3)[place]:
                read[sequence] = wide[sequence - range(3)[place][0]]
            assert torch.equal(wide[..., :2], narrow)
        assert all(torch.equal(rows, expected) for rows, expected in zip(read, self.expected, strict=True))


class Pages(Tables):
    """The same over a pool that runs out."""

    def make_table(self):
        return PageTable(num_pages=6, page_size=4, batch_size=3)

    def fits(self, sequences, count):
        lengths = [len(self.expected[sequence]) for sequence in sequences]
        needed = sum(-(-(length + count) // 4) - -(-length // 4) for length in lengths)
        return needed <= self.table.allocator.num_free and all(length + count <= 24 for length in lengths)

    @precondition(lambda self: self.table.allocator.num_free == 6)
    @rule()
    def an_empty_table_has_every_page(self):
        assert sorted(self.table.allocator.allocate(6)) == list(range(6))
        self.table.allocator.free(range(6))

    @invariant()
    def no_page_is_lost_or_shared(self):
        used = self.table.block_table[self.table.block_table >= 0].tolist()
        assert sorted(used) == sorted(page for pages in self.table.pages_of for page in pages)
        assert len(set(used)) == len(used) == sum(-(-len(rows) // 4) for rows in self.expected)
        assert len(used) + self.table.allocator.num_free == 6

    @invariant()
    def block_table_holds_the_pages_of_each_sequence_in_order(self):
        for row, pages in zip(self.table.block_table.tolist(), self.table.pages_of, strict=True):
            assert row == pages + [-1] * (6 - len(pages))


TestRows, TestPages = Tables.TestCase, Pages.TestCase
TestRows.settings = TestPages.settings = settings(max_examples=25, stateful_step_count=15)


def test_memory_of_others_is_not_written():
    for table in (SequenceTable(3, 8), PageTable(5, page_size=4, batch_size=3)):
        memory = torch.full((*table.memory_shape, 2), torch.nan)
        for sequences, count in (([0, 2], 3), ([2], 2)):
            with table.step(count, sequences):
                table.write(memory, torch.zeros(len(sequences), count, 2))
        assert (~memory.isnan()).all(-1).sum() == 3 + 5


def test_a_spare_page_is_memory_that_no_sequence_is_given():
    table = PageTable(3, page_size=4, batch_size=2, spare_pages=1)
    assert table.memory_shape == (4, 4) and table.max_seq_len == 12
    with table.step(12, [1]):
        table.write(torch.empty(*table.memory_shape, 2), torch.zeros(1, 12, 2))
    assert sorted(table.pages_of[1]) == [0, 1, 2] and not table.allocator.num_free


@pytest.mark.parametrize("table", [SequenceTable(3, 8), PageTable(4, page_size=4, batch_size=3, max_seq_len=8)])
@pytest.mark.parametrize(
    ("num_new", "sequences", "message"),
    [
        (1, [3], "sequence is 3; expected 0 to 2"),
        (1, [1, 1], r"sequences is \[1, 1\]; expected each once"),
        (9, [2], "9 new tokens after 0 cached ones of sequence 2; expected at most max_seq_len = 8 in all"),
        (-1, None, "num_new is -1; expected an integer of at least 0"),
        (1.0, None, "num_new is 1.0; expected an integer"),
        (True, None, "num_new is True; expected an integer"),
        (1, torch.tensor([1, 1]), r"sequences is \[1, 1\]; expected each once"),
        (1, [torch.tensor(0), 0], r"sequences is \[0, 0\]; expected each once"),
        (1, [0, True], r"sequences is \[0, True\]; expected integers"),
        (1, torch.tensor([False, True]), "sequences is tensor.*; expected integers"),
        (1, [0, 1.0], r"sequences is \[0, 1.0\]; expected integers"),
        (1, 0, "sequences is 0; expected integers"),
        (1, "01", "sequences is '01'; expected integers"),
    ],
)
def test_a_step_that_does_not_fit_changes_nothing(table, num_new, sequences, message):
    with pytest.raises((TypeError, ValueError), match=message), table.step(num_new, sequences):
        pass
    assert table.lengths == table.seq_lens.tolist() == [0, 0, 0]
    with table.step(1):  # another step can be made
        pass
    table.truncate(0)


def test_sequences_may_be_integers_of_any_kind():
    table = PageTable(4, page_size=4, batch_size=3)
    for sequences in (torch.tensor([2, 0]), np.array([2, 0]), (np.int64(2), torch.tensor(0)), range(2, -1, -2)):
        with table.step(1, sequences) as step:
            assert step.sequences == (2, 0) and all(type(each) is int for each in step.sequences)
    assert table.lengths == [4, 0, 4] and table.allocator.num_held == 2


def test_a_full_pool_leaves_all_pages_where_they_were():
    table = PageTable(4, page_size=4, batch_size=3)
    with table.step(3, [0]):
        pass
    before = table.block_table.clone()
    with pytest.raises(ValueError, match="count is 4 pages; expected at most the 3 free of 4"), table.step(5, [1, 2]):
        pass
    assert table.lengths == [3, 0, 0] and torch.equal(table.block_table, before)


def test_a_layer_takes_part_in_the_step_under_way_only_if_it_is_the_same():
    table = SequenceTable(3, 8)
    with table.step(2, [2, 0]) as step:
        with table.step(2) as joined:
            assert joined is step
        assert table.lengths == [0, 0, 0]  # a layer that is done does not end it
        with pytest.raises(ValueError, match="num_new is 1; expected 2, as in the step under way"), table.step(1):
            pass
        with pytest.raises(ValueError, match=r"sequences is \[0, 2\]; expected \[2, 0\]"), table.step(2, [0, 2]):
            pass
        with pytest.raises(ValueError, match="a step is under way"):
            table.truncate(0)
    assert table.lengths == [2, 0, 2]


def test_truncate_asks_for_a_length():
    with pytest.raises(ValueError, match="length is -1; expected an integer of at least 0"):
        SequenceTable(1, 8).truncate(-1)


def test_sizes_are_positive():
    with pytest.raises(ValueError, match="batch_size is 0; expected a positive integer"):
        SequenceTable(batch_size=0)
    with pytest.raises(ValueError, match="page_size is 0; expected a positive integer"):
        PageTable(3, page_size=0)
    with pytest.raises(ValueError, match="num_pages is 0; expected a positive integer"):
        PageTable(0)


@pytest.mark.parametrize("size", [2**31, 2**62, 2**63, 10**400], ids=range(4))
def test_a_size_is_one_that_int32_counts(size):
    """A table counts in int32; and torch has errors of many lines for what int64 cannot hold."""
    for make in (SequenceTable, lambda count: SequenceTable(1, count), PageTable, lambda count: PageTable(1, count)):
        with pytest.raises(
            ValueError, match="(batch_size|max_seq_len|num_pages|page_size) is .*; expected an integer"
        ) as e:
            make(size)
        assert len(str(e.value)) < 200


def test_a_table_lies_on_a_device_that_is_there():
    for make in (SequenceTable, lambda **given: PageTable(1, 4, **given)):
        with pytest.raises(ValueError, match="device is 'nowhere'; expected one that is there"):
            make(device="nowhere")


@pytest.mark.parametrize("table", ["t", 0, [], {}])
def test_what_is_no_table_is_none(table):
    for kind, config in ((LatentCache, MLA), (KVCache, MLA)):
        with pytest.raises(TypeError, match="table is a .*; expected a SequenceTable"):
            kind(config, table=table)
