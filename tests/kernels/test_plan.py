"""How many shares the tokens of a batch are cut into: enough to fill a GPU, and no more."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_edu.kernels.plan import GPU, MIN_SHARE, Shape, choose_num_shares, choose_share, make_plan
from mla_edu.kernels.tiles import Tiles, cdiv

H200 = GPU("sm_90", 232_448, 132)
SLOTS = (84, 108, 132, 148, 2 * 132, 304)


def a_plan(gpu=H200, num_splits=None, tiles=None, walks=None, **changed):
    shape = {"batch": 1, "s_q": 1, "num_heads": 16, "dtype": "bf16", "max_len": 65_536}
    shape |= {"kv_lora_rank": 512, "qk_rope_head_dim": 64} | changed
    return make_plan(Shape(**shape), gpu, num_splits, tiles, walks)


@pytest.mark.parametrize("num_slots", SLOTS)
def test_programs_of_any_number_of_blocks_keep_nine_tenths_of_a_gpu_busy(num_slots):
    for num_blocks in range(1, 2 * num_slots + 1):
        programs = choose_num_shares(num_blocks, 10**9, num_slots) * num_blocks
        assert programs >= 0.9 * cdiv(programs, num_slots) * num_slots


def slowest(lens, plan, slots):
    """Tiles that the busiest slot works on, if slots take programs in turn, and how many if all had the same."""
    tiles = [max(1, cdiv(length, plan.tiles.block_n)) for length in lens]
    per_share = max(cdiv(sum(tiles), plan.num_parts), plan.min_tiles)
    return per_share * cdiv(plan.num_programs, slots), sum(tiles) * plan.num_blocks / slots


@given(
    lens=st.lists(st.integers(0, 20_000), min_size=1, max_size=150),
    heads=st.sampled_from([16, 32, 64, 128]),
    slots=st.sampled_from(SLOTS),
)
def test_a_ragged_batch_is_spread_as_well_as_an_even_one(lens, heads, slots):
    lens.append(60 * slots * heads)  # enough for everyone
    gpu = GPU("sm_90", 232_448, slots)
    plan = a_plan(gpu, walks=True, batch=len(lens), num_heads=heads, max_len=max(lens))
    busiest, even = slowest(lens, plan, slots * plan.programs)
    assert busiest <= even / 0.9


def test_one_long_sequence_among_short_ones_is_spread_over_the_whole_gpu():
    lens = [2048] * 31 + [131_072]
    for heads in (16, 128):
        plan = a_plan(walks=True, batch=32, num_heads=heads, max_len=131_072)
        busiest, even = slowest(lens, plan, 132)
        assert busiest <= even / 0.9


@given(st.integers(1, 300), st.integers(1, 200_000), st.integers(1, 600), st.integers(1, 300))
def test_no_more_shares_than_are_worth_while(num_blocks, max_len, num_slots, batch):
    worth = batch * cdiv(max_len, MIN_SHARE)
    shares = choose_num_shares(num_blocks, worth, num_slots)
    assert 1 <= shares <= min(worth, num_slots)


def test_a_program_has_128_tokens_at_least_if_shares_are_chosen_and_a_tile_if_they_are_asked_for():
    assert (a_plan().min_tiles, a_plan(num_splits=3).min_tiles) == (2, 1)
    assert a_plan(tiles=Tiles(16, 32, 4, 2), num_splits=1).tiles == Tiles(16, 32, 4, 2)


def test_there_is_room_for_every_part():
    """Along shares and sequences, each step goes to the next share, to the next sequence, or to both."""
    plan = a_plan(batch=40)
    assert (plan.even, plan.num_parts, plan.num_partials) == (True, 132, 132 + 39)
    plan = a_plan(batch=40, num_splits=3)
    assert (plan.even, plan.num_parts, plan.num_partials, plan.num_programs) == (False, 3, 120, 120)


def test_the_merge_takes_many_parts_at_a_time_where_there_are_many():
    assert a_plan().merge_tile.block_p > a_plan(batch=64).merge_tile.block_p


def test_a_plan_covers_all_rows_and_is_made_once():
    plan = a_plan(num_heads=126, s_q=3)
    assert plan.num_blocks == 6 and (plan.block_c, plan.block_r) == (512, 64)
    assert plan is a_plan(num_heads=126, s_q=3)
    assert a_plan(batch=0).num_parts >= 1


def test_registers_are_limited_where_two_programs_are_to_fit():
    plan = a_plan(GPU("sm_90", 232_448, 132), tiles=Tiles(16, 64, 8, 2))
    assert (plan.programs, plan.max_registers) == (2, 128)  # 65 536 registers for twice 256 threads
    for other in (a_plan(), a_plan(num_heads=128), a_plan(dtype="fp8_mla"), a_plan(GPU("sm_86", 101_376, 84))):
        assert (other.programs, other.max_registers) == (1, None)
    assert a_plan(GPU("gfx942", 65_536, 304)).max_registers is None  # AMD's compiler has no such option


@pytest.mark.parametrize(("arch", "converts"), [("sm_80", False), ("sm_89", True), ("sm_90", True), ("gfx942", False)])
def test_bytes_of_fp8_are_converted_by_an_instruction_where_there_is_one(arch, converts):
    assert a_plan(GPU(arch, 65_536, 100), dtype="fp8_mla").converts_fp8 == converts


def test_from_64_rows_on_a_program_has_one_part_of_one_sequence():
    plan = a_plan(batch=40, num_heads=64, max_len=8192)
    assert (plan.even, plan.num_slots, plan.num_parts) == (False, 132, 4 * 132 + 40)
    assert plan.num_programs == plan.num_partials == plan.num_parts
    assert a_plan(batch=1, num_heads=128).num_slots == 66
    assert a_plan(batch=3, num_heads=64, max_len=200).num_parts == 6  # of 128 tokens at least
    assert a_plan(batch=3, num_heads=64, max_len=0).num_parts == 3
    assert a_plan(batch=40, num_heads=32).even and a_plan(batch=40, num_heads=64, walks=True).even
    assert a_plan(batch=40, num_heads=64, num_splits=3).num_slots == 0


def busy(lens, heads, gpu):
    """How much of the time of all slots is work on tiles, if they take programs in turn. A part costs two more."""
    plan = a_plan(gpu, batch=len(lens), num_heads=heads, max_len=max(lens))
    tiles = [max(1, cdiv(length, plan.tiles.block_n)) for length in lens]
    share = choose_share(tiles, plan.num_parts, plan.min_tiles, plan.num_slots)
    slots = [0] * (gpu.multiprocessors * plan.programs)
    parts = 0
    for many in tiles:
        left, count = many, cdiv(many, share)
        parts += count
        for _ in range(count):
            part = min(cdiv(many, count), left)
            left -= part
            for _ in range(plan.num_blocks if part else 0):
                heapq.heapreplace(slots, slots[0] + part + 2)
        assert left == 0
    assert parts <= plan.num_parts
    return sum(tiles) * plan.num_blocks / len(slots) / max(slots)


@pytest.mark.parametrize("heads", [64, 128])
@pytest.mark.parametrize("multiprocessors", [84, 108, 132, 148])
def test_parts_by_length_spread_a_ragged_batch_as_well_as_an_even_one(multiprocessors, heads):
    gpu, draw = GPU("sm_90", 232_448, multiprocessors), random.Random(heads)

    def against_even(lens):
        return busy(lens, heads, gpu) / busy([sum(lens) // len(lens)] * len(lens), heads, gpu)

    assert against_even([2048] * 31 + [131_072]) >= 0.9
    drawn = []
    for _ in range(20):
        batch, most = draw.choice([4, 8, 16, 32, 64, 128, 200]), draw.choice([4096, 16_384, 65_536])
        drawn.append(against_even([draw.randint(1, most) for _ in range(batch)]))
    assert sum(drawn) / len(drawn) >= 0.9 and min(drawn) >= 0.75


@given(st.lists(st.sampled_from([1, 9, 1000, 100_000]), min_size=1, max_size=200), st.integers(1, 20))
def test_parts_by_length_never_are_more_than_there_is_room_for(tiles, num_slots):
    for many in (tiles, [100_000] * 7 + [1] * 93):
        num_parts = min(len(many), 4) * num_slots + len(many)
        share = choose_share(many, num_parts, 2, num_slots)
        assert sum(cdiv(each, share) for each in many) <= num_parts


def test_parts_are_whole_sequences_where_those_fill_the_gpu():
    assert choose_share([64] * 128, 4 * 66 + 128, 2, 66) >= 64
    assert choose_share([64] * 128, 4 * 108 + 128, 2, 108) < 64
