"""The README's table: each measured GPU beside its peers, and a line where none was measured."""

from mla_edu.bench.results import measured
from mla_edu.bench.serving_results import ServingResults
from mla_edu.book.readme import measured_table


def test_measured_table_quotes_each_gpu_beside_its_peers(make_results, case):
    quoted, other = case(16, 2**16, batch=32), case(16, 4096, batch=128)
    times = {
        "ours": {quoted: 3000.0, other: 1.0},
        "sglang": {quoted: 6000.0},
        "eager": {quoted: "out of memory"},
        "transformers": {quoted: 9000.0},
    }
    steps = {"hardware": {"cpu": "CPU", "threads": 2}, "steps": [{"dtype": "bfloat16"}]}
    (line,) = measured_table([make_results(times)], steps).splitlines()[2:]
    assert line == (
        "| the decode kernel | Test GPU | 16 heads, 32 × 65,536 tokens, bf16 | 3,000.0 µs | 81% "
        "| 2.00× as fast as sglang |"
    )


def test_measured_table_says_that_no_gpu_was_measured():
    step = {"dtype": "float32", "cached_tokens": 1024, "absorbed_ms": 2.04, "fraction_of_limit": 0.061}
    steps = {"hardware": {"cpu": "CPU", "threads": 2}, "steps": [step | {"absorbed_speedup": 5.49}]}
    assert measured_table([], steps).splitlines()[2:] == [
        "| a layer's decode step, absorbed | CPU, 2 threads | 16 heads, 1,024 tokens, float32 | 2.0 ms | 6% "
        "| 5.5× as fast as transformers |",
        "| the decode kernel, on its grid | no GPU yet | | not measured yet | | |",
    ]


def test_measured_table_quotes_the_engine_on_a_gpu_with_the_fewest_and_the_most_texts():
    steps = {"hardware": {"cpu": "CPU", "threads": 2}, "steps": [{"dtype": "bfloat16"}]}
    served = [each for each in measured(ServingResults) if each.machine.slug in ("cpu", "nvidia-h100-80gb-hbm3")]
    one, two, last = measured_table([], steps, served).splitlines()[2:]
    assert one == (
        "| the engine's step | NVIDIA H100 80GB HBM3 | 27 layers of DeepSeek-V2-Lite's sizes, 1 × 512 tokens, bf16 "
        "| 7.1 ms | | 5.9× as fast as transformers' generate |"
    )
    assert "64 × 512 tokens, bf16 | 21.0 ms | | 8.4× as fast" in two and "no GPU yet" in last
