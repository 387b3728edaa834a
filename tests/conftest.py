"""What ``make check`` and ``make test`` leave out, and what many tests share."""

import inspect
import os

import pytest

SLOW = (  # kernels that are interpreted or compiled case by case, and whole runs of commands
    "bench/test_command.py",
    "bench/test_distributed.py",
    "bench/test_kernel.py",
    "bench/test_layer.py",
    "book/test_check_cpus.py",
    "book/test_measured_chapter.py",
    "book/test_run_notebook.py",
    "distributed/test_ranks.py",
    "kernels/test_decode.py",
    "kernels/test_launch.py",
    "kernels/test_mutations.py",
    "kernels/test_nan.py",
    "kernels/test_offline.py",
    "kernels/test_offsets.py",
    "test_wheel.py",
)


def expects_an_error(item):
    return "pytest.raises" in inspect.getsource(item.function)


def is_in(path, places):
    return any(place == path or place in path.parents for place in places)


def pytest_collection_modifyitems(config, items):
    """Mark what `make check` leaves out, from where a test stands and what it uses."""
    # Where annotations are checked, they answer bad input before the package does. What has run like that, in the files
    # and folders that SHAPED names, need not run again.
    shaped = [config.rootpath / name for name in os.environ.get("SHAPED", "").split()]
    if config.getoption("jaxtyping_packages", None):
        items[:] = [item for item in items if not expects_an_error(item)]
    elif shaped:
        items[:] = [item for item in items if not is_in(item.path, shaped) or expects_an_error(item)]
    for item in items:
        fixtures = getattr(item, "fixturenames", None)  # None: a chapter
        if fixtures is None or "html" in fixtures or str(item.path).endswith(SLOW):
            item.add_marker(pytest.mark.slow)
        if "browser" in (fixtures or ()):
            item.add_marker(pytest.mark.browser)
        if any(mark.kwargs.get("reason") == "needs a GPU" for mark in item.iter_markers("skipif")):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session", autouse=True)
def no_hurry():
    """However slow the machine, no command adds a line about work under way."""
    from mla_edu.cli import show

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "MOMENT", 600.0)
        yield


@pytest.fixture
def make_results():
    """``make_results({kernel: {case: µs or why not}}, {kernel: why it did not run}, **fields)``.

    A made-up run on a made-up GPU: it copies at 1 TB/s and multiplies at 100 TFLOP/s.
    """
    from mla_edu.bench.results import Limits, Machine, Measurement, Results, kernel_sources

    def make(times, absent=None, **fields):
        measurements = [
            Measurement(case=case, kernel=kernel, why_not=found)
            if isinstance(found, str)
            else Measurement(case=case, kernel=kernel, microseconds=found, spread=0.01, error=0.001)
            for kernel, cases in times.items()
            for case, found in cases.items()
        ]
        machine = Machine(name="Test GPU", multiprocessors=9, memory_bytes=10**9, l2_bytes=10**6, driver="1.2")
        defaults = {
            "machine": machine,
            "versions": {"torch": "2.13.0"},
            "date": "2026-01-02",
            "sources": kernel_sources(),
            "toy": False,
            "limits": Limits(copy_bytes_per_s=1e12, matmul_flop_per_s=1e14),
            "floor_microseconds": 2.5,
            "kernels": dict.fromkeys(times, "1.0") | (absent or {}),
            "measurements": measurements,
        }
        return Results(**defaults | fields)

    return make


@pytest.fixture
def make_layer_results():
    """``make_layer_results({layer: {case: µs or why not}}, **fields)``: on a CPU that copies at 10 GB/s."""
    from mla_edu.bench.results import CPU, CaseLimits, LayerMeasurement, LayerResults

    def make(times, **fields):
        measurements = [
            LayerMeasurement(case=case, kernel=layer, why_not=found)
            if isinstance(found, str)
            else LayerMeasurement(case=case, kernel=layer, microseconds=found, spread=0.01, error=1e-6)
            for layer, cases in times.items()
            for case, found in cases.items()
        ]
        cases = dict.fromkeys(each.case for each in measurements if each.microseconds)
        defaults = {
            "machine": CPU(name="Test CPU", threads=3, instructions="AVX2"),
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "date": "2026-01-02",
            "toy": False,
            "limits": [CaseLimits(case=case, copy_bytes_per_s=1e10, matmul_flop_per_s=1e11) for case in cases],
            "measurements": measurements,
        }
        return LayerResults(**defaults | fields)

    return make


@pytest.fixture
def layer_case():
    """``layer_case(context, dtype="fp32")``."""
    from mla_edu.bench.grid import LayerCase

    def make(context, dtype="fp32"):
        return LayerCase(context=context, dtype=dtype)

    return make


@pytest.fixture
def case():
    """``case(heads, context, batch=1, s_q=1, dtype="bf16")``."""
    from mla_edu.bench.grid import Case

    def make(heads, context, batch=1, s_q=1, dtype="bf16"):
        return Case(heads=heads, s_q=s_q, context=context, batch=batch, dtype=dtype)

    return make
