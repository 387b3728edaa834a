"""Faults that other engines had, and bad input: each request ends right, and the engine stays whole."""

import copy
import random

import pytest

import mla_edu.serving.engine as engines
from mla_edu.cache import PagedKVCache, PagedLatentCache, Prefix
from mla_edu.models import ModelConfig
from mla_edu.serving import Engine, NGramDrafter, SamplingParams
from mla_edu.testing import poison
from tiny_engines import MLA, Guesses, model_of, plain

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6)


def engine_of(name="mla", num_pages=12, page_size=4, **options):
    engine = Engine(model_of(name), num_pages, page_size, **options)
    for cache in engine.cache.layers:
        poison(cache)
    return engine


def finish(engine):
    for _ in range(1000):
        if engine.is_idle:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def is_whole(engine):
    """Whether nothing is held, and a request still comes out right."""
    allocator = engine.table.allocator
    assert allocator.num_free == allocator.num_pages
    assert allocator.users == [0] * allocator.num_pages
    assert engine.table.lengths == [0] * engine.table.batch_size
    return engine.generate([PROMPT], SamplingParams(max_new_tokens=5)) == [plain("mla", PROMPT, 5)]


def test_a_prompt_of_whole_pages_that_are_all_kept_still_computes_its_last_token():
    engine = engine_of()
    for _ in range(3):
        assert engine.generate([PROMPT], SamplingParams(max_new_tokens=5)) == [plain("mla", PROMPT, 5)]
    assert engine.stats.found == 2 * 4  # one page of the two, twice


def test_two_prompts_of_one_text_in_one_step_have_pages_of_their_own():
    engine = engine_of()
    requests = [engine.submit(PROMPT, SamplingParams(max_new_tokens=6)) for _ in range(2)]
    engine.step()
    first, second = (engine.table.pages_of[request.row] for request in requests)
    assert not set(first) & set(second)
    finish(engine)
    third = engine.submit(PROMPT, SamplingParams(max_new_tokens=6))
    finish(engine)
    assert [request.output for request in (*requests, third)] == 3 * [plain("mla", PROMPT, 6)]
    assert is_whole(engine)


def test_texts_whose_names_have_one_hash_are_still_two_texts(monkeypatch):
    monkeypatch.setattr(Prefix, "__hash__", lambda self: 7)
    engine = engine_of(num_pages=30)
    texts = [PROMPT, (8, *PROMPT[1:]), (*PROMPT[:4], *PROMPT[:4]), PROMPT[4:] + PROMPT[4:], PROMPT]
    for text in texts:
        prompt = (*text, 7, 7)
        assert engine.generate([prompt], SamplingParams(max_new_tokens=4)) == [plain("mla", prompt, 4)]
    assert engine.stats.found == 4 + 8  # the first page of the third text, and both of the last


def test_a_request_can_be_cancelled_at_every_moment():
    moments = set()
    for steps in range(9):
        engine = engine_of(max_batch_tokens=3, drafter=Guesses("mla", 3, 0.7, steps))
        kept, cancelled = (engine.submit(PROMPT, SamplingParams(max_new_tokens=6)) for _ in range(2))
        for _ in range(steps):
            engine.step()
        state, computed = cancelled.state, engine.scheduler.num_computed(cancelled)
        moments |= {state, "mid-chunk" if 0 < computed < len(PROMPT) else "", "to verify" if cancelled.drafts else ""}
        engine.cancel(cancelled)
        engine.cancel(cancelled)
        assert cancelled.state == "cancelled" or state == "finished"
        finish(engine)
        assert kept.output == plain("mla", PROMPT, 6)
        assert plain("mla", PROMPT, 6)[: len(cancelled.output)] == cancelled.output
        assert is_whole(engine)
    assert moments >= {"waiting", "mid-chunk", "to verify"}


@pytest.mark.parametrize("mla", ["latent", "expanded"])
@pytest.mark.parametrize("name", ["mla", "gqa"])
def test_nan_in_free_pages_reaches_nobody(name, mla):
    """After each step, in every page that came back and has no name: a page is written before it is read."""
    engine = engine_of(name, num_pages=7, mla=mla, max_batch_tokens=6, drafter=Guesses(name, 3, 0.6, 1))
    requests = [engine.submit(PROMPT[:start], SamplingParams(max_new_tokens=9)) for start in (8, 5, 8)]
    poisoned, states = 0, engine.table.allocator.state
    while not engine.is_idle:
        engine.step()
        free = [page for page in range(7) if states(page) == "free"]
        poisoned += len(free)
        for memory in (memory for cache in engine.cache.layers for memory in cache.memory):
            memory[free] = float("nan")
    assert [request.output for request in requests] == [plain(name, request.prompt, 9) for request in requests]
    assert engine.stats.preempted
    assert poisoned


def test_a_stop_token_within_right_guesses_ends_the_text_before_it():
    right = plain("mla", PROMPT, 12)
    stop = right[6]
    first = right.index(stop)
    engine = engine_of(drafter=Guesses("mla", 5, 1.0, 0))
    out = engine.generate([PROMPT], SamplingParams(max_new_tokens=12, stop_tokens=(stop,)))
    assert out == [right[:first]]
    assert engine.stats.output == first
    engine.drafter = None
    assert is_whole(engine)


def test_guesses_never_go_past_the_last_token():
    engine = engine_of(num_pages=3, drafter=Guesses("mla", 5, 1.0, 0))
    assert engine.generate([PROMPT], SamplingParams(max_new_tokens=5)) == [plain("mla", PROMPT, 5)]


def test_wrong_guesses_are_never_kept_under_a_name():
    engine = engine_of(num_pages=40, page_size=2, drafter=Guesses("mla", 5, 0.4, 1))
    engine.generate([PROMPT] * 2, SamplingParams(max_new_tokens=9))
    text = [*PROMPT, *plain("mla", PROMPT, 9)]
    engine.drafter = None
    engine.generate([text], SamplingParams(max_new_tokens=1))
    assert engine.stats.found >= len(text) - 3  # what was written is found again
    for prefix in engine.table.allocator.named().values():
        tokens = []
        while prefix is not None:
            tokens, prefix = [*prefix.tokens, *tokens], prefix.parent
        assert tokens == text[: len(tokens)]


@pytest.mark.parametrize("place", ["logits", "verify"])
@pytest.mark.parametrize("after", range(4))
def test_an_error_within_a_step_leaves_every_request_as_it_was(after, place, monkeypatch):
    sampled = SamplingParams(max_new_tokens=6, temperature=0.9, seed=4)
    expected = engine_of(max_batch_tokens=6).generate([PROMPT], sampled)
    engine = engine_of(max_batch_tokens=6)
    greedy, drawn = engine.submit(PROMPT, SamplingParams(max_new_tokens=6)), engine.submit(PROMPT, sampled)
    for _ in range(after):
        engine.step()
    where = engine.model if place == "logits" else engines
    real = getattr(where, place)

    def broken(*arguments):
        real(*arguments)  # of verify: a token is drawn
        raise RuntimeError("out of memory")

    def state(running):
        return [
            (list(each.tokens), each in running and engine.scheduler.num_computed(each)) for each in (greedy, drawn)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(where, place, broken)
        failures = 0
        while failures < 3:
            running = list(engine.scheduler.running)
            before = state(running)
            try:
                engine.step()
            except RuntimeError:
                failures += 1
                assert state(running) == before
    finish(engine)
    assert greedy.output == plain("mla", PROMPT, 6)
    assert [drawn.output] == expected
    assert is_whole(engine)


def test_an_error_of_a_drafter_costs_guesses_and_no_token():
    class Fails(NGramDrafter):
        def propose(self, requests):
            super().propose(requests)
            raise RuntimeError("no guess")

    engine = engine_of(drafter=Fails())
    request = engine.submit((7, 1, 7, 1), SamplingParams(max_new_tokens=6))
    while not engine.is_idle:
        try:
            engine.step()
        except RuntimeError as error:
            assert str(error) == "no guess"
    assert request.output == plain("mla", (7, 1, 7, 1), 6)
    engine.drafter = None
    assert is_whole(engine)


def test_a_request_that_fails_in_generate_takes_the_others_along():
    engine = engine_of(num_pages=4)
    with pytest.raises(ValueError, match="at most the 16 tokens that all pages hold, 17 would"):
        engine.generate([PROMPT, PROMPT], [SamplingParams(max_new_tokens=3), SamplingParams(max_new_tokens=10)])
    assert engine.is_idle
    assert engine.stats.steps == 0
    assert is_whole(engine)


def test_expanded_pages_hold_keys_and_values_and_latent_pages_a_row():
    kinds = {"latent": PagedLatentCache, "expanded": PagedKVCache}
    bytes_of = {}
    for mla, kind in kinds.items():
        engine = engine_of(mla=mla)
        assert all(isinstance(cache, kind) for cache in engine.cache.layers)
        bytes_of[mla] = engine.cache.nbytes
    heads, wide = MLA["num_attention_heads"], 5 + 4 + 6
    assert bytes_of["expanded"] * (12 + 4) == bytes_of["latent"] * heads * wide


def test_sampled_tokens_are_those_of_the_plain_loop_with_the_same_seed():
    from mla_edu.models import generate

    params = [SamplingParams(max_new_tokens=8, temperature=0.7, top_p=0.9, seed=seed) for seed in range(4)]
    out = engine_of(max_batch_tokens=5).generate([PROMPT] * 4, params)
    model = model_of("mla")
    for tokens, one in zip(out, params, strict=True):
        options = {"temperature": one.temperature, "top_p": one.top_p, "seed": one.seed}
        assert tokens == list(generate(model, PROMPT, max_new_tokens=8, **options))
    assert len(set(map(tuple, out))) > 1


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "prompt_tokens is empty; expected at least one token"),
        ([1, 11], {}, "a token of prompt_tokens is 11; expected an integer from 0 to 10"),
        ([1, -1], {}, "a token of prompt_tokens is -1"),
        ([1, 2.0], {}, "a token of prompt_tokens is 2.0"),
        ([1, True], {}, "a token of prompt_tokens is True"),
        (["1"], {}, "a token of prompt_tokens is '1'"),
        ([1] * 48, {"max_new_tokens": 2}, "at most the 48 tokens that all pages hold, 49 would"),
    ],
)
def test_a_bad_prompt_is_one_clear_error_and_changes_nothing(prompt, params, message):
    engine = engine_of()
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt, SamplingParams(**params))
    assert engine.is_idle
    assert is_whole(engine)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; expected greater than 0"),
        ({"temperature": -0.1}, "temperature is -0.1; expected greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; expected greater than 0"),
        ({"top_p": 1.1}, "top_p is 1.1; expected less than or equal to 1"),
        ({"seed": -1}, "seed is -1"),
        ({"stop_tokens": (1, -2)}, "-2"),
        ({"max_tokens": 3}, "max_tokens is 3; no such name; did you mean max_new_tokens"),
        ({"stop": (3,)}, r"stop is \(3,\); no such name; did you mean stop_tokens"),
        ({"temp": 1.0}, "temp is 1.0; no such name; did you mean temperature"),
    ],
)
def test_bad_parameters_are_one_clear_error(values, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_pages": 0}, ValueError, "num_pages is 0; expected a positive integer"),
        ({"page_size": 0}, ValueError, "page_size is 0; expected a positive integer"),
        ({"max_batch_tokens": 0}, ValueError, "max_batch_tokens is 0; expected a positive integer"),
        ({"mla": "absorbed"}, ValueError, "mla is 'absorbed'; expected 'latent' or 'expanded'"),
        ({"backend": "cuda"}, ValueError, "backend is 'cuda'"),
        ({"name": "hybrid", "share_prefixes": True}, ValueError, "share_prefixes is True; expected a model without"),
        ({"name": "hybrid", "drafter": NGramDrafter()}, ValueError, "a drafter is given; expected a model without"),
    ],
)
def test_bad_settings_are_one_clear_error(options, error, message):
    with pytest.raises(error, match=message):
        engine_of(**options)


def test_what_is_no_model_or_no_parameters_is_refused():
    with pytest.raises(TypeError, match="model is a ModelConfig; expected a Decoder"):
        Engine(ModelConfig(vocab_size=3, hidden_size=4, intermediate_size=4, layers=["mla"], mla=MLA), 4)
    with pytest.raises(TypeError, match="drafter is 'ngram'; expected one such as NGramDrafter"):
        engine_of(drafter="ngram")
    for params in ({"max_new_tokens": 3}, {}, 0, "", False):
        with pytest.raises(TypeError, match=f"params is a {type(params).__name__}; expected SamplingParams"):
            engine_of().submit(PROMPT, params)
    for prompt in (5, None, iter(PROMPT)):
        with pytest.raises(TypeError, match="prompt_tokens is .*; expected a list of tokens"):
            engine_of().submit(prompt)
    with pytest.raises(ValueError, match="params has 1 entries; expected 2, as prompts"):
        engine_of().generate([PROMPT, PROMPT], [SamplingParams()])


def test_positions_past_the_range_of_a_rotary_scaling_are_refused_before_anything_runs():
    from mla_edu.models import Decoder

    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}
    config = ModelConfig(
        vocab_size=11, hidden_size=24, intermediate_size=32, layers=["mla"], mla=MLA | {"rope_scaling": yarn}
    )
    engine = Engine(Decoder(config), 12, 4)
    with pytest.raises(ValueError, match="reach position 16; expected at most 15"):
        engine.submit(PROMPT, SamplingParams(max_new_tokens=10))
    assert len(engine.generate([PROMPT], SamplingParams(max_new_tokens=9))[0]) == 9


def test_guesses_look_up_the_longest_ending_that_stood_there_before():
    guess = NGramDrafter(num_drafts=3, longest=2).guess
    assert guess([1, 2, 3, 9, 2, 3, 4, 5, 2, 3]) == [4, 5, 2]
    assert guess([1, 2, 3, 9, 3]) == [9, 3]
    assert guess([1, 2, 3]) == []
    assert guess([]) == []
    for number in (0, -1, 1.5):
        with pytest.raises(ValueError, match="num_drafts is"):
            NGramDrafter(num_drafts=number)


def test_the_triton_kernel_reads_the_pages_of_an_engine():
    """Interpreted; in float32, so only as far as the plain loop's best token is clearly the best."""
    pytest.importorskip("triton")
    model = copy.deepcopy(model_of("mla")).float()
    out = Engine(model, 8, 16, backend="triton").generate([PROMPT, PROMPT[:3]], SamplingParams(max_new_tokens=4))
    assert out == [plain("mla", PROMPT, 4), plain("mla", PROMPT[:3], 4)]


def test_random_order_of_requests_changes_nothing():
    prompts = [tuple(PROMPT[i:]) for i in range(6)]
    order = list(range(6))
    random.Random(3).shuffle(order)
    out = engine_of(num_pages=40, max_batch_tokens=7).generate(
        [prompts[i] for i in order], SamplingParams(max_new_tokens=5)
    )
    assert out == [plain("mla", prompts[i], 5) for i in order]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: engine.cancel(0), "request is 0; expected a Request, from submit"),
        (lambda engine: engine.generate(5), "prompts is 5; expected a list of prompts"),
        (lambda engine: engine.generate([[1]], 5), "params is 5; expected SamplingParams, or a list of them"),
        (lambda engine: engine.submit({1: [["x" * 500]] * 500}), "prompt_tokens is {1: .*; expected a list of tokens"),
    ],
)
def test_an_argument_of_the_wrong_type_is_one_error(call, message):
    with pytest.raises(TypeError, match=message) as caught:
        call(Engine(model_of("mla"), num_pages=4))
    assert len(str(caught.value)) < 1000


def test_a_request_of_another_engine_takes_no_pages_from_this_one():
    mine, other = (Engine(model_of("mla"), num_pages=8, page_size=4) for _ in range(2))
    kept, strange = mine.submit([1, 2, 3]), other.submit([1, 2, 3])
    for _ in range(2):  # waiting, then running in the row that theirs has there
        with pytest.raises(ValueError, match="request is number 0 of another engine; expected one of this engine"):
            mine.cancel(strange)
        mine.step()
        other.step()
    assert strange.state == kept.state == "running"
