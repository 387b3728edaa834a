"""Which tile is chosen, and how many splits: for every GPU, for memory that is short, for what fits nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mla_edu.kernels.tiles import (
    GPU,
    SHARED_LIMIT,
    Shape,
    Tiles,
    choose_num_splits,
    choose_tiles,
    make_plan,
    matrix_unit,
    shared_bytes,
)

V3 = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_mla", "fp32"])
@pytest.mark.parametrize("num_rows", [1, 16, 17, 64, 1024])
@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_every_gpu_has_a_tile_for_deepseek_v3_that_fits(arch, num_rows, dtype):
    if dtype == "fp32" and SHARED_LIMIT[arch] == 65_536:
        with pytest.raises(ValueError, match="in fp32 need .* expected at most the 65536 of"):
            choose_tiles(arch, num_rows=num_rows, dtype=dtype, **V3)
        return
    tiles = choose_tiles(arch, num_rows=num_rows, dtype=dtype, **V3)
    assert shared_bytes(tiles, matrix_unit(arch), 512, 64, dtype) <= SHARED_LIMIT[arch]
    assert num_rows > 16 or tiles.block_h == 16
    assert tiles.num_chunks == 4 or arch != "sm_75"


@pytest.mark.parametrize(
    ("arch", "num_rows", "expected"),
    [
        ("sm_90", 16, Tiles(16, 64, 8, 2)),
        ("sm_90", 32, Tiles(32, 64, 8, 2)),
        ("sm_90", 63, Tiles(64, 64, 8, 2)),
        ("sm_90", 512, Tiles(64, 64, 8, 2)),
        ("sm_100", 128, Tiles(64, 32, 8, 2)),
        ("sm_103", 128, Tiles(16, 64, 8, 2)),  # not in the table: the memory of the smallest
        ("sm_80", 128, Tiles(64, 32, 8, 2, 4)),
        ("sm_86", 128, Tiles(32, 32, 8, 2)),
        ("sm_75", 128, Tiles(16, 16, 8, 1, 4)),
    ],
)
def test_rows_and_memory_decide(arch, num_rows, expected):
    assert choose_tiles(arch, num_rows=num_rows, dtype="bf16", **V3) == expected


def test_less_memory_means_smaller_tiles():
    limits = (232_448, 160_000, 120_000, 95_000)
    chosen = [choose_tiles("sm_90", num_rows=128, dtype="bf16", shared_limit=limit, **V3) for limit in limits]
    assert [(tiles.block_h, tiles.block_n) for tiles in chosen] == [(64, 64), (64, 32), (32, 64), (16, 64)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "sm_70"}, "arch is 'sm_70'; expected sm_75, sm_80,"),
        ({"arch": "h100"}, "arch is 'h100'; expected sm_75"),
        ({"dtype": "fp8"}, "dtype is 'fp8'; expected bf16"),
        ({"dtype": "int8"}, "dtype is 'int8'; expected bf16, fp16, fp32, fp8_mla"),
        ({"kv_lora_rank": 513}, "kv_lora_rank is 513; expected at most 512"),
        ({"qk_rope_head_dim": 128}, "the rotary part is 128 wide; expected at most 64"),
        ({"shared_limit": 49_152}, "need 94208 bytes of shared memory; expected at most the 49152 of sm_90"),
    ],
)
def test_what_no_tile_holds_is_named(changed, message):
    arguments = {"arch": "sm_90", "num_rows": 16, "dtype": "bf16", **V3} | changed
    with pytest.raises(ValueError, match=message):
        choose_tiles(**arguments)


@given(st.integers(1, 3000), st.integers(1, 200_000), st.integers(1, 600))
def test_splits_fill_the_gpu_and_no_more(num_programs, max_len, num_slots):
    splits = choose_num_splits(num_programs, max_len, num_slots)
    assert 1 <= splits <= max(1, -(-max_len // 128))
    assert splits == 1 or (splits - 1) * num_programs < num_slots


@pytest.mark.parametrize(
    ("num_programs", "max_len", "expected"),
    [(1, 65_536, 119), (1, 1024, 8), (16, 8192, 8), (128, 8192, 1), (1000, 131_072, 1), (100, 100, 1)],
)
def test_splits_of_some_batches_on_132_multiprocessors(num_programs, max_len, expected):
    assert choose_num_splits(num_programs, max_len, 132) == expected


H200 = GPU("sm_90", 232_448, 132)


def a_plan(gpu=H200, num_splits=None, tiles=None, **changed):
    shape = {"batch": 1, "s_q": 1, "num_heads": 16, "dtype": "bf16", "max_len": 65_536, **V3} | changed
    return make_plan(Shape(**shape), gpu, num_splits, tiles)


def test_two_programs_of_16_heads_are_asked_for_where_shared_memory_holds_them():
    plan = a_plan()
    assert (plan.programs, plan.max_registers) == (2, 128)  # 65 536 registers for twice 256 threads
    assert plan.num_splits == choose_num_splits(1, 65_536, 2 * 132)
    for other in (a_plan(num_heads=128), a_plan(dtype="fp8_mla"), a_plan(GPU("sm_86", 101_376, 84))):
        assert (other.programs, other.max_registers) == (1, None)
    assert a_plan(GPU("gfx942", 65_536, 304)).max_registers is None  # AMD's compiler has no such option


def test_splits_that_are_asked_for_are_cut_at_tiles_and_those_that_are_chosen_at_128_tokens():
    assert (a_plan().min_split, a_plan(num_splits=3).min_split) == (128, 64)
    assert a_plan(num_splits=3).num_splits == 3
    assert a_plan(tiles=Tiles(16, 32, 4, 2), num_splits=1).tiles == Tiles(16, 32, 4, 2)


def test_a_plan_covers_all_rows_and_is_made_once():
    plan = a_plan(num_heads=126, s_q=3)
    assert plan.num_blocks == 6 and (plan.block_c, plan.block_r) == (512, 64)
    assert plan is a_plan(num_heads=126, s_q=3)
    assert a_plan(batch=0).num_splits >= 1
