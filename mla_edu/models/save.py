"""Whole models as folders that ``transformers``, and any server of DeepSeek-V3 or Llama, loads by itself."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.files import check_path
from mla_edu.hf.own import OWN
from mla_edu.models.config import ModelConfig
from mla_edu.models.decoder import Decoder
from mla_edu.models.load import checkpoint_places
from mla_edu.validation import readable

SHARD = 4 * 10**9  # bytes of a file, at most


def save_model(model: Decoder, folder: str | Path) -> str:
    """Write ``config.json`` and safetensors into a new folder; returns the ``model_type`` that it has got.

    A model of MLA layers is written as ``deepseek_v3`` (as ``deepseek_v2`` where its experts are chosen by a softmax),
    one of grouped-query layers as ``llama`` or ``mistral``. A model that no class of transformers is, such as one with
    Mamba-2 layers, is written as ``mla_edu``, which ``load_model`` alone reads. The module for one token further stands
    behind the last layer as in DeepSeek-V3, without its copies of embedding and head. transformers 5.23 leaves it out;
    to draft, it reads one that is layer 61 and has experts. The folder appears when it is whole.

    Args:
        model: of any dtype, on any device.
        folder: that does not exist, or is empty.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be made.
        TypeError: an argument is of the wrong type.
        ImportError: ``safetensors`` is not installed.
    """
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise ImportError("save_model needs safetensors: pip install 'mla-edu[hf]'") from None
    if not isinstance(model, Decoder):
        raise TypeError(f"model is a {type(model).__name__}; expected a Decoder")
    check_path("folder", folder)
    folder = Path(folder)
    expected = "expected a folder that does not exist, or is empty"
    if os.path.lexists(folder) and (not os.path.isdir(folder) or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; {expected}")
    values = hf_config(model.config)
    values["dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        half_done = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    except (OSError, ValueError) as error:  # a name that no folder can have, too
        why = getattr(error, "strerror", None) or error
        raise OSError(f"{readable(folder)} cannot be made: {why}; {expected}") from None
    try:
        tensors = {name: place.detach().cpu() for name, place in checkpoint_places(model).items()}
        shards: list[dict[str, Any]] = [{}]
        for name, tensor in tensors.items():
            if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > SHARD:
                shards.append({})
            shards[-1][name] = tensor
        places: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
            whole = {name: tensor.contiguous() for name, tensor in shard.items()}
            write_tensors(whole, half_done / file, {"format": "pt"})
            places |= dict.fromkeys(shard, file)
        if len(shards) > 1:
            size = sum(tensor.nbytes for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": places}
            (half_done / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (half_done / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        half_done.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        os.replace(half_done, folder)
    except BaseException:
        shutil.rmtree(half_done, ignore_errors=True)
        raise
    return str(values["model_type"])


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """The ``config.json`` of a model: of the family in transformers that computes the same, or else of our own."""
    kinds = set(config.layers)
    values = None
    if (config.embedding_scale, config.residual_scale, config.logit_scale) == (1, 1, 1):
        if kinds == {"mla"} and config.mla is not None:
            values = _deepseek(config, config.mla)
        elif kinds == {"gqa"} and config.gqa is not None and config.moe is None and not config.num_mtp_layers:
            values = _llama(config, config.gqa)
    if values is None:
        return {"model_type": OWN, **config.model_dump(mode="json")}
    common = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": len(config.layers),
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    rope = values["rope_parameters"]
    if rope["rope_type"] == "yarn":  # else transformers warns that its default is not what the factor says
        common["max_position_embeddings"] = round(rope["factor"] * rope["original_max_position_embeddings"])
    return values | common


def _rope(part: GQAConfig | MLAConfig) -> dict[str, Any] | None:
    if part.rope_theta is None:
        return None
    scaling = part.rope_scaling.model_dump(exclude_none=True) if part.rope_scaling else {"rope_type": "default"}
    return scaling | {"rope_theta": part.rope_theta}


def _llama(config: ModelConfig, gqa: GQAConfig) -> dict[str, Any] | None:
    rope = _rope(gqa)
    if rope is None or gqa.qkv_bias != gqa.o_bias or (gqa.sliding_window and gqa.qkv_bias):
        return None
    values: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    if gqa.sliding_window:
        values = {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": gqa.sliding_window,
        }
    names = ("num_attention_heads", "num_key_value_heads", "head_dim")
    bias = {} if gqa.sliding_window else {"attention_bias": gqa.qkv_bias}
    shapes = {name: getattr(gqa, name) for name in names}
    return values | shapes | bias | {"intermediate_size": config.intermediate_size, "rope_parameters": rope}


def _deepseek(config: ModelConfig, mla: MLAConfig) -> dict[str, Any] | None:
    dense = config.feed_forward.count("dense")
    rope, moe = _rope(mla), config.moe
    plain = not (mla.mla_scale_q_lora or mla.mla_scale_kv_lora or mla.llama_4_scaling_beta)
    if rope is None or not plain or config.feed_forward[:dense] != ("dense",) * dense:
        return None
    version = "V3"
    if moe is None:
        dense += config.num_mtp_layers  # the module is the next layer, and dense as well
    values: dict[str, Any] = {"first_k_dense_replace": dense, "intermediate_size": config.intermediate_size or 1}
    if moe is not None:
        if not moe.n_shared_experts:
            return None
        values |= moe.model_dump(exclude={"hidden_size"})
        values["topk_method"] = "noaux_tc"
        if moe.scoring_func == "softmax":
            if moe.norm_topk_prob or not mla.rope_interleave:
                return None
            version = "V2"
            values["topk_method"] = "group_limited_greedy" if moe.n_group > 1 else "greedy"
    names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "attention_bias")
    values |= {name: getattr(mla, name) for name in ("num_attention_heads", *names, "rope_interleave")}
    values |= {"model_type": f"deepseek_{version.lower()}", "architectures": [f"Deepseek{version}ForCausalLM"]}
    return values | {
        "num_key_value_heads": mla.num_attention_heads,
        "rope_parameters": rope,
        "num_nextn_predict_layers": config.num_mtp_layers,
    }


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it cannot be written: the disk is full, say, for which safetensors has an error of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
