"""A wrong kernel is caught: each mistake, made on purpose in a copy of the kernels, fails the comparison."""

import dataclasses
import importlib
import itertools
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mla_edu.kernels.problems import check_answer, random_problem
from mla_edu.kernels.tiles import Tiles

launch = pytest.importorskip("mla_edu.kernels.launch")
pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="needs the interpreter")

# file, what is right, what is put there instead
KERNEL = "kernel.py"
MISTAKES = {
    "keys past the end are seen": (KERNEL, "m_s = m_n[None, :]", "m_s = m_n[None, :] | True"),
    "rows past the end are loaded": (KERNEL, "m_d = m_rows[:, None] & (o_d", "m_d = (m_rows | True)[:, None] & (o_d"),
    "the mask is one token late": (KERNEL, "o_last = seq_len - S_Q + o_token", "o_last = seq_len - S_Q + o_token + 1"),
    "the mask counts from the front": (KERNEL, "o_last = seq_len - S_Q + o_token", "o_last = seq_len - 1 - o_token"),
    "the mask is forgotten": (KERNEL, "m_s = m_s & (o_n[None, :] <= o_last[:, None])", "pass"),
    "what was summed is not rescaled": (KERNEL, "tl.exp2(b_max - b_safe)", "tl.exp2(b_max - b_max)"),
    "the accumulator is not rescaled": (KERNEL, "* b_shrink[:, None]", "* 1.0"),
    "the scores are not scaled": (KERNEL, "b_s * scale", "b_s"),
    "natural instead of base 2": ("launch.py", "sm_scale * math.log2(math.e)", "sm_scale"),
    "the place in the page is lost": (KERNEL, "(o_n % PAGE_SIZE)", "(o_n - n)"),
    "the page is not looked up": (
        KERNEL,
        "page = tl.load(p_table + tl.cast(n // PAGE_SIZE, tl.int64) * stride_tp)",
        "page = tl.cast(n // PAGE_SIZE, tl.int64)",
    ),
    "the first page of the table is always used": (KERNEL, "(o_n // PAGE_SIZE)", "(o_n * 0)"),
    "the table of the first sequence is always used": (KERNEL, "p_table += batch * stride_tb", "p_table += 0"),
    "the merge forgets the weights": (KERNEL, "b_part * weight", "b_part"),
    "the merge does not rescale": (KERNEL, "b_acc * shrink", "b_acc"),
    "the merge loses a split": (KERNEL, "in range(used)", "in range(used - 1)"),
    "the merge mixes up rows": (KERNEL, "split) * NUM_ROWS + row", "split) * NUM_ROWS"),
    "partial results in the wrong place": (KERNEL, "split) * NUM_ROWS + o_row", "0) * NUM_ROWS + o_row"),
    "the first tile of a split is skipped": (
        KERNEL,
        "start = split * per_split",
        "start = split * per_split + BLOCK_N",
    ),
    "an empty sequence is skipped": (KERNEL, "split >= tl.maximum(used, 1)", "split >= used"),
    "lse in base 2": (KERNEL, "b_lse * 0.6931471805599453", "b_lse"),
    "lse of the merge in base 2": (KERNEL, " lse * 0.6931471805599453", " lse"),
    "heads and tokens change places in lse": (
        KERNEL,
        "batch * NUM_HEADS + o_head) * S_Q + o_token",
        "batch * NUM_HEADS) * S_Q + o_row",
    ),
    "the scales are used for keys only": (KERNEL, "b_p * b_scales[i] if FP8 else b_p", "b_p"),
    "the scales are used for values only": (KERNEL, "b_none, UPCAST) * b_scales[i]", "b_none, UPCAST)"),
    "a group's scale is its neighbour's": (KERNEL, "// 128", "// 256"),
    "the sign of fp8 is lost": (KERNEL, "((b_c & 0x80) << 8) | ", ""),
    "the rotary part is left out": (
        KERNEL,
        "b_s = matmul(b_q[NUM_CHUNKS], tl.trans(b_kv[NUM_CHUNKS]), b_s, UPCAST)",
        "pass",
    ),
    "the code of NaN in fp8 is a number": (KERNEL, " | ((b_rest + 1) & 0x80)", ""),
    "a NaN is lost where nothing was seen": (
        KERNEL,
        "b_total = tl.where(b_sum == 0.0, 1.0, b_sum)",
        "b_total = tl.where(b_sum > 0.0, b_sum, 1.0)",
    ),
    "a NaN is lost in the merge": (
        KERNEL,
        "total = tl.where(total == 0.0, 1.0, total)",
        "total = tl.where(total > 0.0, total, 1.0)",
    ),
    "a NaN reaches rows that do not see it": (KERNEL, "end = tl.minimum(end, unseen)", "pass"),
    "a NaN spares the rows that see it": (KERNEL, "tl.where(o_last >= unseen, ", "tl.where(o_last > seq_len, "),
    "a NaN among the new tokens' scales is not looked for": (KERNEL, "NUM_CHUNKS if FP8 else 0", "0"),
    "a NaN at the new tokens' first row is not looked for": (
        KERNEL,
        "(o_n > seq_len - S_Q)",
        "(o_n > seq_len - S_Q + 1)",
    ),
    "rows of a page in 32 bits": (KERNEL, "(o_n % PAGE_SIZE).to(tl.int64)", "(o_n % PAGE_SIZE)"),
    "numbers of a row in 32 bits": (KERNEL, "o_d.to(tl.int64)[None, :]", "o_d[None, :]"),
    "new tokens in 32 bits": (KERNEL, "o_token.to(tl.int64)", "o_token"),
    "heads in 32 bits": (KERNEL, "o_head.to(tl.int64)", "o_head"),
    "a tile's page in 32 bits": (KERNEL, "tl.cast(n // PAGE_SIZE, tl.int64)", "(o_n // PAGE_SIZE)"),
    "a row's page in 32 bits": (KERNEL, "(o_n // PAGE_SIZE).to(tl.int64)", "(o_n // PAGE_SIZE)"),
    "pages in 32 bits": (KERNEL, "page.to(tl.int64) * stride_kp", "page * stride_kp"),
}
WHOLE, CHUNKED = Tiles(16, 32, 4, 2), Tiles(16, 32, 8, 2, 4)
SMALL = {"kv_lora_rank": 128, "qk_rope_head_dim": 16}
TINY = {"kv_lora_rank": 3, "qk_rope_head_dim": 1, "dtype": "fp32"}
NAN = float("nan")
COUNTER = itertools.count()


def battery(decode, far_apart):
    """Few calls, small ones, that a right kernel answers."""

    def check(problem, moved=None, **options):
        moved = moved or problem
        check_answer(decode(*moved.tensors, **moved.options, **options), problem.expected())

    for tiles, page_size, num_splits in [(WHOLE, 64, 1), (CHUNKED, 64, 2), (WHOLE, 24, 3), (CHUNKED, 24, 1)]:
        shape = {"num_heads": 5, "s_q": 3, "dtype": "fp32", "page_size": page_size, "seed": num_splits}
        check(random_problem([130, 0, 75, 2], **shape, **SMALL), num_splits=num_splits, tiles=tiles)
    fp8 = random_problem([75, 33], num_heads=5, dtype="fp8_mla", kv_lora_rank=512)
    fp8.kv_cache[..., 512:528].view(torch.float32).mul_(torch.tensor([1.0, 4.0, 0.25, 2.0]))
    check(fp8, num_splits=1, tiles=CHUNKED)

    fp8 = random_problem([75], num_heads=5, s_q=3, dtype="fp8_mla", kv_lora_rank=128, page_size=75)
    fp8.kv_cache[fp8.block_table[0, 0], 74, 128:132].view(torch.float32).fill_(NAN)
    check(fp8, num_splits=1)
    fp8.kv_cache[fp8.block_table[0, 0], 40, 7] = 0x7F
    check(fp8, num_splits=1)
    for token, num_splits in [(73, 1), (74, 1), (40, 1), (40, 3)]:
        problem = random_problem([75], num_heads=5, s_q=3, dtype="fp32", page_size=75, **SMALL)
        problem.kv_cache[problem.block_table[0, 0], token, 100] = NAN
        check(problem, num_splits=num_splits)

    for name, dim, page_size, stride in [
        ("q", 1, 16, 2**30), ("q", 2, 16, 2**30), ("kv_cache", 0, 3, 2**29 + 2**28), ("kv_cache", 1, 3, 2**30),
        ("kv_cache", 2, 16, 2**30), ("block_table", 1, 16, 2**30), ("block_table", 1, 3, 2**30),
    ]:  # fmt: skip
        problem = random_problem([2 * page_size + 2], num_heads=3, s_q=3, page_size=page_size, **TINY)
        problem = dataclasses.replace(problem, block_table=problem.block_table[:, :3])
        moved = dataclasses.replace(problem, **{name: far_apart(getattr(problem, name), dim, stride)})
        check(problem, moved, num_splits=1, tiles=Tiles(16, 16, 8, 2))


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
        return importlib.import_module(f"{name}.launch")
    finally:
        sys.path.remove(str(folder))


def test_the_kernels_as_they_are_pass(tmp_path, far_apart, gpu_maximum):
    battery(copy_of_kernels(tmp_path, "none", "", "").decode, far_apart)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(tmp_path, mistake, far_apart, gpu_maximum):
    broken = copy_of_kernels(tmp_path, *MISTAKES[mistake])
    with pytest.raises(AssertionError, match="is off by|in the wrong places|cosine"):
        battery(broken.decode, far_apart)
