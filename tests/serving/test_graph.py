"""Steps over fixed buffers: the same tokens, nothing read back, and no live page touched by what fills up a batch."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mla_edu.cache import PageTable
from mla_edu.cache import latent as latent_caches
from mla_edu.models import Decoder
from mla_edu.models.cache import ModelCache
from mla_edu.serving import Drafter, Engine, NGramDrafter, SamplingParams
from mla_edu.serving.graph import DecodeGraphs
from mla_edu.testing import poison
from tiny_engines import model_of, plain

PROMPTS = [(1, 2, 3), (4, 5, 6, 7, 8, 9, 1, 2), (3, 1, 4, 1, 5), (9, 2, 6)]


def counted(engine):
    """The batches that the engine's graphs are asked for."""
    batches, once = [], engine.graphs.run

    def count(tokens, rows):
        batches.append(len(rows))
        return once(tokens, rows)

    engine.graphs.run = count
    return batches


def test_what_fills_up_a_batch_touches_no_live_page_and_is_not_seen():
    """Three requests in a batch of four; NaN in all that nobody owns, the spare page included."""
    engine = Engine(model_of("mla-moe"), 12, 4, capture=True)
    for layer in engine.cache.layers:
        poison(layer)
    table, once, batches = engine.table, engine.graphs.run, []

    def watch(tokens, rows):
        before = [layer.pages.clone() for layer in engine.cache.layers]
        outputs = once(tokens, rows)
        new = {(table.pages_of[row][table.lengths[row] // 4], table.lengths[row] % 4) for row in rows}
        for layer, old in zip(engine.cache.layers, before, strict=True):
            same = torch.isclose(layer.pages, old, rtol=0, atol=0, equal_nan=True).all(-1)
            assert {tuple(each) for each in (~same).nonzero().tolist()} - {(12, 0)} == new
        batches.append(len(rows))
        return outputs

    engine.graphs.run = watch
    written = engine.generate(PROMPTS[:3], SamplingParams(max_new_tokens=6))
    assert batches == [3] * 5
    assert written == [plain("mla-moe", prompt, 6) for prompt in PROMPTS[:3]]


def test_sizes_are_powers_of_two_up_to_the_whole_table():
    engine = Engine(model_of("mla"), 5, 16, capture=True)
    assert [engine.graphs.size(rows) for rows in (1, 2, 3, 4, 5)] == [1, 2, 4, 4, 5]
    batches = counted(engine)
    engine.generate(PROMPTS, [SamplingParams(max_new_tokens=2 + 2 * i) for i in range(4)])
    assert set(batches) == {1, 2, 3, 4} and list(engine.graphs._steps) == [(4, 1), (2, 1), (1, 1)]
    engine.generate([*PROMPTS, (5, 5)], SamplingParams(max_new_tokens=2))
    assert batches[-1] == 5 and list(engine.graphs._steps) == [(4, 1), (2, 1), (1, 1), (5, 1)]


def test_a_batch_of_more_than_few_tokens_is_not_captured():
    graphs = Engine(model_of("mla"), 300, 4, capture=True).graphs
    assert graphs.holds(256, 1) and graphs.holds(64, 4) and graphs.holds(33, 4)
    assert not graphs.holds(257, 1) and not graphs.holds(65, 3) and not graphs.holds(64, 5)


class Scripted(Drafter):
    """As many guesses for each request, the second one wrong."""

    def __init__(self, texts):
        self.texts = texts

    def propose(self, requests):
        for request in requests:
            guesses = self.texts[request.prompt][len(request.output) :][:3]
            request.drafts = [*guesses[:1], *((token + 1) % 11 for token in guesses[1:2]), *guesses[2:]]


@pytest.mark.parametrize("name", ["mla", "mla-moe"])
def test_as_many_guesses_for_each_are_captured(name):
    """Three requests in a batch of four, of which each step keeps one guess of three; NaN in all that nobody owns."""
    texts = {prompt: plain(name, prompt, 13) for prompt in PROMPTS[:3]}
    engine = Engine(model_of(name), 24, 4, capture=True, drafter=Scripted(texts))
    for layer in engine.cache.layers:
        poison(layer)
    batches = counted(engine)
    assert engine.generate(PROMPTS[:3], SamplingParams(max_new_tokens=13)) == list(texts.values())
    assert engine.stats.accepted == 3 * 6 and len(batches) == engine.stats.steps - 1 == 6
    assert (4, 4) in engine.graphs._steps


def test_steps_of_unequal_guesses_or_parts_of_prompts_are_not_captured():
    engine = Engine(model_of("mla"), 30, 4, max_batch_tokens=16, capture=True, drafter=NGramDrafter(3))
    batches, prompts = counted(engine), [(1, 2, 3) * 6, (4, 5)]
    expected = [plain("mla", prompt, 12) for prompt in prompts]
    assert engine.generate(prompts, SamplingParams(max_new_tokens=12)) == expected
    assert engine.stats.drafted and 0 < len(batches) < engine.stats.steps - 2


def test_sampled_tokens_are_those_of_the_ordinary_step():
    params = [SamplingParams(max_new_tokens=7, temperature=1.3, top_p=0.9, seed=seed) for seed in range(4)]
    ordinary, fixed = (Engine(model_of("mla-moe"), 30, 4, capture=capture) for capture in (False, True))
    assert fixed.generate(PROMPTS, params) == ordinary.generate(PROMPTS, params)


def test_nothing_is_captured_unless_all_layers_keep_latents():
    assert Engine(model_of("mla"), 3).graphs is None  # on a CPU
    for name, mla in (("gqa", "latent"), ("hybrid", "latent"), ("mla", "expanded")):
        assert Engine(model_of(name), 3, mla=mla).graphs is None
        with pytest.raises(ValueError, match="capture is True .*; expected latents alone"):
            Engine(model_of(name), 3, mla=mla, capture=True)


class Traffic(TorchDispatchMode):
    """Copies between devices, and readings of a device tensor by the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {each.device for each in (*args, out) if isinstance(each, torch.Tensor) and each.ndim}
        if len(devices) > 1 or func._overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.seen.append(str(func))
        return out


@pytest.mark.parametrize("num_new", [1, 3])
@pytest.mark.parametrize("name", ["mla", "mla-moe"])
def test_a_step_reads_nothing_back_and_copies_nothing_but_its_input(name, num_new, monkeypatch):
    """On the meta device, which has no numbers that could be read: what a CUDA graph asks of a step."""
    monkeypatch.setattr(latent_caches, "mla_decode", lambda q, *_, kv_lora_rank, **__: q[..., :kv_lora_rank])
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know that device
    model = Decoder(model_of(name).config, device="meta")
    table = PageTable(8, 4, batch_size=5, device="meta", spare_pages=1)
    cache = ModelCache(model.config, dtype=torch.float32, table=table)
    graphs = DecodeGraphs(model, cache)
    with table.step(5, [1, 4, 2]):
        pass
    with table.steps([(num_new, [1, 4, 2])]):
        graphs.run([1, 2, 3] * num_new, [1, 4, 2])  # the rotary frequencies reach the device once
        with Traffic() as traffic:
            hidden, logits = graphs.run([1, 2, 3] * num_new, [1, 4, 2])
    assert hidden.shape == (3 * num_new, 24) and logits.shape == (3 * num_new, 11)
    assert traffic.seen == ["aten.copy_.default"]
