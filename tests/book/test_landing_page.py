"""What the landing page says in figures is what the package computes."""

import re
from pathlib import Path

from mla_edu.cost import kv_cache_bytes
from mla_edu.registry import get_model

BOOK = Path(__file__).resolve().parents[2] / "book"
PROSE = (BOOK / "index.md").read_text(encoding="utf-8")


def gigabytes(num_bytes):
    return f"{num_bytes / 1e9:.1f} GB"


def test_sizes_in_the_prose_are_computed():
    tokens = 131_072
    v3 = get_model("deepseek-v3")
    config = v3.config
    key_and_value = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    expanded = 2 * v3.num_layers * config.num_attention_heads * key_and_value * tokens
    assert re.findall(r"[\d.,]+ [kMGT]B", PROSE) == [
        gigabytes(kv_cache_bytes("llama-3.1-405b", tokens)),
        gigabytes(kv_cache_bytes("deepseek-v3", tokens)),
        gigabytes(expanded),
    ]
    assert f"{tokens:,} tokens" in PROSE
    widths = f"a key of {config.qk_nope_head_dim + config.qk_rope_head_dim} numbers and a value of {config.v_head_dim}"
    assert widths in PROSE.replace("\n", " ")


def test_counts_in_the_prose_are_computed():
    v3, llama = get_model("deepseek-v3").config, get_model("llama-3.1-405b").config
    claim = f"how {v3.num_attention_heads} heads came to share {v3.elements_per_token} numbers"
    assert claim in PROSE.replace("\n", " ")
    assert llama.num_attention_heads == v3.num_attention_heads


def test_path_leads_to_every_chapter():
    for chapter in BOOK.glob("*.ipynb"):
        assert f"]({chapter.name})" in PROSE
