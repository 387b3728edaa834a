"""Mixture of experts against transformers: the same experts, with the same weights, for drawn shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe_lite.configuration_glm4_moe_lite import Glm4MoeLiteConfig
from transformers.models.glm4_moe_lite.modeling_glm4_moe_lite import Glm4MoeLiteMoE

from mla_edu.config import MoEConfig
from mla_edu.layers import moe
from mla_edu.layers.moe import MixtureOfExperts, Routing, expert_load, route, sequence_balance_loss
from mla_edu.testing import randomize, relative_error

THEIRS = {
    "deepseek_v2": (DeepseekV2Config, DeepseekV2Moe),
    "deepseek_v3": (DeepseekV3Config, DeepseekV3MoE),
    "glm4_moe_lite": (Glm4MoeLiteConfig, Glm4MoeLiteMoE),
}
TOKENS = 23
ROUNDED = 1e-5  # their routers compute in float32


@st.composite
def moe_configs(draw, scoring_func=None):
    """Small mixtures whose sizes are no powers of two."""
    groups, within = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    kept = draw(st.integers(1, groups))
    scoring_func = scoring_func or draw(st.sampled_from(["softmax", "sigmoid"]))
    return MoEConfig(
        hidden_size=draw(st.integers(5, 19)),
        n_routed_experts=groups * within,
        num_experts_per_tok=draw(st.integers(1, kept * within)),
        moe_intermediate_size=draw(st.integers(3, 11)),
        n_shared_experts=draw(st.integers(1, 3)),
        n_group=groups,
        topk_group=kept,
        scoring_func=scoring_func,
        # V2's router in transformers never divides.
        norm_topk_prob=scoring_func == "sigmoid" and draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5, 16.0])),
    )


def theirs(family, config, seed):
    """The family's own layer of these numbers in float64, every weight and the bias random."""
    config_class, layer_class = THEIRS[family]
    options = config.model_dump(exclude={"scoring_func"}) | {"num_attention_heads": 1}
    if family == "deepseek_v2":
        del options["norm_topk_prob"]
        options["topk_method"] = "group_limited_greedy" if config.n_group > 1 else "greedy"
    their_config = config_class(**options)
    their_config._experts_implementation = "eager"
    layer = randomize(layer_class(their_config).double(), seed)
    if hasattr(layer.gate, "e_score_correction_bias"):
        layer.gate.e_score_correction_bias = randomize_bias(config.n_routed_experts, seed)
    return layer


def randomize_bias(experts, seed):
    return torch.randn(experts, generator=torch.Generator().manual_seed(seed + 1)) / 4


def ours(config, their_layer):
    layer = MixtureOfExperts(config, dtype=torch.float64)
    layer.load_state_dict(their_layer.state_dict())
    return layer


def hidden_states(config, seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*(shape or (TOKENS,)), config.hidden_size, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("family", THEIRS)
@given(data=st.data(), seed=st.integers(0, 99))
@torch.no_grad()
def test_layer_equals_transformers(family, data, seed):
    config = data.draw(moe_configs("softmax" if family == "deepseek_v2" else "sigmoid"))
    their_layer = theirs(family, config, seed)
    x = hidden_states(config, seed, 2, TOKENS)
    assert relative_error(ours(config, their_layer)(x), their_layer(x)) < ROUNDED


def broken(config, layer, monkeypatch, mistake):
    """The layer with one mistake of those that are made."""
    if mistake == "weights from the biased scores":

        def biased(logits, config, bias=None):
            routing = route(logits, config, bias)
            weights = (routing.scores + bias).gather(-1, routing.experts)
            weights = weights / weights.sum(-1, keepdim=True) * config.routed_scaling_factor
            return routing._replace(weights=weights)

        monkeypatch.setattr(moe, "route", biased)
    elif mistake == "no bias":
        layer.gate.e_score_correction_bias.zero_()
    elif mistake == "no shared experts":
        layer.shared_experts = None
    elif mistake == "gate and up exchanged":
        layer.experts.gate_up_proj.copy_(layer.experts.gate_up_proj.roll(config.moe_intermediate_size, dims=1))
    else:
        change = {"not divided": {"norm_topk_prob": False}, "not scaled": {"routed_scaling_factor": 1.0}}[mistake]
        layer.gate.config = config.model_copy(update=change)
    return layer


@pytest.mark.parametrize(
    "mistake",
    [
        "weights from the biased scores",
        "no bias",
        "no shared experts",
        "gate and up exchanged",
        "not divided",
        "not scaled",
    ],
)
@torch.no_grad()
def test_a_mistake_shows(monkeypatch, mistake):
    config = MoEConfig(
        hidden_size=11,
        n_routed_experts=12,
        num_experts_per_tok=3,
        moe_intermediate_size=7,
        n_shared_experts=1,
        n_group=3,
        topk_group=2,
        routed_scaling_factor=2.5,
    )
    their_layer = theirs("deepseek_v3", config, seed=0)
    x = hidden_states(config, 0)
    layer = broken(config, ours(config, their_layer), monkeypatch, mistake)
    assert relative_error(layer(x), their_layer(x)) > 100 * ROUNDED


@given(config=moe_configs(), seed=st.integers(0, 99))
def test_a_token_takes_different_experts_from_few_groups(config, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(TOKENS, config.n_routed_experts, dtype=torch.float64, generator=generator)
    routing = route(logits, config)
    assert all(len(set(row)) == config.num_experts_per_tok for row in routing.experts.tolist())
    groups = routing.experts // (config.n_routed_experts // config.n_group)
    assert all(len(set(row)) <= config.topk_group for row in groups.tolist())
    assert expert_load(routing).sum() == TOKENS * config.num_experts_per_tok
    if config.norm_topk_prob:
        torch.testing.assert_close(
            routing.weights.sum(-1), torch.full((TOKENS,), config.routed_scaling_factor).double()
        )


def test_no_token_is_no_work():
    config = MoEConfig(hidden_size=6, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=3)
    assert MixtureOfExperts(config)(torch.empty(2, 0, 6)).shape == (2, 0, 6)


def test_balance_loss_is_one_for_even_use_and_grows_with_uneven_use():
    even = Routing(torch.tensor([[0], [1], [2], [3]] * 2), torch.ones(8, 1), torch.full((8, 4), 0.25))
    assert sequence_balance_loss(even, batch_size=2) == 1
    scores = torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 8)
    one = Routing(torch.zeros(8, 1, dtype=torch.long), torch.ones(8, 1), scores)
    torch.testing.assert_close(sequence_balance_loss(one, batch_size=2), torch.tensor(4 * 0.7))
    # Each sequence is uneven though the batch is even.
    halves = Routing(torch.tensor([[0], [0], [1], [1]]), torch.ones(4, 1), torch.eye(2).repeat_interleave(2, dim=0))
    assert sequence_balance_loss(halves, batch_size=2) == 2
    assert sequence_balance_loss(halves, batch_size=1) == 1


def test_balance_loss_teaches_the_router():
    config = MoEConfig(hidden_size=6, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=3)
    layer = MixtureOfExperts(config)
    layer(torch.randn(10, 6, generator=torch.Generator().manual_seed(0)))
    sequence_balance_loss(layer.routing, batch_size=2).backward()
    assert layer.gate.weight.grad.abs().sum() > 0


def test_bias_moves_towards_experts_that_got_little():
    config = MoEConfig(hidden_size=6, n_routed_experts=4, num_experts_per_tok=1, moe_intermediate_size=3)
    gate = MixtureOfExperts(config).gate
    gate.balance(torch.tensor([9, 1, 1, 5]), rate=0.001)
    torch.testing.assert_close(gate.e_score_correction_bias, torch.tensor([-0.001, 0.001, 0.001, -0.001]))


def test_repeated_balancing_evens_a_lopsided_router():
    config = MoEConfig(hidden_size=6, n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=3)
    layer = randomize(MixtureOfExperts(config), seed=3)
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) + 1
    loads = []
    for _ in range(200):
        layer(x)
        loads.append(expert_load(layer.routing))
        layer.gate.balance(loads[-1], rate=0.01)
    assert loads[0].max() > 2 * loads[0].float().mean()
    assert loads[-1].max() < 1.2 * loads[-1].float().mean()


def test_softmax_routers_have_no_bias_to_move():
    config = MoEConfig(
        hidden_size=6, n_routed_experts=4, num_experts_per_tok=1, moe_intermediate_size=3, scoring_func="softmax"
    )
    gate = MixtureOfExperts(config).gate
    with pytest.raises(ValueError, match="scoring_func is 'softmax'; expected 'sigmoid'"):
        gate.balance(torch.ones(4), rate=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_group": 5}, "n_group is 5; expected a divisor of n_routed_experts, 12"),
        ({"n_group": 3, "topk_group": 4}, "topk_group is 4; expected at most n_group, 3"),
        ({"n_group": 12, "topk_group": 12}, "n_group is 12; expected groups of at least 2 of the 12 experts"),
        ({"num_experts_per_tok": 9, "n_group": 3, "topk_group": 2}, "num_experts_per_tok is 9; expected at most the 8"),
        ({"scoring_func": "tanh"}, "scoring_func is 'tanh'; expected 'softmax' or 'sigmoid'"),
        ({"moe_intermediate_size": 0}, "moe_intermediate_size is 0; expected greater than 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(change, message):
    options = {"hidden_size": 6, "n_routed_experts": 12, "num_experts_per_tok": 2, "moe_intermediate_size": 3}
    with pytest.raises(ValueError, match=message):
        MoEConfig(**options | change)


@settings(max_examples=30)
@given(config=moe_configs(), tokens=st.integers(0, 9), seed=st.integers(0, 99))
@torch.no_grad()
def test_few_tokens_without_a_loop_over_experts(config, tokens, seed):
    layer = randomize(MixtureOfExperts(config, dtype=torch.float64), seed)
    x = hidden_states(config, seed, tokens)
    routing = layer.gate(x)
    expected = layer.experts(x, routing)
    for part in (layer.experts.gathered, layer.experts.all_at_once):
        out = (part(x, routing) * routing.weights[..., None]).sum(1)
        assert out.shape == expected.shape and (not tokens or relative_error(out, expected) < ROUNDED)


@settings(max_examples=30)
@given(config=moe_configs(), tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_rows_of_an_expert_side_by_side(config, tokens, seed):
    """With their gradients, in float32, for which torch's product of groups is a loop on a CPU."""
    size = config.model_copy(update={"hidden_size": 8, "moe_intermediate_size": 16})
    layer = randomize(MixtureOfExperts(size), seed)
    x = hidden_states(size, seed, tokens).float()
    routing = layer.gate(x)
    both = layer.experts(x, routing), (layer.experts.grouped(x, routing) * routing.weights[..., None]).sum(1)
    assert relative_error(both[1], both[0]) < 1e-5
    expected, found = (torch.autograd.grad(out.square().sum(), layer.experts.down_proj)[0] for out in both)
    assert relative_error(found, expected) < 1e-5


def test_weights_are_gathered_while_that_moves_fewer_bytes():
    """Of DeepSeek-V2-Lite's 64 experts six a token, each moved thrice."""
    shapes = {"hidden_size": 6, "moe_intermediate_size": 3}
    config = MoEConfig(n_routed_experts=64, num_experts_per_tok=6, scoring_func="softmax", **shapes)
    layer = MixtureOfExperts(config)
    few = [tokens for tokens in range(1, 9) if layer.experts.gathering_is_less(layer.gate(torch.zeros(tokens, 6)))]
    assert few == [1, 2, 3]
