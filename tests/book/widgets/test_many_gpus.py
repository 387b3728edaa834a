"""One model on many GPUs, in Python: the numbers of the chapter, the cost model's own, checked settings."""

import itertools

import pytest

from mla_edu.book.widgets import ManyGPUs
from mla_edu.book.widgets.many_gpus import WAYS, quantities, shown_models
from mla_edu.cost import kv_cache_bytes, layouts, weight_share
from mla_edu.registry import get_gpu, get_model


def test_every_shown_model_is_counted_in_every_layout():
    assert {"deepseek-v2-lite", "deepseek-v3", "kimi-k2-instruct"} <= set(shown_models())
    for name, layout in itertools.product(shown_models(), WAYS):
        found = quantities(get_model(name), get_gpu("b200"), 8, layout, 4096, 8, "fp8_mla")
        assert None not in found.values(), (name, layout)


def test_sequences_heads_and_tokens_of_deepseek_v3():
    """A sequence on the fullest GPU, and as many as a loop finds beside the weights."""
    spec, card, whole = get_model("deepseek-v3"), get_gpu("h200"), kv_cache_bytes("deepseek-v3", 131_072)
    parts = {"tensor": (whole, 8, 1), "data": (whole, 1, 8), "context": (whole // 8, 1, 1)}
    for layout, (on_each, copies, groups) in parts.items():
        found = quantities(spec, card, 8, layout, 131_072, 9, "bf16")
        assert found["cache_bytes"] == on_each * (2 if layout == "data" else 9)
        assert found["copies"] == copies
        free = card.memory - weight_share(spec, layouts(8)[layout])
        assert found["weight_bytes"] == card.memory - free
        together = 0
        while (together + 1) * on_each <= free:
            together += 1
        assert found["max_sequences"] == groups * together


def test_more_gpus_than_heads_is_said_and_counts_nothing():
    widget = ManyGPUs("deepseek-v2-lite", gpus=17)
    assert set(widget.quantities.values()) == {None}
    assert widget.text().endswith("more GPUs than heads: 17 for 16")
    widget.layout_name = "data"
    assert None not in widget.quantities.values()


def test_a_format_with_blocks_falls_back_where_the_latent_is_no_multiple():
    spec, card = get_model("deepseek-v3"), get_gpu("h200")
    rows = [quantities(spec, card, 1, "tensor", 1, 1, dtype)["cache_bytes"] for dtype in ("bf16", "fp8", "fp8_mla")]
    assert rows == [61 * 1152, 61 * 576, 61 * 656]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "llama-3.1-8b"}, "model is 'llama-3.1-8b'; expected one of deepseek-v2-lite"),
        ({"model": "deepseek-v3.2"}, "model is 'deepseek-v3.2'; expected one of"),
        ({"layout": "pipeline"}, "layout_name is 'pipeline'; expected tensor, data or context"),
        ({"gpus": 33}, "gpus is 33; expected an integer from 1 to 32"),
        ({"batch": 0}, "batch is 0; expected an integer from 1 to 4,096"),
        ({"tokens": 0}, "tokens is 0"),
        ({"dtype": "fp7"}, "dtype is 'fp7'; expected bf16, fp8 or fp8_mla"),
        ({"gpu": "h2000"}, "unknown GPU 'h2000'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ManyGPUs(**settings)


def test_viewers_that_run_no_widget_get_the_answers():
    data, _ = ManyGPUs(layout="context", batch=1)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert "weights 84.7 GB, cache 1.15 GB, copies of it: 1" in text
        assert "3.06 MB of hidden states, 15.1 MB for attention" in text
