"""The engine's measurements at toy size: what is compared, what is checked before, and what is written."""

import io
import logging
import statistics
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import serving, texts
from mla_edu.bench.libraries import Unsupported
from mla_edu.bench.report import print_serving_report
from mla_edu.bench.results import CPU, LayerResults, measured, read_results
from mla_edu.bench.serving_results import ServingResults, Texts, times_as_fast
from mla_edu.bench.serving_size import FULL, GPU, TOY
from mla_edu.config import MoEConfig
from mla_edu.models import Decoder, generate
from mla_edu.registry import get_model
from mla_edu.serving import Engine, SamplingParams
from tiny_engines import model_of, plain

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REASON = "RuntimeError: shapes differ"


def refuse(*arguments):
    raise Unsupported(REASON)


@pytest.fixture(scope="module")
def found():
    """A whole run, but for the continuous batching of transformers, which takes long to fail."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "continuous_batching", refuse)
        return serving.run(toy=True, rounds=2)


def test_every_part_has_its_rounds(found):
    assert found.toy and found.machine.threads >= 1 and {"torch", "transformers"} <= found.versions.keys()
    assert found.model == TOY.model and found.continuous_batching == f"does not run: {REASON}"
    assert found.dtype == "fp32" and found.logits_error < 1e-5
    assert [(each.batch, each.prompt_tokens, each.new_tokens) for each in found.texts] == [(1, 5, 4), (2, 9, 4)]
    for each in found.texts:
        assert each.seconds.keys() == each.step_seconds.keys() == {"engine", "transformers"}
        assert all(len(times) == 2 for times in (*each.seconds.values(), *each.step_seconds.values()))
        assert all(0 < share < 1 for share in each.outside_model)
        assert each.same == {"engine": 1, "transformers": 1}
    assert len(found.first_token.found) == len(found.first_token.recomputed) == 2
    assert [len(times) for times in found.verification.seconds] == [2, 2, 2]
    assert len(found.own_cost.scheduler) == len(found.own_cost.engine) == 20 and found.own_cost.requests == 5


def test_prompts_share_all_that_they_should(found):
    assert (found.first_token.shared_tokens, found.first_token.own_tokens) == (128, 3)


def test_as_many_requests_run_as_their_pages_have_room_for(found):
    """A latent has 16 + 64 numbers, keys and values 4 * (192 + 8): forty pages hold what four held, two a request."""
    assert found.at_once.pool_bytes == dict.fromkeys(("latent", "expanded"), 2 * 4 * 16 * 800 * 4)
    assert found.at_once.most == {"latent": 20, "expanded": 2} and found.at_once.requests == 20
    assert found.at_once.ratio == 10


def test_guesses_are_verified_behind_the_cached_tokens(found):
    start, end = found.verification.cached_tokens
    assert start >= 128 + 3 and end >= start + 6  # each step adds a token at least
    assert found.verification.ratios[0] == 1


def test_results_survive_their_file(found, tmp_path):
    path = found.write(tmp_path)
    assert path.name == "toy-serving-cpu.json" and read_results(path, ServingResults) == found
    with pytest.raises(ValueError, match="toy-serving-cpu.json at "):
        read_results(path, LayerResults)


def test_the_report_shows_every_part(found):
    console = Console(width=160, file=io.StringIO())
    print_serving_report(found, console)
    shown = console.file.getvalue()
    for words in (
        f"transformers does not run: {REASON}",
        "first token with 128 of 131 tokens found",
        "20 with latents, 2 with keys and values; all 20 are done",
        "a step of 5 requests without a model",
        "the times mean nothing",
    ):
        assert words in shown


def test_the_size_that_counts_has_the_widths_of_v2_lite():
    config = FULL.model
    assert (config.mla.num_attention_heads, config.mla.kv_lora_rank, config.mla.qk_rope_head_dim) == (16, 512, 64)
    weights = sum(each.nbytes for each in Decoder(config, dtype=torch.float32, device="meta").parameters())
    assert 1e9 < weights < 1.2e9


def test_on_a_gpu_the_whole_of_v2_lite_is_served():
    model, config = get_model("deepseek-v2-lite"), GPU.model
    assert (len(config.layers), config.mla) == (model.num_layers, model.config)
    weights = sum(each.numel() for each in Decoder(config, device="meta").parameters())
    assert abs(weights / model.num_parameters - 1) < 0.01 and GPU.dtype == model.weights.others


def test_the_ratio_is_of_rounds_and_not_of_medians():
    assert times_as_fast([1, 4, 2], [2, 2, 8]) == 2
    shape = {"batch": 3, "prompt_tokens": 5, "new_tokens": 4, "outside_model": [0.1, 0.2, 0.3]}
    seconds = {"engine": [1, 4, 2], "transformers": [2, 2, 8]}
    each = Texts(**shape, seconds=seconds, step_seconds={"engine": [1, 1, 1], "transformers": [3, 4, 5]})
    assert each.tokens_per_s("engine") == 6 and each.speed_up("transformers") == 2
    assert each.step_speed_up("transformers") == 4


@pytest.mark.parametrize("seconds", [{"engine": [1.0, 2.0], "transformers": [1.0]}, {"transformers": [1.0, 2.0]}])
def test_uneven_rounds_are_refused(seconds):
    with pytest.raises(ValueError, match="expected as many of each"):
        Texts(batch=1, prompt_tokens=1, new_tokens=2, seconds=seconds, step_seconds={}, outside_model=[0.1, 0.1])


# What was measured


def test_results_of_a_cpu_and_of_a_gpu_come_with_the_package():
    results = measured(ServingResults)
    assert {"cpu", "nvidia-h100-80gb-hbm3"} <= {each.machine.slug for each in results}
    for each in results:
        size = FULL if isinstance(each.machine, CPU) else GPU
        assert not each.toy and (each.model, each.dtype) == (size.model, size.dtype)
        assert tuple((text.batch, text.prompt_tokens) for text in each.texts) == size.texts
        assert len(each.verification.seconds) == size.most_guesses + 1
        assert each.at_once.most["latent"] == each.at_once.requests


def test_a_replayed_step_was_the_fastest_on_the_gpu_and_wrote_the_same():
    (gpu,) = (each for each in measured(ServingResults) if each.machine.slug == "nvidia-h100-80gb-hbm3")
    assert gpu.logits_error < 0.05
    for text in gpu.texts:
        assert text.step_speed_up("engine uncaptured") > 2 and text.step_speed_up("transformers") > 2
        assert text.same["engine uncaptured"] == 1
    ratios = gpu.verification.ratios
    assert ratios == sorted(ratios) and ratios[-1] < 2


# Loops


@pytest.mark.parametrize("capture", [False, True])
def test_the_engines_loop_writes_what_the_plain_one_does(capture):
    model, prompts = model_of("mla"), [(1, 2, 3), (4, 5, 6)]
    engine = Engine(model, 4, capture=capture)
    tokens, stamps, outside = texts.engine_loop(engine, prompts, 5)
    assert tokens == [plain("mla", prompt, 5) for prompt in prompts]
    assert len(stamps) == 5 and stamps == sorted(stamps) and 0 < outside < 1
    assert not {"hidden_states", "logits"} & vars(model).keys()
    assert not capture or "run" not in vars(engine.graphs)


def test_a_watched_model_is_itself_again_after_an_error():
    model = model_of("mla")
    with pytest.raises(ZeroDivisionError), texts.watched(Engine(model, 2, capture=True)) as taken:
        model.logits(torch.zeros(1, 24, dtype=torch.float64))
        raise ZeroDivisionError
    assert len(taken) == 1 and "logits" not in vars(model)


def test_what_a_graph_runs_is_counted_once():
    """A first step in two parts of the model, and two steps each of which is a graph's."""
    engine = Engine(model_of("mla"), 4, capture=True)
    with texts.watched(engine) as taken:
        engine.generate([(1, 2, 3)], SamplingParams(max_new_tokens=3))
    assert len(taken) == 2 + 2


def test_the_same_share_ends_at_the_first_difference():
    assert texts.same_share([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) == 1
    assert texts.same_share([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 0, 4], [0, 6, 7, 8]]) == 2 / 8


def test_captured_and_uncaptured_steps_take_turns_where_steps_are_captured(monkeypatch):
    monkeypatch.setattr(serving, "Engine", lambda *args, **options: Engine(*args, **{"capture": True} | options))
    moe = TOY.model.moe.model_dump() | {"moe_intermediate_size": 16}  # transformers multiplies rows of 16 bytes
    size = replace(TOY, dtype="bf16", model=TOY.model.model_copy(update={"moe": MoEConfig(**moe)}))
    measuring = serving.Bench(size, 2, serving.random_model(size, torch.device("cpu")))
    each = measuring.texts(texts.transformers_model(measuring.model), 2, 5, continuous=False)
    assert list(each.seconds) == list(each.step_seconds) == ["engine", "engine uncaptured", "transformers"]
    assert each.same["engine"] == each.same["engine uncaptured"] == 1 and 0 <= each.same["transformers"] <= 1
    assert each.step_tokens_per_s("engine") == 2 / statistics.median(each.step_seconds["engine"])


def test_logits_that_are_off_end_the_run(monkeypatch):
    monkeypatch.setattr(serving, "logits_error", lambda *arguments: 0.3)
    with pytest.raises(RuntimeError, match=r"the logits are off from those of transformers by 0.3; expected 0.25"):
        serving.run(toy=True)


def test_weights_that_are_named_otherwise_are_said_so(monkeypatch):
    model = serving.random_model(TOY, torch.device("cpu"))
    names = model.state_dict() | {"odd": torch.zeros(1)}
    monkeypatch.setattr(model, "state_dict", lambda: names)
    with pytest.raises(Unsupported, match=r"Unexpected key\(s\) in state_dict: .model.odd."):
        texts.transformers_model(model)


def test_the_loop_of_transformers_says_when_each_token_came():
    model = serving.random_model(TOY, torch.device("cpu"))
    theirs = texts.transformers_model(model)
    tokens, stamps = texts.plain_loop(theirs, [[1, 2, 3], [4, 5, 6]], 4)
    assert tokens == [list(generate(model, prompt, max_new_tokens=4)) for prompt in ([1, 2, 3], [4, 5, 6])]
    assert len(stamps) == 4 and stamps == sorted(stamps) and stamps[0] > 0


def test_texts_that_differ_are_not_timed(monkeypatch):
    write = serving.plain_loop

    def spoiled(theirs, prompts, num_new):
        tokens, stamps = write(theirs, prompts, num_new)
        tokens[0][-1] = (tokens[0][-1] + 1) % 61
        return tokens, stamps

    monkeypatch.setattr(serving, "plain_loop", spoiled)
    monkeypatch.setattr(serving, "continuous_batching", refuse)
    with pytest.raises(
        RuntimeError, match="transformers, 1 prompts of 5 tokens: the texts are .*; expected the same tokens"
    ):
        serving.run(toy=True, rounds=1)


def test_continuous_batching_takes_part_where_it_runs(monkeypatch):
    monkeypatch.setattr(serving, "continuous_batching", lambda *arguments: texts.plain_loop(*arguments)[0])
    model = serving.random_model(TOY, torch.device("cpu"))
    measuring = serving.Bench(TOY, 1, model)
    each = measuring.texts(texts.transformers_model(model), 2, 5, continuous=True)
    assert list(each.seconds) == ["engine", "transformers", "continuous batching"]
    assert each.speed_up("continuous batching") > 0 and list(each.step_seconds) == ["engine", "transformers"]


class Batching:
    """A model of transformers, as far as ``generate_batch`` goes."""

    def __init__(self, answer):
        self.answer = answer

    def generate_batch(self, inputs, generation_config, continuous_batching_config):
        assert generation_config.max_new_tokens == 3 and continuous_batching_config.num_blocks == 2
        return self.answer(inputs)


class Text:
    def __init__(self, tokens, error=None):
        self.generated_tokens, self.error = tokens, error


def log_and_fail(inputs):
    try:
        raise IndexError("first line\nsecond line")
    except IndexError as error:
        logging.getLogger("ContinuousBatchingLogger").error(f"Error in generation loop: {error}", exc_info=True)
    return {number: Text([], "first line") for number in range(len(inputs))}


def raise_at_once(inputs):
    raise IndexError("first line\nsecond line")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (log_and_fail, "^IndexError: first line$"),
        (raise_at_once, "^IndexError: first line$"),
        (lambda inputs: {0: Text([1])}, "without all texts"),
        (lambda inputs: {0: Text([1]), 1: Text([], "lost")}, "without all texts"),
    ],
)
def test_continuous_batching_that_fails_says_why(answer, message, capfd):
    with pytest.raises(Unsupported, match=message):
        texts.continuous_batching(Batching(answer), [[1, 2], [3]], 3)
    assert not logging.getLogger("ContinuousBatchingLogger").filters and not capfd.readouterr().err


def test_continuous_batching_that_runs_gives_its_tokens():
    model = Batching(lambda inputs: dict(enumerate(Text((*tokens, 7)) for tokens in inputs)))
    assert texts.continuous_batching(model, [[1, 2], [3]], 3) == [[1, 2, 7], [3, 7]]


# The command


def command(*arguments):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(cli.app, ["bench", "serving", *arguments])


@pytest.fixture
def asked(monkeypatch, found):
    options = {}

    def run(**given):
        options.update(given)
        return found

    monkeypatch.setattr(serving, "run", run)
    return options


def test_the_command_prints_and_writes(asked, tmp_path):
    result = command("--toy", "--rounds", "3", "--results", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert asked == {"toy": True, "rounds": 3, "device": DEVICE}
    assert f"written to {tmp_path}" in result.stdout and (tmp_path / "toy-serving-cpu.json").exists()


def test_the_command_measures_at_full_size_unless_told_otherwise(asked):
    assert command().exit_code == 0 and asked == {"toy": False, "rounds": 5, "device": DEVICE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "mla-edu: --rounds is 0; expected a positive integer"),
        (["--rounds", "some"], "--rounds is 'some'; expected a valid integer"),
        (["--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(monkeypatch, arguments, message):
    monkeypatch.setattr(serving, "probe_transformers", lambda: pytest.fail("it runs"))
    result = command(*arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(serving, "probe_transformers", refuse)
    with pytest.raises(ImportError, match=f"measured beside transformers: {REASON}"):
        serving.run(toy=True)
