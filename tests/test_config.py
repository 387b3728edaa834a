import inspect
import json

import pytest

from mla_edu import GQAConfig, MLAConfig, config_from_hf
from mla_edu.rope_scaling import YarnScaling

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
STRANGE = {f"a{number}": number for number in range(8)}
MLA = {"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


@pytest.mark.parametrize(("groups", "kind"), [(8, "mha"), (4, "gqa"), (2, "gqa"), (1, "mqa")])
def test_kind_follows_from_the_number_of_groups(groups, kind):
    config = GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=groups, head_dim=16)
    assert config.kind == kind
    assert config.group_size == 8 // groups
    assert config.elements_per_token == 2 * groups * 16


def test_mla_caches_one_latent_and_one_rotary_key():
    assert MLAConfig(hidden_size=7168, num_attention_heads=128, **MLA).elements_per_token == 576


def test_one_head_is_multi_head_attention():
    assert GQAConfig(hidden_size=64, num_attention_heads=1, num_key_value_heads=1, head_dim=16).kind == "mha"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=3, head_dim=16),
            "num_key_value_heads is 3; expected a divisor of num_attention_heads, 8",
        ),
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=-8, num_key_value_heads=2, head_dim=16),
            "num_attention_heads is -8; expected greater than 0",
        ),
        (
            lambda: GQAConfig(hidden_size=0, num_attention_heads=8, num_key_value_heads=2, head_dim=16),
            "hidden_size is 0; expected greater than 0",
        ),
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=15),
            "head_dim is 15; expected an even number",
        ),
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16.0),
            "head_dim is 16.0; expected a valid integer",
        ),
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=True, num_key_value_heads=1, head_dim=16),
            "num_attention_heads is True; expected a valid integer",
        ),
        (
            lambda: GQAConfig(
                hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16, rope_theta=-1.0
            ),
            "rope_theta is -1.0; expected greater than 0",
        ),
        (
            lambda: GQAConfig(
                hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16, sliding_window=0
            ),
            "sliding_window is 0; expected greater than 0",
        ),
        (
            lambda: GQAConfig(
                hidden_size=64,
                num_attention_heads=8,
                num_key_value_heads=2,
                head_dim=16,
                rope_scaling={"rope_type": "spiral"},
            ),
            "'spiral'.*'linear', 'llama3', 'yarn'",
        ),
        (
            lambda: GQAConfig(
                hidden_size=64,
                num_attention_heads=8,
                num_key_value_heads=2,
                head_dim=16,
                rope_scaling={"rope_type": "linear"},
            ),
            "factor: missing",
        ),
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16, heads=4),
            "heads is 4; no such name; did you mean head_dim",
        ),
        (
            lambda: GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16, **STRANGE),
            "a0 is 0; .*a1 is 1; .*a2 is 2; no such name; [^;]*; 5 more names that are none$",
        ),
        (
            lambda: MLAConfig(hidden_size=64, num_attention_heads=8, **MLA | {"qk_rope_head_dim": 63}),
            "qk_rope_head_dim is 63; expected an even",
        ),
        (
            lambda: MLAConfig(hidden_size=64, num_attention_heads=8, **MLA | {"kv_lora_rank": 0}),
            "kv_lora_rank is 0; expected greater than 0",
        ),
        (
            lambda: MLAConfig(hidden_size=64, num_attention_heads=8, **MLA, mla_scale_q_lora=True),
            "mla_scale_q_lora is True; expected a q_lora_rank with it",
        ),
        (
            lambda: MLAConfig(hidden_size=64, num_attention_heads=8, **MLA, llama_4_scaling_beta=0.1),
            "llama_4_scaling_beta is 0.1; expected YaRN's rope_scaling with it",
        ),
        (
            lambda: MLAConfig(hidden_size=64, num_attention_heads=8, **MLA, llama_4_scaling_beta=-0.1),
            "llama_4_scaling_beta is -0.1; expected greater",
        ),
    ],
)
def test_an_impossible_configuration_names_argument_value_and_expectation(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_configuration_cannot_be_changed():
    config = GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, head_dim=16)
    with pytest.raises(
        ValueError, match="num_key_value_heads of a GQAConfig cannot be changed; expected a new GQAConfig"
    ):
        config.num_key_value_heads = 3


def test_llama_defaults_follow_transformers():
    config = config_from_hf({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 8})
    assert config == GQAConfig(hidden_size=64, num_attention_heads=8, num_key_value_heads=8, head_dim=8)


def test_mistral_is_silent_about_its_window_and_groups():
    silent = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 8}
    assert config_from_hf(silent) == GQAConfig(
        hidden_size=64, num_attention_heads=8, num_key_value_heads=8, head_dim=8, sliding_window=4096
    )
    assert config_from_hf(silent | {"sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
    ],
)
def test_both_layouts_of_rotary_settings_are_read(rope):
    config = config_from_hf(LLAMA | rope)
    assert config == GQAConfig(
        hidden_size=64,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=5e5,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
    )


def test_deepseek_v3_is_read_with_its_yarn():
    hf = {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
        },
    }
    config = config_from_hf(hf)
    assert config.kind == "mla"
    assert isinstance(config.rope_scaling, YarnScaling)
    assert (config.rope_scaling.factor, config.rope_scaling.mscale_all_dim) == (40.0, 1.0)


def test_a_file_its_folder_and_its_dict_say_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert config_from_hf(tmp_path) == config_from_hf(tmp_path / "config.json") == config_from_hf(LLAMA)


def test_the_text_part_of_a_multimodal_model_is_read():
    assert config_from_hf({"model_type": "llava", "text_config": LLAMA}) == config_from_hf(LLAMA)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        ("{}", "model_type is None; expected the name of a model family"),
        ('{"model_type": "gpt9"}', "model_type is 'gpt9'; expected one of .*llama"),
        (
            '{"model_type": "llama", "hidden_size": null, "num_attention_heads": 8}',
            "hidden_size is None; expected a positive number",
        ),
        ('{"model_type": "llama", "hidden_size": "x", "num_attention_heads": 2}', "hidden_size is 'x'"),
        ('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 0}', "num_attention_heads is 0"),
    ],
)
def test_an_unusable_config_json_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        config_from_hf(tmp_path)


def test_a_missing_config_json_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        config_from_hf(tmp_path / "nowhere")


@pytest.mark.parametrize("config_class", [GQAConfig, MLAConfig])
def test_a_configuration_takes_its_fields_by_name_and_nothing_else(config_class):
    parameters = inspect.signature(config_class).parameters
    assert list(parameters) == list(config_class.model_fields)
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    with pytest.raises(TypeError, match="positional"):
        config_class(64, 8)
    assert "__init__" not in vars(config_class)  # a type checker then sees pydantic's
