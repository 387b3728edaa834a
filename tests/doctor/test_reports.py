"""Public reports, rebuilt from the figures that they print: what the doctor says of each.

``mistakes`` is what the report itself found, where it says so, or what its formula does; a report whose figure none of
the known mistakes gives has None. A log is quoted as printed, as far as its memory lines go.
"""

from typing import NamedTuple

import pytest

from mla_edu.cost import Parallelism
from mla_edu.doctor import diagnose, parse_figure, read_log

EXPANDED = "keys and values expanded to every head"
TP4 = Parallelism(tensor=4)


class Report(NamedTuple):
    """One figure."""

    where: str  # on GitHub
    model: str
    tokens: int
    seen: str  # a size
    mistakes: tuple[str, ...] | None
    dtype: str = "bf16"
    layout: Parallelism | None = None


REPORTS = [
    # 3.67 GiB before MLA was enabled, 0.21 GiB after, "for 4096 tokens"
    Report("intel/llm-scaler/pull/334", "glm-4.7-flash", 4096, "3.67 GiB", (EXPANDED,)),
    Report("intel/llm-scaler/pull/334", "glm-4.7-flash", 4096, "0.21 GiB", ()),
    # Bytes per token, and of 128K tokens; its KB are KiB
    Report("Blaizzy/mlx-vlm/pull/1284", "deepseek-v2", 1, "67.5 KiB", ()),
    Report("Blaizzy/mlx-vlm/pull/1284", "deepseek-v2", 1, "38.4 KiB", (), "fp8_mla"),
    Report("Blaizzy/mlx-vlm/pull/1284", "deepseek-v2", 131_072, "9.06 GB", ()),
    Report("Blaizzy/mlx-vlm/pull/1284", "deepseek-v2", 131_072, "5.16 GB", (), "fp8_mla"),
    # "2 x 43 x 1 x 512 x 2 B = 88,064 B/token, 86.0 GB at 1M context": every token, key and value
    Report(
        "spark-arena/sparkrun/pull/247",
        "deepseek-v4-flash",
        2**20,
        "86.0 GiB",
        ("times two", "every token kept, though blocks are pooled"),
    ),
    # 16.40 GB at 200,000 tokens, by the same formula
    Report(
        "spark-arena/sparkrun/issues/248",
        "deepseek-v4-flash",
        200_000,
        "16.40 GiB",
        ("times two", "every token kept, though blocks are pooled"),
    ),
    # 2 x layers x kv_heads x head_size, "overestimating ~25x": of the latent without its index keys
    Report(
        "NVIDIA/TensorRT-LLM/pull/16707",
        "deepseek-v3",
        1,
        f"{25 * 61 * 576 * 2} B",
        ("keys and values of hidden_size / heads for every head",),
    ),
    # "inflated kv_size_per_token from ~45K to ~86K": 61 layers for the draft's too
    Report("NVIDIA/TensorRT-LLM/pull/12683", "deepseek-v3.2", 1, "86 kB", ("layers counted twice",), "fp8"),
    # "2 x L x S x d_c x B", with the numbers of DeepSeek-V3
    Report("LMCache/LMCache/pull/694", "deepseek-v3", 1, f"{2 * 61 * 512 * 2} B", ("times two", "rotary key left out")),
    # "bytesPerToken / gpuCount", though each GPU holds the latent
    Report(
        "kaito-project/kaito/pull/2139",
        "deepseek-v3",
        1,
        f"{61 * 576 * 2 // 8} B",
        ("divided by the GPUs, though each holds a copy",),
        layout=Parallelism(tensor=8),
    ),
    # 2 n_kv_heads (1 in the file) x (embedding / heads); beside it, the right figure; GiB, at the models' full context
    Report(
        "unslothai/unsloth/pull/4757",
        "deepseek-v3.1",
        163_840,
        "2.08 GiB",
        ("one key and value of hidden_size / heads",),
    ),
    Report("unslothai/unsloth/pull/4757", "deepseek-v3.1", 163_840, "10.72 GiB", ()),
    Report(
        "unslothai/unsloth/pull/4757", "kimi-k2.5", 262_144, "6.67 GiB", ("one key and value of hidden_size / heads",)
    ),
    Report("unslothai/unsloth/pull/4757", "kimi-k2.5", 262_144, "17.16 GiB", ()),
    Report("unslothai/unsloth/pull/4757", "glm-5", 202_752, "17.18 GiB", ("keys of the indexer left out",)),
    # 4.5 GiB at 8K and 72 GiB at 128K, before the latent was cached
    Report("ml-explore/mlx-lm/pull/1037", "mistral-small-4-119b", 8192, "4.5 GiB", (EXPANDED,)),
    Report("ml-explore/mlx-lm/pull/1037", "mistral-small-4-119b", 131_072, "72 GiB", (EXPANDED,)),
    # 5120 against 576 numbers per token and layer of V2-Lite; and 6144, with values as wide as keys
    Report("ml-explore/mlx-lm/pull/1509", "deepseek-v2-lite", 1, f"{27 * 5120 * 2} B", (EXPANDED,)),
    Report("kekzl/imp/pull/803", "deepseek-v2-lite", 1, f"{27 * 6144 * 2} B", (EXPANDED + ", values as wide as keys",)),
    # n_layer (576 + 512) values with the transposed copy
    Report("ikawrakow/ik_llama.cpp/pull/235", "deepseek-v3", 1, "129.6 KiB", ("V stored beside the latent",)),
    # "measured 37,032 vs 54,728 B/token all layers": the layer for multi-token prediction among them
    Report("local-inference-lab/vllm/pull/82", "glm-5.2", 1, "37032 B", (), "fp4_mla_432"),
    Report("local-inference-lab/vllm/pull/82", "glm-5.2", 1, "54728 B", (), "fp8_mla"),
    # None of these: 16 heads were taken for 128; a factor of heads / 4; compute buffers counted in
    Report("ikawrakow/ik_llama.cpp/pull/235", "deepseek-v3", 1, "610 KiB", None),
    Report("jranaraki/vllm-fit/issues/2", "llama-2-7b", 1, f"{2 * 32 * 32 * 4096 * 4 // 8} B", None),
    Report("gpustack/gguf-parser-go/issues/8", "deepseek-v3", 65_536, "321.09 GiB", None),
]

LOGS = [
    (
        "ollama/ollama/issues/13789",
        "glm-4.7-flash",
        """ollama version: 0.14.3
time=2026-01-20T16:34:21.526+08:00 level=INFO source=device.go:251 msg="kv cache" device=CUDA0 size="800.0 MiB"
time=2026-01-20T16:34:21.526+08:00 level=INFO source=device.go:256 msg="kv cache" device=CPU size="6.6 GiB"
glm-4.7-flash:latest    ff14144f31df    26 GB    88%/12% CPU/GPU    8192       Forever
""",
        8192,  # which ollama's lines about memory do not repeat
        (EXPANDED,),
        None,
    ),
    (
        "ggml-org/llama.cpp/pull/11446",
        "deepseek-r1",
        """llama_init_from_model: n_ctx_per_seq (32768) < n_ctx_train (163840)
llama_kv_cache_init: kv_size = 32768, offload = 1, type_k = 'f16', type_v = 'f16', n_layer = 61, can_shift = 0
llama_kv_cache_init:      CUDA0 KV buffer size =  2110.42 MiB
llama_kv_cache_init:      CUDA1 KV buffer size =  2042.34 MiB
llama_init_from_model: KV self size  =    4.77 MiB, K (f16):    2.86 MiB, V (f16):    1.91 MiB
llama_init_from_model: KV self size  = 2196.00 MiB, K^R (f16):  244.00 MiB, c^KV (f16): 1952.00 MiB
""",
        None,
        ("V stored beside the latent",),
        None,
    ),
    (
        "ikawrakow/ik_llama.cpp/pull/259",
        "deepseek-r1",
        """llama_kv_cache_init:      CUDA0 KV buffer size =  1166.65 MiB
llama_new_context_with_model: KV self size  = 1166.62 MiB, c^KV (q8_0): 1166.62 MiB, kv^T: not used
INFO [                    init] new slot | tid="137362671300608" timestamp=1742136993 id_slot=0 n_ctx_slot=32768
""",
        32_768,
        ("in q8_0 instead of bf16",),
        None,
    ),
    (
        "vllm-project/vllm/pull/10927",
        "deepseek-v2-lite",
        """INFO 12-06 07:43:16 worker.py:235] Memory profiling results: duration=1.09 seconds, \
total_gpu_memory=79.10GiB, initial_memory_usage=34.44GiB, peak_torch_memory=30.56GiB, \
memory_usage_post_profile=34.81GiB, non_torch_memory=5.21GiB, kv_cache_size=35.42GiB, gpu_memory_utilization=0.90.
INFO 12-06 07:43:16 gpu_executor.py:76] # GPU blocks: 5373, # CPU blocks: 606
""",
        None,
        (EXPANDED + ", padded to a power of two",),
        None,
    ),
    (
        "vllm-project/vllm/issues/15871",
        "deepseek-v2-lite",
        """ERROR 04-02 12:33:23 [core.py:380] ValueError: To serve at least one request with the models's max seq len \
(32768), (0.95 GiB KV cache is needed, which is larger than the available KV cache memory (0.93 GiB).
""",
        None,
        (),
        None,
    ),
    (
        "vllm-project/vllm/issues/21348",
        "qwen3-235b-a22b",
        "Available KV cache memory: 8.11 GiB\nGPU KV cache size: 178,880 tokens\n",
        None,
        (),
        TP4,
    ),
    (
        "vllm-project/vllm/issues/21348",
        "qwen3-235b-a22b",
        "KV Cache is allocated. #tokens: 367404, K size: 8.23 GB, V size: 8.23 GB\n",
        None,
        (),
        TP4,
    ),
]


def check(found, mistakes):
    if mistakes is None:
        assert found.explanations == () and not found.agrees
        return
    assert mistakes in [each.mistakes for each in found.explanations]
    assert found.agrees is (mistakes == ())
    assert all(abs(each.error) <= 0.02 for each in found.explanations)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: f"{report.where} {report.seen}")
def test_a_figure(report):
    seen = parse_figure(report.seen)
    check(diagnose(report.model, report.tokens, seen, report.layout, dtype=report.dtype), report.mistakes)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log[0])
def test_a_log(log, tmp_path):
    _where, model, text, tokens, mistakes, layout = log
    (tmp_path / "log").write_text(text)
    reading = read_log(tmp_path / "log")
    assert (reading.tokens is None) is (tokens is not None)
    check(diagnose(model, reading.tokens or tokens, reading.figure, layout), mistakes)


def test_the_layer_for_multi_token_prediction_explains_the_rest_to_the_byte():
    for seen, dtype in ((37_032, "fp4_mla_432"), (54_728, "fp8_mla")):
        found = diagnose("glm-5.2", 1, parse_figure(f"{seen} B"), dtype=dtype, tolerance=0.001)
        assert [(each.mistakes, each.bytes) for each in found.explanations] == [
            (("a layer more, as for multi-token prediction",), seen)
        ]


def test_there_are_enough_reports():
    explained = {report.where for report in REPORTS if report.mistakes is not None} | {log[0] for log in LOGS}
    assert len(explained) >= 12
