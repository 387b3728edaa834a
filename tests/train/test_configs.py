"""The models of configs/: each is read, takes a step and is saved as what it should be."""

from pathlib import Path

import pytest
import torch

from mla_edu.models import ModelConfig, load_model, save_model
from mla_edu.train.run import Run, cache_bytes_per_token
from mla_edu.train.settings import RunConfig, TrainConfig

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
SAVED_AS = {"gqa-small": "llama", "mamba-mla": "mla_edu", "guide-mamba-mla": "mla_edu"}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for number in range(30):
        (folder / f"{number}.txt").write_text(f"the cat {number} sat on the mat; " * 30)
    return str(folder)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_takes_a_step_and_is_saved(tmp_path, text, name):
    config = RunConfig.from_yaml(CONFIGS[name])
    depth = 2 if name == "guide-mla-moe" else 4  # enough to have each kind of layer
    shorter = {"layers": config.model.layers[:depth], "feed_forward": config.model.feed_forward[:depth]}
    model = ModelConfig(**config.model.model_dump() | shorter)
    learning = TrainConfig(**config.train.model_dump() | {"text": [text], "batch_size": 1, "seq_len": 8})
    run = Run(RunConfig(model=model, train=learning))
    assert 7 < run.advance()["bits_per_byte"] < 10
    assert save_model(run.model, tmp_path / "out") == SAVED_AS.get(name, "deepseek_v3")
    tokens = torch.arange(5)[None]
    with torch.no_grad():
        mtp = config.model.num_mtp_layers == 1
        assert torch.equal(load_model(tmp_path / "out", mtp=mtp)(tokens), run.model(tokens))


def test_the_small_twins_cache_as_many_numbers():
    mla, gqa = (RunConfig.from_yaml(CONFIGS[name]).model for name in ("mla-small", "gqa-small"))
    assert cache_bytes_per_token(mla) == cache_bytes_per_token(gqa)


def test_the_guides_examples_have_its_numbers():
    plain, experts, hybrid = (
        RunConfig.from_yaml(CONFIGS[name]).model for name in ("guide-mla", "guide-mla-moe", "guide-mamba-mla")
    )
    for model in (plain, experts, hybrid):
        assert (model.hidden_size, len(model.layers), model.mla.num_attention_heads) == (512, 8, 8)
        assert (model.mla.kv_lora_rank, model.mla.q_lora_rank, model.mla.qk_rope_head_dim) == (192, 192, 16)
    assert (experts.moe.n_routed_experts, experts.moe.num_experts_per_tok, experts.moe.n_shared_experts) == (4, 2, 1)
    assert [i for i, kind in enumerate(hybrid.layers) if kind == "mla"] == [3, 7]
    assert hybrid.mamba2.num_heads == 48
