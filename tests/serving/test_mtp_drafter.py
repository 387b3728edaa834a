"""Guesses of the MTP module, over pages: those of a full pass, whatever is shared, cut or preempted."""

import pytest
import torch

from mla_edu.cache import LatentCache
from mla_edu.serving import Engine, MTPDrafter, SamplingParams
from mla_edu.testing import poison, relative_error
from tiny_engines import model_of, plain

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5)
OTHER = (*PROMPT[:8], 7)


@torch.no_grad()
def guesses_after(tokens, count):
    """What the module guesses after a text, with everything computed again and nothing cached."""
    model = model_of("mtp")
    hidden, text = model.hidden_states(torch.tensor([tokens[:-1]])), list(tokens[1:])
    for _ in range(count):
        out = model.mtp(hidden, torch.tensor([text]), model.embed_tokens)
        text.append(int(model.logits(out[0, -1]).argmax()))
        hidden = torch.cat((hidden, out[:, -1:]), dim=1)
    return text[len(tokens) - 1 :]


@torch.no_grad()
def kept_rows(tokens):
    """What the module's layer keeps of a text but its last token, everything computed again."""
    model = model_of("mtp")
    cache = LatentCache(model.config.part(-1), max_seq_len=len(tokens), dtype=torch.float64)
    hidden = model.hidden_states(torch.tensor([tokens[:-1]]))
    model.mtp(hidden, torch.tensor([tokens[1:]]), model.embed_tokens, cache)
    return cache.rows[0, : len(tokens) - 1]


class Helped(MTPDrafter):
    """Replaces some of the module's guesses by the right ones, so that verification keeps some."""

    def _guess(self, request, logits, guesses):
        super()._guess(request, logits, guesses)
        place = len(request.output) + len(request.drafts)
        right = plain("mtp", request.prompt, request.params.max_new_tokens)
        if place % 3:
            request.drafts[-1] = right[place - 1]


def serve(prompts, drafter, check, count=8, **options):
    """Serve prompts, each joining while others run; after each step ``check`` looks at every request that runs."""
    engine = Engine(model_of("mtp"), **{"num_pages": 40, "page_size": 4} | options, drafter=drafter)
    for layer in (*engine.cache.layers, engine.cache.mtp):
        poison(layer)
    requests = []
    while len(requests) < len(prompts) or not engine.is_idle:
        if len(requests) < len(prompts):
            prompt = prompts[len(requests)]
            requests.append(engine.submit(prompt, SamplingParams(max_new_tokens=count)))
        engine.step()
        for request in engine.scheduler.running:
            check(engine, request)
    assert [request.output for request in requests] == [plain("mtp", prompt, count) for prompt in prompts]
    assert engine.table.allocator.num_free == engine.table.allocator.num_pages
    return engine


SETTINGS = pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, "found"),
        ({"page_size": 1}, "found"),
        ({"max_batch_tokens": 2}, "found"),
        ({"num_pages": 5, "max_batch_tokens": 5}, "preempted"),
        ({"share_prefixes": False}, "drafted"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
PROMPTS = (PROMPT, PROMPT, OTHER, PROMPT[:5])


@pytest.mark.parametrize("mla", ["latent", "expanded"])
@SETTINGS
def test_guesses_are_those_of_a_full_pass(mla, options, seen):
    checked = []

    def check(engine, request):
        if request.drafts:
            assert len(request.drafts) <= min(3, request.num_left - 1)
            assert request.drafts == guesses_after(request.tokens, len(request.drafts))
            checked.extend(request.drafts)

    engine = serve(PROMPTS, MTPDrafter(3), check, mla=mla, **options)
    assert getattr(engine.stats, seen) > 0
    assert len(checked) > 20


@SETTINGS
def test_the_modules_latents_are_those_of_a_full_pass_behind_guesses_that_stay(options, seen):
    def check(engine, request):
        count = engine.scheduler.num_computed(request)
        rows = {place.start: rows[0] for place, (rows,) in engine.table.read(*engine.cache.mtp.memory)}
        assert relative_error(rows[request.row], kept_rows(request.tokens[: count + 1])) < 1e-10

    engine = serve(PROMPTS, Helped(3), check, **options)
    assert getattr(engine.stats, seen) > 0
    assert 0 < engine.stats.accepted < engine.stats.drafted


def test_a_page_is_shared_only_where_the_token_after_it_is_the_same():
    """The last latent of the module in a page comes from that token too."""
    engine = Engine(model_of("mtp"), 20, 4, drafter=MTPDrafter())
    engine.generate([PROMPT], SamplingParams(max_new_tokens=2))
    engine.generate([OTHER], SamplingParams(max_new_tokens=2))
    assert engine.stats.found == 4  # the second page ends before another token
    without = Engine(model_of("mtp"), 20, 4)
    for prompt in (PROMPT, OTHER):
        without.generate([prompt], SamplingParams(max_new_tokens=2))
    assert without.stats.found == 8


def test_guesses_of_requests_that_draw_are_drawn_and_their_distributions_kept():
    engine = Engine(model_of("mtp"), 40, 4, drafter=MTPDrafter(2))
    params = SamplingParams(max_new_tokens=9, temperature=1.5, top_p=0.9, seed=3)
    drawn, greedy = engine.submit(PROMPT, params), engine.submit(OTHER, SamplingParams(max_new_tokens=9))
    engine.step()
    assert drawn.draft_probabilities.shape == (2, 11)
    assert torch.allclose(drawn.draft_probabilities.sum(-1), torch.ones(2, dtype=torch.float64))
    assert all(drawn.draft_probabilities[i, draft] > 0 for i, draft in enumerate(drawn.drafts))
    assert greedy.draft_probabilities is None
    while not engine.is_idle:
        engine.step()
    assert len(drawn.output) == 9
    assert greedy.output == plain("mtp", OTHER, 9)


def test_an_error_while_guessing_leaves_the_lengths_as_they_were(monkeypatch):
    engine = Engine(model_of("mtp"), 40, 4, drafter=MTPDrafter(3))
    request = engine.submit(PROMPT, SamplingParams(max_new_tokens=6))
    calls = []

    def broken(hidden):
        calls.append(len(calls))
        if len(calls) == 3:  # the model's own logits, the first guess, and then
            raise RuntimeError("out of memory")
        return real(hidden)

    real = engine.model.logits
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "logits", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    assert engine.table.lengths[request.row] == len(PROMPT)
    while not engine.is_idle:
        engine.step()
    assert request.output == plain("mtp", PROMPT, 6)


def test_a_model_without_the_module_is_refused():
    with pytest.raises(ValueError, match="drafter is an MTPDrafter; expected a model with an MTP module"):
        Engine(model_of("mla"), 8, drafter=MTPDrafter())
    with pytest.raises(ValueError, match="num_drafts is 0; expected a positive integer"):
        MTPDrafter(0)
