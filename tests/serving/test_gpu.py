"""On a GPU: steps that are captured write what steps driven by the host write, and what the plain loop writes."""

from functools import cache

import pytest
import torch

from mla_edu.models import Decoder, ModelConfig, generate
from mla_edu.serving import Engine, NGramDrafter, SamplingParams
from mla_edu.testing import poison, randomize

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZES = {"num_attention_heads": 16, "q_lora_rank": None, "kv_lora_rank": 64, "qk_nope_head_dim": 16}
MLA = SIZES | {"qk_rope_head_dim": 32, "v_head_dim": 16}
MOE = {"n_routed_experts": 24, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_shared_experts": 1}
LENGTHS, NEW = (40, 7, 33, 70, 21), 12


@cache
def model_of(dtype):
    """Seven layers, most with experts: of few tokens some are gathered (up to two), of more all take part."""
    moe = MOE | {"scoring_func": "softmax", "norm_topk_prob": False}
    kinds = {"layers": ["mla"] * 7, "feed_forward": ["dense"] + ["moe"] * 6, "mla": MLA, "moe": moe}
    config = ModelConfig(vocab_size=97, hidden_size=128, intermediate_size=160, **kinds)
    return randomize(Decoder(config, dtype=dtype), seed=3).requires_grad_(False).to("cuda")


@cache
def plain(count=NEW):
    return [list(generate(model_of(torch.float32), prompt, max_new_tokens=count)) for prompt in prompts()]


def prompts(shared=0):
    rng = torch.Generator().manual_seed(1)
    text = torch.randint(97, (shared + sum(LENGTHS),), generator=rng).tolist()
    starts = [shared + sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    return [text[:shared] + text[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


def serve(capture, texts, new=NEW, dtype=torch.float32, params=None, **options):
    engine = Engine(model_of(dtype), **{"num_pages": 60, "page_size": 16} | options, capture=capture)
    for layer in engine.cache.layers:
        poison(layer)
    return engine, engine.generate(texts, params or SamplingParams(max_new_tokens=new))


def test_captured_steps_write_what_the_plain_loop_writes():
    engine, written = serve(True, prompts())
    assert written == serve(False, prompts())[1] == plain()
    assert list(engine.graphs._steps) == [(8, 1)]
    requests = [engine.submit(p, SamplingParams(max_new_tokens=2 + 3 * i)) for i, p in enumerate(prompts())]
    while not engine.is_idle:
        engine.step()
    assert [request.output for request in requests] == [text[: 2 + 3 * i] for i, text in enumerate(plain(14))]
    assert {size for size, _ in engine.graphs._steps} == {8, 4, 2, 1} and engine.stats.found


def test_a_gpu_captures_unless_told_otherwise():
    assert Engine(model_of(torch.float32), 4).graphs is not None
    assert Engine(model_of(torch.float32), 4, backend="reference").graphs is None
    assert Engine(model_of(torch.float32), 4, mla="expanded").graphs is None


@pytest.mark.parametrize("num_pages", [6, 7])
def test_preempted_requests_write_the_same(num_pages):
    engine, written = serve(True, prompts(), num_pages=num_pages, max_batch_tokens=64)
    assert written == plain() and engine.stats.preempted and engine.graphs._steps


def test_found_prefixes_write_the_same():
    texts = prompts(shared=64)
    model = model_of(torch.float32)
    expected = [list(generate(model, text, max_new_tokens=NEW)) for text in texts]
    engine, written = serve(True, texts[:1])
    assert written == expected[:1]
    requests = [engine.submit(text, SamplingParams(max_new_tokens=NEW)) for text in texts]
    while not engine.is_idle:
        engine.step()
    assert [request.output for request in requests] == expected and engine.stats.found >= 4 * 64


def test_verified_guesses_write_the_same():
    """Of five requests with unequal guesses, which are not captured, and of one alone."""
    texts = [text * 3 for text in prompts()]
    expected = serve(False, texts, 30)[1]
    engine, written = serve(True, texts, 30, drafter=NGramDrafter(3))
    assert written == expected and engine.stats.accepted
    engine = Engine(model_of(torch.float32), 60, 16, drafter=NGramDrafter(3))
    assert [engine.generate([text], SamplingParams(max_new_tokens=30))[0] for text in texts] == expected
    assert {(1, 2), (1, 4)} & engine.graphs._steps.keys()


def test_the_same_kernels_in_bf16_write_the_same_to_the_token():
    """Four requests, a batch that nothing fills up: both ways multiply the same shapes."""
    texts = prompts()[:4]
    assert serve(True, texts, 40, torch.bfloat16)[1] == serve(False, texts, 40, torch.bfloat16)[1]


def test_seeded_draws_are_the_same():
    params = [SamplingParams(max_new_tokens=NEW, temperature=0.8, top_p=0.9, seed=seed) for seed in range(4)]
    captured, driven = (serve(capture, prompts()[:4], params=params)[1] for capture in (True, False))
    assert captured == driven and captured != plain()[:4]


def test_an_error_while_a_step_is_captured_leaves_the_engine_usable(monkeypatch):
    engine = Engine(model_of(torch.float32), 60, 16)
    requests = [engine.submit(text, SamplingParams(max_new_tokens=NEW)) for text in prompts()]
    engine.step()
    head = engine.model.logits
    calls = []

    def fail(hidden):
        calls.append(1)
        if len(calls) == 2:  # the first runs, the second is recorded
            raise RuntimeError("in mid-capture")
        return head(hidden)

    monkeypatch.setattr(engine.model, "logits", fail)
    with pytest.raises(RuntimeError, match="in mid-capture"):
        engine.step()
    monkeypatch.undo()
    while not engine.is_idle:
        engine.step()
    assert [request.output for request in requests] == plain()
