"""The engine writes what the plain loop writes, whatever is shared, cut, preempted or guessed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mla_edu.cache import StateCache
from mla_edu.config import MLAConfig
from mla_edu.cost import cheaper_mode
from mla_edu.models import Decoder, ModelConfig
from mla_edu.serving import Engine, MTPDrafter, NGramDrafter, SamplingParams
from mla_edu.testing import poison
from tiny_engines import SHAPES, VOCAB, Guesses, model_of, plain


@st.composite
def workloads(draw, names=tuple(SHAPES)):
    name = draw(st.sampled_from(names))
    page_size = draw(st.sampled_from((1, 3, 16, 64)))
    beginning = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7)) * draw(st.integers(1, 3))
    prompts = draw(
        st.lists(
            st.tuples(st.integers(0, len(beginning)), st.lists(st.integers(0, VOCAB - 1), max_size=4)),
            min_size=1,
            max_size=5,
        )
    )
    prompts = [tuple(beginning[:shared] + own) or (1,) for shared, own in prompts]
    counts = [draw(st.integers(1, 9)) for _ in prompts]
    longest = max(len(prompt) + count - 1 for prompt, count in zip(prompts, counts, strict=True))
    fewest = -(-longest // page_size)
    num_pages = fewest + draw(st.integers(0, 2 + fewest))
    drafter = None
    if name != "hybrid":
        quality = "mtp" if name == "mtp" else draw(st.sampled_from((None, "ngram", 1.0, 0.7, 0.0)))
        if quality == "ngram":
            drafter = NGramDrafter(draw(st.integers(1, 4)), draw(st.integers(1, 3)))
        elif quality == "mtp":
            drafter = MTPDrafter(draw(st.integers(1, 3)))
        elif quality is not None:
            drafter = Guesses(name, draw(st.integers(1, 5)), quality, draw(st.integers(0, 99)))
    options = {
        "num_pages": num_pages,
        "page_size": page_size,
        "mla": draw(st.sampled_from(("latent", "expanded"))),
        "max_batch_tokens": draw(st.sampled_from((1, 2, 3, 5, 8, 64))),
        "share_prefixes": False if name == "hybrid" else draw(st.booleans()),
        "drafter": drafter,
    }
    if options["mla"] == "latent" and name in ("mla", "mla-moe", "mtp"):
        options["capture"] = draw(st.booleans())
    waits = [draw(st.integers(0, 3)) for _ in prompts]
    return name, prompts, counts, waits, options


def run(name, prompts, counts, waits, options):
    """Requests that come one by one, with steps between them."""
    engine = Engine(model_of(name), **options)
    for layer in (*engine.cache.layers, engine.cache.mtp):
        if layer is not None and not isinstance(layer, StateCache):
            poison(layer)
    requests = []
    for prompt, count, wait in zip(prompts, counts, waits, strict=True):
        requests.append(engine.submit(prompt, SamplingParams(max_new_tokens=count)))
        for _ in range(wait):
            engine.step()
    for _ in range(2000):
        if engine.is_idle:
            break
        engine.step()
    assert engine.is_idle
    assert engine.table.allocator.num_free == options["num_pages"]
    assert engine.table.lengths == [0] * engine.table.batch_size
    return engine, requests


@settings(max_examples=60, deadline=None)
@given(workloads())
def test_greedy_tokens_are_those_of_the_plain_loop(workload):
    name, prompts, counts, *_ = workload
    _, requests = run(*workload)
    for request, prompt, count in zip(requests, prompts, counts, strict=True):
        assert request.output == plain(name, prompt, count)
        assert request.finish_reason == "length"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 90)), max_size=40), st.integers(1, 40))
def test_what_was_once_cheaper_absorbed_is_remembered_rightly(steps, rank):
    widths = {"qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 6, "q_lora_rank": None}
    mla = MLAConfig(hidden_size=8, num_attention_heads=2, kv_lora_rank=rank, **widths)
    config = ModelConfig(vocab_size=2, hidden_size=8, intermediate_size=1, layers=("mla",), mla=mla)
    engine = Engine(Decoder(config, device="meta"), 1, backend="reference")
    for num_new, num_cached in steps:
        num_keys = num_new + num_cached
        assert engine._mode(num_new, num_keys) == cheaper_mode(mla, num_new, num_keys)
