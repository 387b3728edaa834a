"""The roofline in Python: the numbers of the chapter, the cost model's own bounds, checked settings."""

import pytest

from mla_edu.book.widgets import DecodeRoofline
from mla_edu.book.widgets.decode_roofline import quantities
from mla_edu.cost import Cost, ridge, step_seconds
from mla_edu.registry import get_gpu, list_gpus

TOKEN_BYTES = {"bf16": 1152, "fp16": 1152, "fp8_mla": 656}


@pytest.mark.parametrize("gpu", list_gpus())
@pytest.mark.parametrize("dtype", TOKEN_BYTES)
@pytest.mark.parametrize(("heads", "s_q"), [(1, 1), (16, 1), (9, 7), (128, 8)])
def test_bounds_are_those_of_the_cost_model(gpu, dtype, heads, s_q):
    found = quantities(gpu, heads, s_q, dtype)
    million = Cost(10**6 * heads * s_q * 2176, 10**6 * TOKEN_BYTES[dtype])
    seconds = step_seconds(million, gpu, "fp16")
    assert found["microseconds"] == pytest.approx(1e6 * seconds, rel=1e-12)
    assert found["flops"] == pytest.approx(million.flops / seconds, rel=1e-12)
    assert found["bandwidth"] == pytest.approx(million.bytes / seconds, rel=1e-12)
    assert found["intensity"] == pytest.approx(million.intensity, rel=1e-12)
    assert found["rows_at_ridge"] == pytest.approx(ridge(gpu, "fp16") * TOKEN_BYTES[dtype] / 2176, rel=1e-12)


def test_16_heads_wait_for_memory_and_128_for_arithmetic():
    few, many = quantities("h200", 16, 1, "bf16"), quantities("h200", 128, 1, "bf16")
    assert few["bandwidth"] == pytest.approx(4.8e12)
    assert few["flops"] < 989.4e12 == many["flops"]
    assert 109 < many["rows_at_ridge"] < 110
    assert 62 < quantities("h200", 16, 1, "fp8_mla")["rows_at_ridge"] < 63
    assert quantities("h200", 32, 4, "bf16") == many


def test_bf16_is_as_fast_as_the_fp16_that_is_counted():
    for gpu in map(get_gpu, list_gpus()):
        assert gpu.flops.get("bf16", gpu.flops["fp16"]) == gpu.flops["fp16"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpu": "h2000"}, "unknown GPU 'h2000'"),
        ({"dtype": "16-bit"}, "dtype is '16-bit'; expected bf16, fp16 or fp8_mla"),
        ({"heads": 129}, "heads is 129; expected an integer from 1 to 128"),
        ({"s_q": 0}, "s_q is 0; expected an integer from 1 to 8"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DecodeRoofline(**settings)


def test_viewers_that_run_no_widget_get_the_answers():
    data, _ = DecodeRoofline("h200", heads=16)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    for text in (data["text/plain"], data["text/html"]):
        assert "rows: 16, at the ridge 109: memory sets the pace" in text
        assert "at most 145 TFLOP/s, at least 240 µs" in text
