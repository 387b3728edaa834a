"""What a public function raises for a bad argument is what its docstring lists, and the error names an argument."""

import inspect
import re

import pytest
import torch

from mla_edu import cost
from mla_edu.cache import (
    KVCache,
    LatentCache,
    PageAllocator,
    PagedKVCache,
    PagedLatentCache,
    PageTable,
    SequenceTable,
    StateCache,
)
from mla_edu.config import GQAConfig, Mamba2Config, MLAConfig
from mla_edu.doctor import diagnose, parse_figure, read_log
from mla_edu.hf import config_from_hf, read_hf_config, spec_from_hf
from mla_edu.kernels import join_rows, mla_decode, workspace_bytes
from mla_edu.layers import GroupedQueryAttention, MultiHeadLatentAttention
from mla_edu.layers.mlp import SwiGLU
from mla_edu.models import Decoder, ModelCache, ModelConfig, generate
from mla_edu.ops.rope import rope_frequencies
from mla_edu.registry import get_gpu, get_model
from mla_edu.serving import Engine, MTPDrafter, NGramDrafter, SamplingParams
from mla_edu.train.corpus import standard_library, text_files
from mla_edu.train.settings import RunConfig

MLA = MLAConfig(
    hidden_size=64,
    num_attention_heads=4,
    q_lora_rank=None,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=16,
)
GQA = GQAConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
MAMBA2 = Mamba2Config(hidden_size=64, num_heads=4, head_dim=16, state_size=8)
MODEL = ModelConfig(vocab_size=50, hidden_size=64, layers=("gqa", "mla"), intermediate_size=32, gqa=GQA, mla=MLA)
DECODER = Decoder(MODEL)
LAYOUT = cost.Parallelism(tensor=2)
TABLE, PAGES = SequenceTable(2, 8), PageTable(8, 2, 2)
ENGINE = Engine(DECODER, 8, 4)
HF = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 50}
ROW = torch.randn(3, 40)
STEP = {
    "q": torch.randn(1, 1, 4, 40),
    "kv_cache": torch.randn(2, 4, 40),
    "block_table": torch.zeros(1, 2, dtype=torch.int32),
    "kv_lora_rank": 32,
    "num_splits": None,
    "backend": "reference",
}
ON = {"dtype": torch.float32, "device": "cpu"}
MANY = {"model": "deepseek-v3", "num_tokens": 5, "batch_size": 1, "dtype": "bf16"}


def of_model(*names, **more):
    return {name: MANY[name] for name in names} | more


# Each function with arguments that it takes.
CALLS = {
    cost.num_scores: {"num_cached": 3, "num_new": 2, "window": None},
    cost.attention_macs_per_score: {"config": MLA, "mode": "absorbed"},
    cost.expansion_macs_per_token: {"config": MLA},
    cost.attention_macs: {"config": MLA, "num_new": 1, "num_keys": 5, "mode": "absorbed", "causal": True},
    cost.cheaper_mode: {"config": MLA, "num_new": 1, "num_keys": 5},
    cost.absorption_crossover: {"config": MLA, "num_cached": 5},
    cost.attention_cost: {"config": MLA, "num_cached": 5, "num_new": 1, "batch_size": 1, "mode": "absorbed"},
    cost.kernel_cost: {"config": MLA, "num_rows": 4, "num_keys": 5, "batch_size": 1, "dtype": "bf16"},
    cost.attention_parameters: {"config": MLA},
    cost.num_attention_parameters: {"config": MLA},
    cost.projection_cost: {"config": MLA, "num_new": 1, "batch_size": 1, "dtype": "bf16"},
    cost.number_format: {"dtype": "bf16"},
    cost.cache_format: {"dtype": "bf16"},
    cost.bytes_per_number: {"dtype": "bf16"},
    cost.bytes_of_weights: {"num_weights": 10, "dtype": "bf16"},
    cost.fp8_row_bytes: {"kv_lora_rank": 512, "qk_rope_head_dim": 64},
    cost.mla_row_bytes: {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "dtype": "fp8_mla"},
    cost.entry_bytes: {"model_or_config": "deepseek-v3", "group": get_model("deepseek-v3").cache[0], "dtype": "bf16"},
    cost.kv_cache_bytes: {"model_or_config": "deepseek-v3", **of_model("num_tokens", "batch_size", "dtype")},
    cost.index_cache_bytes: of_model("model", "num_tokens", "batch_size", "dtype"),
    cost.state_bytes: of_model("model", "batch_size", dtype="fp32"),
    cost.sequence_bytes: of_model("model", "num_tokens", "dtype"),
    cost.Parallelism: {"tensor": 1, "data": 1, "context": 1, "pipeline": 1, "experts": None},
    cost.layouts: {"num_gpus": 8},
    cost.layout_of: {"num_gpus": 8, "tensor": 8, "data": 1, "context": 1, "pipeline": 1, "experts": None},
    cost.check_layout: of_model("model", layout=LAYOUT),
    cost.padded_heads: of_model("model", layout=LAYOUT),
    cost.sequence_share: of_model("model", "num_tokens", "dtype", layout=LAYOUT),
    cost.cache_copies: of_model("model", layout=LAYOUT),
    cost.weight_bytes: of_model("model"),
    cost.weight_share: of_model("model", layout=LAYOUT),
    cost.fit: of_model("model", "num_tokens", "batch_size", "dtype", gpu="h100", layout=LAYOUT, weights_dtype="fp8"),
    cost.fewest_gpus: of_model("model", gpu="h100", weights_dtype="fp8"),
    cost.all_reduce_bytes: {"config": MLA, "ranks": 2, "num_tokens": 1},
    cost.gather_bytes: {"config": MLA, "ranks": 2, "num_tokens": 1},
    cost.context_bytes: {"config": MLA, "ranks": 2, "num_tokens": 1, "before_absorption": False},
    cost.step_bytes: of_model("model", "batch_size", layout=LAYOUT),
    cost.move_bytes: of_model("model", "num_tokens", "dtype", layout=LAYOUT),
    cost.rates: {"machine": "h100", "dtype": "bf16"},
    cost.ridge: {"machine": "h100", "dtype": "bf16"},
    cost.roofline: {"cost": cost.Cost(10, 10), "machine": "h100", "dtype": "bf16"},
    cost.step_seconds: {"cost": cost.Cost(10, 10), "machine": "h100", "dtype": "bf16"},
    cost.pace: {"cost": cost.Cost(10, 10), "machine": "h100", "dtype": "bf16"},
    get_model: {"name": "deepseek-v3"},
    get_gpu: {"name": "h100"},
    config_from_hf: {"source": HF},
    spec_from_hf: {"source": HF},
    read_hf_config: {"source": HF},
    diagnose: of_model(
        "model", "num_tokens", "batch_size", "dtype", observed=parse_figure("5 kB"), layout=LAYOUT, tolerance=0.02
    ),
    parse_figure: {"text": "5 kB", "name": "text"},
    read_log: {"source": __file__},
    SequenceTable: {"batch_size": 2, "max_seq_len": 8, "device": "cpu"},
    SequenceTable.truncate: {"self": TABLE, "length": 1, "sequences": [0]},
    PageAllocator: {"num_pages": 4},
    PageAllocator.allocate: {"self": PageAllocator(100), "count": 1},
    PageTable: {"num_pages": 4, "page_size": 2, "batch_size": 2, "max_seq_len": 8, "device": "cpu", "spare_pages": 0},
    KVCache: {"config": GQA, "batch_size": 1, "max_seq_len": 8, "table": None, **ON},
    LatentCache: {"config": MLA, "batch_size": 1, "max_seq_len": 8, "table": None, **ON},
    PagedKVCache: {"config": GQA, "table": PAGES, "dtype": torch.float32},
    PagedLatentCache: {"config": MLA, "table": PAGES, "dtype": torch.float32, "backend": "auto"},
    StateCache: {"config": MAMBA2, "table": TABLE, "dtype": torch.float32},
    GroupedQueryAttention: {"config": GQA, **ON},
    MultiHeadLatentAttention: {"config": MLA, **ON},
    SwiGLU: {"hidden_size": 8, "intermediate_size": 8, **ON},
    rope_frequencies: {"width": 8, "scaling": None},
    join_rows: {"latent": ROW[:, :32], "rotary": ROW[:, 32:]},
    mla_decode: {
        **STEP,
        "seq_lens": torch.tensor([3], dtype=torch.int32),
        "sm_scale": 1.0,
        "causal": True,
        "return_lse": False,
        "return_lse_base_on_e": True,
        "validate": False,
        "out": None,
        "lse": None,
        "workspace": None,
    },
    workspace_bytes: STEP,
    ModelConfig.part: {"self": MODEL, "layer": 0},
    ModelConfig.from_yaml: {"path": __file__},
    ModelConfig.from_hf: {"source": HF, "mtp": False},
    RunConfig.from_yaml: {"path": __file__},
    Decoder: {"config": MODEL, "seed": 0, **ON},
    Decoder.new_cache: {"self": DECODER, "batch_size": 1, "max_seq_len": 8, **ON},
    Decoder.hidden_states: {"self": DECODER, "tokens": torch.ones(1, 2, dtype=torch.long), "cache": None},
    ModelCache: {"config": MODEL, "batch_size": 1, "table": None, "expanded": False, "mtp": False, **ON},
    generate: {
        "model": DECODER,
        "prompt_tokens": [1],
        "max_new_tokens": 2,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": None,
        "stop_tokens": (),
        "cache": None,
    },
    Engine: {
        "model": DECODER,
        "num_pages": 8,
        "page_size": 2,
        "mla": "latent",
        "max_batch_tokens": 8,
        "backend": "auto",
        "drafter": None,
        "share_prefixes": None,
        "capture": None,
    },
    Engine.submit: {"self": ENGINE, "prompt_tokens": [1], "params": None},
    Engine.cancel: {"self": ENGINE, "request": ENGINE.submit([1])},
    NGramDrafter: {"num_drafts": 2, "longest": 2},
    MTPDrafter: {"num_drafts": 1},
    SamplingParams: {"max_new_tokens": 2, "temperature": 0.0, "top_p": 1.0, "seed": None, "stop_tokens": ()},
    text_files: {"places": [__file__]},
    standard_library: {"folder": "/nowhere"},
}
BAD = [None, "nowhere", "", -1, 0, 1.5, float("nan"), True, [], [None], object(), 10**30, torch.ones(2)]
# What a file or a registry is asked for is named by what was asked: "nowhere: no such file", "unknown GPU 'nowhere'".
ASKED = "no such|unknown|is a folder|holds 0|text: |weights_dtype"


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__qualname__)
def test_errors_are_those_of_the_docstring(function):
    said = inspect.cleandoc(function.__doc__).partition("Raises:\n")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^ {4}([A-Z]\w+):", said, re.MULTILINE))
    named = re.compile(rf"\b({'|'.join(CALLS[function])})\b|{ASKED}")
    raised = 0
    for name in CALLS[function].keys() - {"self"}:
        for value in BAD:
            arguments = CALLS[function] | {name: value}
            try:
                function(**arguments)
            except Exception as error:
                raised += 1
                assert type(error).__name__ in listed, (name, value, error)
                assert named.search(str(error)), (name, value, error)
    assert raised
