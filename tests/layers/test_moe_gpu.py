"""On a GPU: however many tokens experts get, they make of them what they make on a CPU."""

import pytest
import torch

from mla_edu.config import MoEConfig
from mla_edu.layers.moe import FEW, MixtureOfExperts
from mla_edu.testing import randomize, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZES = {"hidden_size": 64, "n_routed_experts": 12, "num_experts_per_tok": 3, "scoring_func": "softmax"}


@pytest.mark.parametrize("inner", [40, 37])
@pytest.mark.parametrize("tokens", [1, 2, 5, 100, FEW + 44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_experts_of_a_cpu(inner, tokens, dtype):
    """Rows of 37 numbers of 16 bits are not whole pieces of 16 bytes: there the product of groups is out."""
    config = MoEConfig(**SIZES, moe_intermediate_size=inner)
    layer = randomize(MixtureOfExperts(config, dtype=dtype), seed=2)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    routing = layer.gate(x)
    exact = randomize(MixtureOfExperts(config, dtype=torch.float64), seed=2)
    exact.load_state_dict(layer.state_dict())
    expected = exact.experts(x.double(), routing)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), exact.experts.gate_up_proj)
    on_gpu = layer.experts.to("cuda")
    out = on_gpu(x.cuda(), type(routing)(*(each.cuda() for each in routing)))
    (grad,) = torch.autograd.grad(out.double().square().sum(), on_gpu.gate_up_proj)
    bound = 5e-2 if dtype == torch.bfloat16 else 2e-3
    assert relative_error(out.cpu().double(), expected) < bound
    assert relative_error(grad.cpu().double(), expected_grad) < bound


def test_on_hopper_a_layer_of_many_tokens_can_be_recorded():
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")
    config = MoEConfig(**SIZES, moe_intermediate_size=40)
    layer = randomize(MixtureOfExperts(config, dtype=torch.bfloat16), seed=2).requires_grad_(False).to("cuda")
    x = torch.randn(3 * FEW, 64, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    expected = layer(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = layer(x)
    graph.replay()
    assert torch.equal(out, expected)
