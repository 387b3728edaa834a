"""Checkpoints of every family, loaded and served: the text is the one that transformers writes."""

import pytest
import torch

from mla_edu.models import load_model
from mla_edu.serving import Engine, NGramDrafter, SamplingParams
from tiny_models import MODELS, draw_tokens, their_model

LENGTHS, NEW = (9, 4, 9, 2), 6


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_writes_what_transformers_writes(name, tmp_path):
    family, options = MODELS[name]
    theirs = their_model(family, options)
    theirs.save_pretrained(tmp_path)
    text = draw_tokens(max(LENGTHS), batch=1)[0].tolist()
    prompts = [text[:length] for length in LENGTHS]
    expected = []
    for prompt in prompts:
        whole = theirs.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        expected.append(whole[0, len(prompt) :].tolist())
    model = load_model(tmp_path, dtype=torch.float64)
    for mla in ("latent", "expanded"):
        engine = Engine(model, num_pages=5, page_size=4, mla=mla, max_batch_tokens=7, drafter=NGramDrafter(3))
        assert engine.generate(prompts, SamplingParams(max_new_tokens=NEW)) == expected
        assert engine.stats.preempted
        assert engine.generate(prompts[:1], SamplingParams(max_new_tokens=NEW)) == expected[:1]
        assert engine.stats.found
