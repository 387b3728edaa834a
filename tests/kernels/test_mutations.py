"""A wrong kernel is caught: each mistake, made on purpose in a copy of the kernels, fails the comparison."""

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
BOTH = ["decode.py", "chunked.py"]
MISTAKES = {
    "keys past the end are seen": (BOTH, "m_s = m_n[None, :]", "m_s = m_n[None, :] | True"),
    "rows past the end are loaded": (["decode.py"], "mask=m_n[:, None] & (o_c < RANK)", "mask=(o_c < RANK)"),
    "the mask is one token late": (BOTH, "<= (seq_len - S_Q + o_token)", "<= (seq_len - S_Q + o_token + 1)"),
    "the mask counts from the front": (BOTH, "<= (seq_len - S_Q + o_token)", "<= (seq_len - 1 - o_token)"),
    "the mask is forgotten": (BOTH, "if CAUSAL and S_Q > 1:", "if False:"),
    "what was summed is not rescaled": (["blocks.py"], "tl.exp2(b_max - b_safe)", "tl.exp2(b_max - b_max)"),
    "the accumulator is not rescaled": (BOTH, "* b_shrink[:, None]", "* 1.0"),
    "the scores are not scaled": (BOTH, "b_s * scale", "b_s"),
    "natural instead of base 2": (["launch.py"], "sm_scale * math.log2(math.e)", "sm_scale"),
    "the place in the page is lost": (["blocks.py"], "(n % PAGE_SIZE + o_n)", "o_n"),
    "the place in the page, of a tile over several": (["blocks.py"], "((n + o_n) % PAGE_SIZE)", "(o_n % PAGE_SIZE)"),
    "the page is not looked up": (
        ["blocks.py"],
        "page = tl.load(p_table + (n // PAGE_SIZE) * stride_tp)",
        "page = n // PAGE_SIZE",
    ),
    "the first page of the table is always used": (["blocks.py"], "((n + o_n) // PAGE_SIZE) * stride_tp", "o_n * 0"),
    "the table of the first sequence is always used": (BOTH, "p_table += batch * stride_tb", "p_table += 0"),
    "the merge forgets the weights": (["merge.py"], "b_part * weight", "b_part"),
    "the merge does not rescale": (["merge.py"], "b_acc * shrink", "b_acc"),
    "the merge loses a split": (["merge.py"], "in range(used)", "in range(used - 1)"),
    "the merge mixes up rows": (["merge.py"], "split) * NUM_ROWS + row", "split) * NUM_ROWS"),
    "partial results in the wrong place": (BOTH, "num_splits + split) * NUM_ROWS", "num_splits) * NUM_ROWS"),
    "the first tile of a split is skipped": (
        ["blocks.py"],
        "start = split * per_split",
        "start = split * per_split + BLOCK_N",
    ),
    "an empty sequence is skipped": (BOTH, "split >= tl.maximum(used, 1)", "split >= used"),
    "lse in base 2": (["blocks.py"], "b_lse * 0.6931471805599453", "b_lse"),
    "lse of the merge in base 2": (["merge.py"], "lse * 0.6931471805599453", "lse"),
    "heads and tokens change places in lse": (
        ["blocks.py"],
        "o_row % NUM_HEADS) * S_Q + o_row // NUM_HEADS",
        "0) + o_row",
    ),
    "the scales are used for keys only": (["chunked.py"], "b_p * b_g2[None, :]", "b_p * b_g1[None, :]"),
    "the scales are used for values only": (["chunked.py"], "b_none, UPCAST) * b_g3[None, :]", "b_none, UPCAST)"),
    "a group's scale is its neighbour's": (["chunked.py"], "// 128", "// 256"),
    "the sign of fp8 is lost": (["chunked.py"], "((b_c & 0x80) << 8) | ", ""),
    "the rotary part is left out": (BOTH, "b_s = matmul(b_qr, tl.trans(b_r), b_s, UPCAST)", "pass"),
}
WHOLE, CHUNKED = Tiles(16, 32, 4, 2), Tiles(16, 32, 8, 2, True)
SMALL = {"kv_lora_rank": 128, "qk_rope_head_dim": 16}
COUNTER = itertools.count()


def battery(decode):
    """Few calls, small ones, that a right kernel answers: whole and chunked, one split and several, fp32 and fp8."""
    for tiles, page_size, num_splits in [(WHOLE, 64, 1), (CHUNKED, 64, 2), (WHOLE, 24, 3), (CHUNKED, 24, 1)]:
        problem = random_problem(
            [130, 0, 75, 2], num_heads=5, s_q=3, dtype=torch.float32, page_size=page_size, seed=num_splits, **SMALL
        )
        answer = decode(*problem.tensors, **problem.options, num_splits=num_splits, tiles=tiles)
        check_answer(answer, problem.expected())
    problem = random_problem([75, 33], num_heads=5, fp8=True, kv_lora_rank=512)
    problem.kv_cache[..., 512:528].view(torch.float32).mul_(torch.tensor([1.0, 4.0, 0.25, 2.0]))
    answer = decode(*problem.tensors, **problem.options, num_splits=1, tiles=CHUNKED)
    check_answer(answer, problem.expected())


def copy_of_kernels(folder: Path, files: list[str], right: str, wrong: str):
    """The launcher of a copy of the kernels in which ``right`` was replaced."""
    name = f"kernels_{next(COUNTER)}"
    shutil.copytree(Path(launch.__file__).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / name / "__init__.py").write_text("")
    for path in (folder / name).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name in files:
            assert right in text, f"{path.name} no longer has {right!r}"
            text = text.replace(right, wrong)
        path.write_text(text.replace("mla_edu.kernels", name), encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(f"{name}.launch")
    finally:
        sys.path.remove(str(folder))


def test_the_kernels_as_they_are_pass(tmp_path):
    battery(copy_of_kernels(tmp_path, [], "", "").decode)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_caught(tmp_path, mistake):
    broken = copy_of_kernels(tmp_path, *MISTAKES[mistake])
    with pytest.raises(AssertionError, match="is off by|has the wrong shape|cosine"):
        battery(broken.decode)
