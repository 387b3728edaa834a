import pytest

from mla_edu import MLAConfig
from mla_edu.models.oracle import MLA_FAMILIES, family_config

WIDTHS = {"q_lora_rank": None, "kv_lora_rank": 7, "qk_nope_head_dim": 5, "qk_rope_head_dim": 6, "v_head_dim": 9}
MLA = MLAConfig(hidden_size=24, num_attention_heads=3, **WIDTHS)


@pytest.mark.parametrize("family", MLA_FAMILIES)
def test_a_familys_configuration_keeps_the_widths(family):
    config = family_config(family, MLA)
    assert config.elements_per_token == MLA.elements_per_token
    assert config == family_config(family, config)
