"""The number of threads: the faster one is kept, found out without a trace, and remembered by a checkpoint."""

import pytest
import torch

import mla_edu.train.run as run_module
import mla_edu.train.threads as threads_module
from mla_edu.models import ModelConfig
from mla_edu.train.run import Run, train_into
from mla_edu.train.settings import RunConfig
from mla_edu.train.state import read_facts
from mla_edu.train.threads import thread_count, time_threads

MODEL = ModelConfig(
    vocab_size=256,
    hidden_size=16,
    layers=["gqa"],
    feed_forward=["moe"],
    gqa={"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    moe={"n_routed_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
)


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"{number} green bottles " * 20)
    fixed = {"num_steps": 6, "batch_size": 2, "seq_len": 8, "text": [str(text)], "save_every": 2}
    return lambda **train: RunConfig(model=MODEL, train=fixed | train)


@pytest.fixture(autouse=True)
def two_threads():
    with thread_count(2):
        yield


@pytest.fixture
def clock(monkeypatch):
    """Steps that take so many seconds with so many threads, by a clock that stands still otherwise."""
    now = [0.0]
    monkeypatch.setattr(threads_module.time, "perf_counter", lambda: now[0])

    def make(seconds):
        def step():
            step.threads.append(torch.get_num_threads())
            now[0] += seconds[torch.get_num_threads()]

        step.threads = []
        return step

    return make


def test_each_number_takes_its_turn_and_the_median_counts(clock):
    step = clock({1: 0.25, 2: 0.5})
    assert time_threads(step, (2, 1), 4) == {2: 0.5, 1: 0.25}
    assert step.threads == [2] + [2, 1] * 4  # one that warms up
    assert torch.get_num_threads() == 2


def test_long_steps_are_timed_less_often(clock):
    step = clock({1: 0.1, 2: 12.0})
    assert time_threads(step, (2, 1)) == {2: 12, 1: pytest.approx(0.1)}
    assert step.threads == [2, 2, 1]


@pytest.mark.parametrize("faster", [1, 2])
def test_the_faster_number_is_kept(config, monkeypatch, faster):
    asked = []

    def fake(step, numbers, steps):
        asked.append((numbers, steps))
        return {number: 1.0 + (number != faster) for number in numbers}

    monkeypatch.setattr(run_module, "time_threads", fake)
    run = Run(config(), "cpu")
    assert run.choose_threads() == {faster: 1.0, 3 - faster: 2.0}
    assert run.threads == faster and asked == [((2, 1), 6)]


def test_nothing_is_chosen_where_the_file_says_or_there_is_one(config):
    named = Run(config(threads=3), "cpu")
    assert named.choose_threads() == {} and named.threads == 3
    with thread_count(1):
        alone = Run(config(), "cpu")
        assert alone.choose_threads() == {} and alone.threads == 1


def test_timing_leaves_no_trace(config):
    timed, plain = Run(config(), "cpu"), Run(config(), "cpu")
    state = torch.get_rng_state()
    assert set(timed.choose_threads()) == {1, 2}
    assert torch.equal(torch.get_rng_state(), state)
    for _ in range(3):
        mine, other = timed.advance(), plain.advance()
        assert {**mine, "tokens_per_second": 0} == {**other, "tokens_per_second": 0}
    for (name, weight), same in zip(timed.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(weight, same), name


def train(folder, config, **options):
    seen = []
    note = lambda line: seen.append(torch.get_num_threads())  # noqa: E731
    run = list(train_into(folder, config, resume=options.get("resume", False), device="cpu", note=note))[-1]
    return run, seen


def test_a_run_goes_on_with_the_number_that_it_began_with(tmp_path, config, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(run_module, "time_threads", lambda *_: {2: 2.0, 1: 1.0})
    assert train(out, config(num_steps=3))[1] == [1] * 3
    assert read_facts(out / "state.safetensors")["threads"] == 1
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(run_module, "time_threads", lambda *_: pytest.fail("timed again"))
    run, seen = train(out, config(num_steps=5), resume=True)
    assert seen == [1] * 2 and run.threads == 1


def test_the_number_of_the_file_is_used(tmp_path, config):
    assert train(tmp_path / "run", config(threads=1))[1] == [1] * 6


def test_an_interrupt_while_threads_are_timed_writes_nothing(tmp_path, config, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "time_threads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", config())
    assert not (tmp_path / "run").exists()


def test_the_choice_is_told(tmp_path, config, monkeypatch):
    told = []
    monkeypatch.setattr(run_module, "time_threads", lambda *_: {2: 2.0, 1: 1.0})
    stages = train_into(
        tmp_path / "run",
        config(),
        resume=False,
        device="cpu",
        note=lambda line: None,
        choice=lambda *choice: told.append(choice),
    )
    next(stages)
    assert told == [(1, {2: 2.0, 1: 1.0})]
    stages.close()
