"""Predictions from counts, against numbers worked out by hand, and against the order that an H100 showed."""

import pytest

from mla_edu.kernels.forecast import CHIPS, LAUNCH, forecast, predict_seconds
from mla_edu.kernels.machine_code import Ahead, Turn
from mla_edu.kernels.offline import KernelReport
from mla_edu.kernels.tiles import Tiles

TILE = 64 * 1152


def report(heads, loop, *, programs=1, overlap=0.0, own=0.0, executed=None, **fields):
    tiles = Tiles(min(heads, 64), 64, 8, 2)
    useful = 2 * tiles.block_h * 64 * 1088
    defaults = {
        "arch": "sm_90", "dtype": "bf16", "num_heads": heads, "s_q": 1, "page_size": 64, "tiles": tiles, "registers": 1,
        "spill_bytes": 0, "shared_bytes": 1, "tensor_memory": 0, "tensor_core_instructions": {"HGMMA": 9},
        "programs": programs, "occupancy": 0.1, "cubin": b"", "loop_instructions": loop,
        "executed_flops": executed or useful, "shared_traffic": 0, "ahead": Ahead(overlap, own, TILE, (0,)),
    }  # fmt: skip
    return KernelReport(**defaults | fields)


def test_bytes_in_flight_are_ones_own_ahead_and_the_other_programs_tiles():
    assert report(16, 500).bytes_in_flight == 0
    assert report(16, 500, programs=2).bytes_in_flight == TILE
    assert report(16, 500, programs=2, own=2.0 * TILE).bytes_in_flight == 4 * TILE
    assert report(16, 500, programs=3, own=1000.0).bytes_in_flight == 1000 + 2 * TILE
    twice = Ahead(1.0, 2.0 * TILE, 2 * TILE, ())  # each byte is asked for by two threads
    assert report(16, 500, ahead=twice).bytes_in_flight == TILE


def test_counts_per_token_and_useful_share_follow():
    found = report(16, 500, executed=2 * 2 * 16 * 64 * 1088)
    assert found.instructions_per_token == 500 * 8 / 64 and found.useful_share == 0.5
    assert report(128, 500).row_blocks == 2 and report(128, 500).useful_flops == 2 * 64 * 64 * 1088
    fp8 = report(16, 500, dtype="fp8_mla")
    assert fp8.tile_bytes == 64 * 656


def test_a_program_that_never_loads_ahead_waits_loads_and_works_in_turn():
    found = forecast(report(64, 3000), "h200")
    load = TILE / (4.8e12 / 132)
    work = 3000 * 8 / 4 / 1.83e9 + 2 * 64 * 64 * 1088 / (989.4e12 / 132)
    latency = 2 * 478.8 / 1.755e9
    assert found.set_by == "waiting"
    assert found.of_bandwidth == pytest.approx(load / (latency + load + work))
    assert found.of_product == pytest.approx(2 * 64 * 64 * 1088 / (989.4e12 / 132) / (latency + load + work))


def test_littles_law_limits_what_loads_ahead():
    latency, bandwidth = 2 * 478.8 / 1.755e9, 4.8e12 / 132
    few = forecast(report(16, 10, overlap=1.0, own=5000.0), "h200")
    assert few.set_by == "bytes in flight" and few.needed_bytes == pytest.approx(bandwidth * latency)
    assert few.of_bandwidth == pytest.approx(5000 / (bandwidth * latency))
    enough = forecast(report(16, 10, overlap=1.0, own=40_000.0), "h200")
    assert (enough.set_by, enough.of_bandwidth) == ("memory", 1.0)


def test_instructions_products_and_shared_memory_limit_what_has_enough_in_flight():
    many = {"programs": 2, "overlap": 1.0, "own": float(TILE)}
    issue = forecast(report(16, 5000, **many), "h200")
    assert issue.set_by == "instructions"
    assert issue.of_bandwidth == pytest.approx(TILE / (4.8e12 / 132) / (5000 * 8 / 4 / 1.83e9))
    twice = forecast(report(128, 10, **many, executed=4 * 64 * 64 * 1088), "h100")
    assert (twice.set_by, twice.of_product) == ("products", pytest.approx(0.5))
    old_unit = report(128, 10, **many, tensor_core_instructions={"HMMA": 9})
    assert forecast(old_unit, "h100").of_product == pytest.approx(0.62)
    shared = forecast(report(16, 10, **many, shared_traffic=10**6), "h200")
    assert (shared.set_by, shared.round_seconds) == ("shared memory", pytest.approx(2 * 10**6 / 128 / 1.83e9))


def test_one_program_issues_and_then_waits_for_its_operands_or_products():
    one = {"overlap": 1.0, "own": float(TILE)}
    moved = forecast(report(16, 1000, **one, shared_traffic=10**6), "h200")
    assert moved.set_by == "work"
    assert moved.round_seconds == pytest.approx((1000 * 8 / 4 + 10**6 / 128) / 1.83e9)
    multiplied = forecast(report(128, 1000, **one, executed=40 * 64 * 64 * 1088, shared_traffic=10**6), "h200")
    products = 40 * 64 * 64 * 1088 / (989.4e12 / 132)
    assert multiplied.round_seconds == pytest.approx(1000 * 8 / 4 / 1.83e9 + products)


def in_turns(heads, *turns, loader=0):
    """A pair of tiles, 128 tokens, by two groups of four warps and a loader."""
    total = [sum(each) for each in zip(*turns, strict=True)]
    return report(
        heads, total[0] + loader, executed=total[1], shared_traffic=total[2], ahead=None, turns=turns, backend="gluon",
        tiles=Tiles(64, 128, 4, 1),
    )  # fmt: skip


HALF_PAIR = 2 * 64 * 64 * 1088  # of the two groups, each does half of the products


def test_one_group_issues_before_both_groups_have_something_to_multiply():
    hertz, product = 1.83e9, 989.4e12 / 132
    twice = 2 * HALF_PAIR  # as if all were done twice
    found = forecast(in_turns(128, Turn(3000, twice, 0), Turn(2800, twice, 0)), "h200")
    assert found.set_by == "work"
    assert found.round_seconds == pytest.approx(3000 / hertz + 2 * twice / product)
    assert found.of_product == pytest.approx(2 * HALF_PAIR / product / found.round_seconds)
    moved = forecast(in_turns(128, Turn(3000, HALF_PAIR, 500_000), Turn(2800, HALF_PAIR, 500_000)), "h200")
    assert moved.round_seconds == pytest.approx((3000 + 10**6 / 128) / hertz)


@pytest.mark.parametrize(("heads", "row_blocks"), [(64, 1), (128, 2)])
def test_the_place_of_a_tile_is_used_then_waits_then_is_filled(heads, row_blocks):
    latency, bandwidth = 2 * 478.8 / 1.755e9, 4.8e12 / 132
    found = forecast(in_turns(heads, Turn(700, HALF_PAIR, 0), Turn(800, HALF_PAIR, 0)), "h200")
    assert found.set_by == "waiting"
    own = 800 / 1.83e9 + HALF_PAIR / (989.4e12 / 132)
    assert found.round_seconds == pytest.approx(own + latency + TILE / row_blocks / bandwidth)


def test_the_memory_or_all_warps_of_a_scheduler_can_be_the_limit_of_turns():
    few = forecast(in_turns(64, Turn(700, HALF_PAIR, 0), Turn(800, HALF_PAIR, 0)), "h100")
    assert (few.set_by, few.of_bandwidth) == ("memory", 1.0)
    many = in_turns(64, Turn(20_000, HALF_PAIR, 0), Turn(20_000, HALF_PAIR, 0), loader=1000)
    assert forecast(many, "h200").round_seconds == pytest.approx(41_000 / 1.83e9)


def test_gluon_walks_from_sequence_to_sequence():
    """140 sequences of eight pairs are 132 shares of nine; each cut by itself, they would be two rounds of eight."""
    turns = in_turns(64, Turn(700, HALF_PAIR, 0), Turn(800, HALF_PAIR, 0))
    latency, a_pair = 2 * 478.8 / 1.755e9, forecast(turns, "h200").round_seconds
    merged = 4 * 140 * 2 * 64 * 513 / 4.8e12 + 3 * latency
    assert predict_seconds(turns, "h200", 140, 1024) == pytest.approx(LAUNCH + latency + 9 * a_pair + merged)


def test_a_step_is_a_launch_the_longest_share_and_the_merge():
    """2**18 tokens in 128 shares of 32 tiles, which one load of the merge takes; 132 sequences of a tile, whole."""
    latency, rows = 2 * 478.8 / 1.755e9, 16
    fast = report(16, 10, overlap=1.0, own=float(TILE), tiles=Tiles(16, 64, 8, 5))
    a_tile = forecast(fast, "h200").round_seconds
    assert a_tile == pytest.approx(TILE / (4.8e12 / 132))
    merged = 4 * 128 * rows * 513 / 4.8e12 + (2 + 1) * latency
    assert predict_seconds(fast, "h200", 1, 2**18) == pytest.approx(LAUNCH + latency + 32 * a_tile + merged)
    whole = report(64, 10, overlap=1.0, own=float(TILE))
    assert predict_seconds(whole, "h200", 132, 64) == pytest.approx(
        LAUNCH + latency + forecast(whole, "h200").round_seconds
    )
    assert predict_seconds(report(16, 100, ahead=None), "h200", 1, 64) is None


def test_blocks_of_rows_share_the_bytes_of_memory():
    one, two = (forecast(report(heads, 10, programs=2, overlap=1.0, own=float(TILE)), "h200") for heads in (64, 128))
    assert (one.set_by, two.set_by) == ("memory", "products")
    assert one.of_product == pytest.approx(2 * 64 * 64 * 1088 / (989.4e12 / 132) / (TILE / (4.8e12 / 132)))


@pytest.mark.parametrize(
    "fields",
    [
        {"loop_instructions": None},
        {"executed_flops": None},
        {"shared_traffic": None},
        {"ahead": None},
        {"dtype": "fp32"},
    ],
)
def test_nothing_is_predicted_where_the_code_does_not_say_enough(fields):
    assert forecast(report(16, 100, **fields), "h100") is None


def test_another_architecture_is_refused():
    with pytest.raises(ValueError, match="report is for sm_90; expected sm_80, which a100-80gb is"):
        forecast(report(16, 100), "a100-80gb")
    with pytest.raises(ValueError, match="gpu is 'h300'; expected a100-80gb, rtx-4090, h100, h200"):
        forecast(report(16, 100), "h300")
    assert all(0.2e-6 < chip.idle_latency < 0.4e-6 for chip in CHIPS.values())
