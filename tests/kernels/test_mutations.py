"""A wrong kernel is caught: each mistake, made on purpose in a copy of the kernels, fails the comparison."""

import dataclasses
import importlib
import itertools
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mla_edu.kernels.plan import GPU
from mla_edu.kernels.problems import NO_PAGE, check_answer, random_problem
from mla_edu.kernels.tiles import Tiles

launch = pytest.importorskip("mla_edu.kernels.launch")
pytestmark = [pytest.mark.long, pytest.mark.skipif(not launch.INTERPRETED, reason="needs the interpreter")]

# file, what is right, what is put there instead
KERNEL, ROWS = "kernel.py", "rows.py"
MISTAKES = {
    "keys past the end are seen": (KERNEL, "m_s = m_n[None, :]", "m_s = m_n[None, :] | True"),
    "rows past the end are loaded": (ROWS, "m_d = m_rows[:, None] & (o_d", "m_d = (m_rows | True)[:, None] & (o_d"),
    "the mask is one token late": (KERNEL, "o_last = seq_len - S_Q + o_token", "o_last = seq_len - S_Q + o_token + 1"),
    "the mask counts from the front": (KERNEL, "o_last = seq_len - S_Q + o_token", "o_last = seq_len - 1 - o_token"),
    "the mask is forgotten": (KERNEL, "m_s = m_s & (o_n[None, :] <= o_last[:, None])", "pass"),
    "what was summed is not rescaled": (KERNEL, "tl.exp2(b_max - b_safe)", "tl.exp2(b_max - b_max)"),
    "the accumulator is not rescaled": (KERNEL, "b_acc[i] * b_shrink[:, None]", "b_acc[i] * 1.0"),
    "the scores are not scaled": (KERNEL, "b_s * scale", "b_s"),
    "natural instead of base 2": ("launch.py", "sm_scale * math.log2(math.e)", "sm_scale"),
    "the place in the page is lost": (ROWS, "o_place = o_n % PAGE_SIZE", "o_place = o_n - n"),
    "the place in a page is lost where a tile is of whole pages": (
        ROWS,
        "tl.arange(0, BLOCK_N) % PAGE_SIZE",
        "tl.arange(0, BLOCK_N)",
    ),
    "every tile begins at the front of its page": (ROWS, "o_place = n % PAGE_SIZE + ", "o_place = "),
    "a tile goes on past the end of its page": (ROWS, "o_place = n % PAGE_SIZE + ", "o_place = n + "),
    "a tile is looked for in the page of the one before": (
        ROWS,
        "tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp, mask",
        "tl.cast(tl.maximum(n - BLOCK_N, 0) // PAGE_SIZE, tl.int64) * stride_tp, mask",
    ),
    "a tile of whole pages has only its first": (ROWS, "o_page.to(tl.int64) * stride_tp", "0 * o_page"),
    "the page is not looked up": (
        ROWS,
        "page = tl.load(p_table + tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp, mask=n < end, other=0)",
        "page = tl.cast(n // PAGE_SIZE, tl.int64)",
    ),
    "the first page of the table is always used": (ROWS, "(o_n // PAGE_SIZE)", "(o_n * 0)"),
    "the table of the first sequence is always used": (
        KERNEL,
        "p_pages = p_table + b * stride_tb",
        "p_pages = p_table",
    ),
    "the queries of the first sequence are always used": (KERNEL, "p_q + b * stride_qb + ", "p_q + "),
    "a share begins a tile late": (ROWS, "tile = share * per_share", "tile = share * per_share + 1"),
    "a share ends a tile early": (
        ROWS,
        "tl.minimum(tile + per_share, total)",
        "tl.minimum(tile + per_share - 1, total)",
    ),
    "what is left over belongs to no share": (
        ROWS,
        "tl.maximum(tl.cdiv(total, num_shares), ",
        "tl.maximum(total // num_shares, ",
    ),
    "sequences past the first 128 begin at the front": (ROWS, "before += tl.sum(b_tiles, 0)", "before += 0"),
    "only the first 128 sequences are shared out": (ROWS, "total += tl.sum(", "total = total if b > 0 else tl.sum("),
    "a share keeps to its first sequence": (
        KERNEL,
        "sequence = stop, offset + tiles, sequence + 1",
        "sequence = last, 0, 0",
    ),
    "a part by length begins a tile late": (ROWS, "(part - first) * each", "(part - first) * each + 1"),
    "parts are counted from the front of the batch": (ROWS, "(part - first) * each", "part * each"),
    "a sequence has the first part of the next": (ROWS, "(b_end <= part)", "(b_end < part)"),
    "parts past 128 sequences are those of the first": (ROWS, "before += tl.sum(b_parts, 0)", "before += 0"),
    "a part by length is a tile too short": (
        ROWS,
        "each = tiles_of_part(tiles, share)",
        "each = tl.cdiv(tiles, share)",
    ),
    "the merge counts a part too few": (KERNEL, ") - offset // per_share)", ") - offset // per_share - 1)"),
    "the merge takes the parts of the first sequence": (KERNEL, "(first + o_part)", "(first * 0 + o_part)"),
    "parts of neighbours share a place": (KERNEL, "share + sequence if EVEN", "share if EVEN"),
    "the merge forgets the weights": (KERNEL, "b_part * b_weight[:, :, None]", "b_part"),
    "the merge does not rescale": (KERNEL, "b_acc * b_shrink[:, None] + ", "b_acc + "),
    "the merge loses a part": (KERNEL, "m_part = o_part < num_parts", "m_part = o_part < num_parts - 1"),
    "the merge adds what lies behind its parts": (KERNEL, "m_part = o_part < num_parts", "m_part = o_part >= 0"),
    "the merge stops after its first tile": (KERNEL, "range(0, num_parts, BLOCK_P)", "range(0, 1, BLOCK_P)"),
    "the merge begins its second tile anew": (
        KERNEL,
        "o_part = i + tl.arange(0, BLOCK_P)",
        "o_part = tl.arange(0, BLOCK_P)",
    ),
    "the merge counts columns from the front": (KERNEL, "tl.program_id(1) * BLOCK_C", "0 * BLOCK_C"),
    "the merge mixes up rows": (KERNEL, "* NUM_ROWS + o_row[None, :]", "* NUM_ROWS + 0 * o_row[None, :]"),
    "partial results in the wrong place": (KERNEL, "part * NUM_ROWS + block * BLOCK_H", "block * BLOCK_H"),
    "blocks of rows share a place": (KERNEL, "b * NUM_ROWS + block * BLOCK_H", "b * NUM_ROWS"),
    "the first tile of a part is skipped": (
        KERNEL,
        "start, end = (tile - offset) * BLOCK_N",
        "start, end = (tile - offset + 1) * BLOCK_N",
    ),
    "an empty sequence is skipped": (ROWS, "tl.maximum(tl.cdiv(lens, BLOCK_N), 1)", "tl.cdiv(lens, BLOCK_N)"),
    "lse in base 2": (KERNEL, "b_lse * 0.6931471805599453", "b_lse"),
    "lse of the merge in base 2": (KERNEL, "tl.log2(b_total)) * 0.6931471805599453", "tl.log2(b_total))"),
    "heads and tokens change places in lse": (
        KERNEL,
        "o_lse = (b * NUM_HEADS + o_row % NUM_HEADS) * S_Q + o_row // NUM_HEADS",
        "o_lse = b * NUM_HEADS * S_Q + o_row",
    ),
    "the scales are used for keys only": (KERNEL, "b_p * b_scales[i] if FP8 else b_p", "b_p"),
    "the scales are used for values only": (KERNEL, "b_none, UPCAST) * b_scales[i]", "b_none, UPCAST)"),
    "a group's scale is its neighbour's": (ROWS, "RANK - 1) // 128", "RANK - 1) // 256"),
    "the sign of fp8 is lost": (ROWS, "((b_c & 0x80) << 8) | ", ""),
    "another format of eight bits": (ROWS, "tl.float8e4nv", "tl.float8e5"),
    "numbers of fp8 are 2**-8 too small": (KERNEL, "b_g if CONVERT else b_g * 256.0", "b_g"),
    "the tile that was loaded ahead is used at once": (KERNEL, "b_next if AHEAD else b_load", "b_load"),
    "the same tile is loaded again": (KERNEL, "n_load = n + BLOCK_N if AHEAD else n", "n_load = n"),
    "the tile after the next is loaded": (
        KERNEL,
        "n_load = n + BLOCK_N if AHEAD else n",
        "n_load = n + 2 * BLOCK_N if AHEAD else n",
    ),
    "what lies past the end is loaded ahead": (KERNEL, "m_load = n_load + ", "m_load = n + "),
    "the exponent of fp8 is in the wrong place": (ROWS, "((b_rest + 1) & 0x80)) << 7)", "((b_rest + 1) & 0x80)) << 6)"),
    "the rotary part is left out": (
        KERNEL,
        "b_s = matmul(b_q[NUM_CHUNKS], tl.trans(b_rows[NUM_CHUNKS]), b_s, UPCAST)",
        "pass",
    ),
    "the code of NaN in fp8 is a number": (ROWS, " | ((b_rest + 1) & 0x80)", ""),
    "a NaN is lost where nothing was seen": (
        KERNEL,
        "b_total = tl.where(b_sum == 0.0, 1.0, b_sum)",
        "b_total = tl.where(b_sum > 0.0, b_sum, 1.0)",
    ),
    "a NaN is lost in the merge": (
        KERNEL,
        "b_total = tl.where(b_total == 0.0, 1.0, b_total)",
        "b_total = tl.where(b_total > 0.0, b_total, 1.0)",
    ),
    "a NaN reaches rows that do not see it": (KERNEL, "tl.minimum(end, unseen)", "end"),
    "a NaN spares the rows that see it": (KERNEL, "tl.where(o_last >= unseen, ", "tl.where(o_last > seq_len, "),
    "a NaN among the new tokens' scales is not looked for": (KERNEL, "b_zero += b_kv[i] * 0.0", "b_zero += 0.0"),
    "a NaN at the new tokens' first row is not looked for": (
        KERNEL,
        "(o_n > seq_len - S_Q)",
        "(o_n > seq_len - S_Q + 1)",
    ),
    "rows of a page in 32 bits": (ROWS, "o_place.to(tl.int64)", "o_place"),
    "numbers of a row in 32 bits": (ROWS, "o_d.to(tl.int64)[None, :]", "o_d[None, :]"),
    "new tokens in 32 bits": (KERNEL, "o_token.to(tl.int64)", "o_token"),
    "heads in 32 bits": (KERNEL, "o_head.to(tl.int64)", "o_head"),
    "a tile's page in 32 bits": (
        ROWS,
        "p_table + tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp, mask",
        "p_table + (o_n // PAGE_SIZE) * stride_tp, mask",
    ),
    "one of a tile's pages in 32 bits": (ROWS, "o_page.to(tl.int64)", "o_page"),
    "a row's page in 32 bits": (ROWS, "(o_n // PAGE_SIZE).to(tl.int64)", "(o_n // PAGE_SIZE)"),
    "pages in 32 bits": (ROWS, "page.to(tl.int64) * stride_kp", "page * stride_kp"),
}
WHOLE, CHUNKED, SHORT = Tiles(16, 32, 4, 2), Tiles(16, 32, 8, 2, 4), Tiles(16, 16, 8, 2)
TALL = Tiles(64, 16, 8, 2)  # whose programs have one part of one sequence each
SMALL = {"kv_lora_rank": 128, "qk_rope_head_dim": 16}
TINY = {"kv_lora_rank": 3, "qk_rope_head_dim": 1, "dtype": "fp32"}
NAN = float("nan")
COUNTER = itertools.count()


def battery(launcher, far_apart):
    """Few calls, small ones, that a right kernel answers."""

    def check(problem, moved=None, multiprocessors=1, arch="sm_90", **options):
        moved = moved or problem
        launcher.describe_gpu = lambda device: GPU(arch, 232_448, multiprocessors)
        batch, s_q, heads, _ = moved.q.shape
        room = batch + 200  # for a mistake that writes results of sequences that there are not
        out = moved.q.new_full((room, s_q, heads, moved.kv_lora_rank), NAN)[:batch]
        workspace = torch.full((2**22,), 0xFF, dtype=torch.uint8)  # NaN in fp32; of parts, fewer than none
        buffers = {"out": out, "lse": torch.full((room, heads, s_q), NAN)[:batch], "workspace": workspace}
        check_answer(launcher.decode(*moved.tensors, **moved.options, **options, **buffers), problem.expected())

    def even(lens, **shape):
        """A step whose tensors go on, with NaN and pages of NaN, wherever a mistake may look."""
        problem = random_problem(lens, **shape)
        batch, width = problem.block_table.shape
        unused = next(i for i in range(len(problem.kv_cache)) if i not in problem.block_table)
        table = torch.full((batch + 200, width + 200), unused, dtype=torch.int32)
        table[:batch, :width] = problem.block_table.where(problem.block_table != NO_PAGE, unused)
        q, lens = problem.q.new_full((batch + 200, *problem.q.shape[1:]), NAN), torch.ones(batch + 200).int()
        q[:batch], lens[:batch] = problem.q, problem.seq_lens
        return dataclasses.replace(problem, q=q[:batch], seq_lens=lens[:batch], block_table=table[:batch, :width])

    for tiles, page_size, num_splits in [(WHOLE, 64, 1), (CHUNKED, 64, 2), (WHOLE, 24, 3), (CHUNKED, 8, 1)]:
        shape = {"num_heads": 5, "s_q": 3, "dtype": "fp32", "page_size": page_size, "seed": num_splits}
        check(random_problem([130, 0, 75, 2], **shape, **SMALL), num_splits=num_splits, tiles=tiles)
    check(random_problem([3, 20], num_heads=20, **TINY), num_splits=1, tiles=SHORT)
    shape = {"num_heads": 5, "dtype": "fp32", **SMALL}
    for lens, multiprocessors in [([130, 0, 75, 2, 64, 64], 3), ([64, 64, 32, 128], 9)]:
        check(even(lens, **shape), multiprocessors=multiprocessors, tiles=WHOLE)
    long = even([500, 1, 1, 0, 3], **shape)  # more parts than the merge takes at a time, and the last matter most
    long.kv_cache[long.block_table[0, 7]] *= 4
    check(long, multiprocessors=16, tiles=WHOLE)
    check(even([500], **shape), multiprocessors=16, tiles=WHOLE)  # whose merge takes its columns in two blocks
    check(even([130, 0, 75, 2, 64, 64], **shape), multiprocessors=3, tiles=TALL)
    for arch in ("sm_90", "sm_80"):
        fp8 = random_problem([75, 33], num_heads=5, dtype="fp8_mla", kv_lora_rank=512)
        fp8.kv_cache[..., 512:528].view(torch.float32).mul_(torch.tensor([1.0, 4.0, 0.25, 2.0]))
        check(fp8, num_splits=1, tiles=CHUNKED, arch=arch)
        fp8 = random_problem([75], num_heads=5, s_q=3, dtype="fp8_mla", kv_lora_rank=128, page_size=75)
        fp8.kv_cache[fp8.block_table[0, 0], 74, 128:132].view(torch.float32).fill_(NAN)
        check(fp8, num_splits=1, arch=arch)
        fp8.kv_cache[fp8.block_table[0, 0], 40, 7] = 0x7F
        check(fp8, num_splits=1, arch=arch)
    for token, num_splits in [(73, 1), (74, 1), (40, 1), (40, 3)]:
        problem = random_problem([75], num_heads=5, s_q=3, dtype="fp32", page_size=75, **SMALL)
        problem.kv_cache[problem.block_table[0, 0], token, 100] = NAN
        check(problem, num_splits=num_splits)

    many = even([3, 0, 40] * 44 + [100], num_heads=1, page_size=16, **TINY)  # more than one look at the lengths takes
    check(many, multiprocessors=20, tiles=SHORT)
    check(many, tiles=TALL)

    for name, dim, page_size, stride in [
        ("q", 1, 16, 2**30), ("q", 2, 16, 2**30), ("kv_cache", 0, 3, 2**29 + 2**28), ("kv_cache", 1, 3, 2**30),
        ("kv_cache", 2, 16, 2**30), ("block_table", 1, 16, 2**30), ("block_table", 1, 3, 2**30),
        ("block_table", 1, 4, 2**30),
    ]:  # fmt: skip
        problem = random_problem([2 * page_size + 2], num_heads=3, s_q=3, page_size=page_size, **TINY)
        problem = dataclasses.replace(problem, block_table=problem.block_table[:, :3])
        moved = dataclasses.replace(problem, **{name: far_apart(getattr(problem, name), dim, stride)})
        check(problem, moved, num_splits=1, tiles=SHORT)


def copy_of_kernels(folder: Path, file: str, right: str, wrong: str):
    """The launcher of a copy of the kernels in which ``right`` was replaced."""
    name = f"kernels_{next(COUNTER)}"
    shutil.copytree(Path(launch.__file__).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / name / "__init__.py").write_text("")
    for path in (folder / name).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == file:
            assert right in text, f"{path.name} no longer has {right!r}"
            text = text.replace(right, wrong)
        path.write_text(text.replace("mla_edu.kernels", name), encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module(f"{name}.plan").MIN_SHARE = 16
        return importlib.import_module(f"{name}.launch")
    finally:
        sys.path.remove(str(folder))


def test_the_kernels_as_they_are_pass(tmp_path, far_apart, gpu_maximum):
    battery(copy_of_kernels(tmp_path, "none", "", ""), far_apart)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(tmp_path, mistake, far_apart, gpu_maximum):
    broken = copy_of_kernels(tmp_path, *MISTAKES[mistake])
    with pytest.raises(AssertionError, match="is off by|in the wrong places|cosine"):
        battery(broken, far_apart)


@pytest.mark.parametrize(
    ("mistake", "page_size", "block_n"),
    [
        ("every tile begins at the front of its page", 64, 32),
        ("every tile begins at the front of its page", 128, 32),
        ("every tile begins at the front of its page", 128, 64),
        ("a tile goes on past the end of its page", 64, 64),
        ("a tile goes on past the end of its page", 128, 64),
        ("a tile is looked for in the page of the one before", 64, 64),
        ("a tile is looked for in the page of the one before", 128, 64),
    ],
)
def test_a_wrong_place_is_caught_whatever_part_of_a_page_a_tile_is(tmp_path, mistake, page_size, block_n, gpu_maximum):
    problem = random_problem([page_size + 75], num_heads=5, page_size=page_size, dtype="fp32", **SMALL)
    tiles = Tiles(16, block_n, 8, 2)
    check_answer(launch.decode(*problem.tensors, **problem.options, tiles=tiles), problem.expected())
    broken = copy_of_kernels(tmp_path, *MISTAKES[mistake])
    with pytest.raises(AssertionError, match="is off by|in the wrong places|cosine"):
        check_answer(broken.decode(*problem.tensors, **problem.options, tiles=tiles), problem.expected())
