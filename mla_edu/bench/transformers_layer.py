"""A layer of transformers, beside ours: the same weights, the same cached tokens."""

from types import ModuleType

import torch
from torch import Tensor, nn

from mla_edu.bench.clock import Call
from mla_edu.bench.libraries import Unsupported, load
from mla_edu.layers.mla import MultiHeadLatentAttention

CLASSES = {"deepseek_v2": "DeepseekV2", "deepseek_v3": "DeepseekV3"}
EXTRA = "'mla-edu[hf]'"
LATENT_CACHE_SINCE = (5, 15)  # before, transformers cached keys and values
WIDTHS = {"hidden_size", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"}


def probe_transformers() -> str:
    """The version of transformers.

    Raises:
        Unsupported: it is not installed, cannot be imported, or caches keys and values.
    """
    version = str(load("transformers", EXTRA).__version__)
    if tuple(int(number) for number in version.split(".")[:2]) < LATENT_CACHE_SINCE:
        raise Unsupported(f"version {version} does not cache the latent; 5.15 and later do")
    for family in CLASSES:
        _modeling(family)
    return version


def _modeling(family: str) -> ModuleType:
    return load(f"transformers.models.{family}.modeling_{family}", EXTRA)


class TransformersLayer:
    """An attention layer of transformers whose weights are the very memory of ours.

    Args:
        family: ``"deepseek_v2"`` or ``"deepseek_v3"``.
        ours: a layer of that family.
    """

    def __init__(self, family: str, ours: MultiHeadLatentAttention):
        config, name, modeling = ours.config, CLASSES[family], _modeling(family)
        scaling = config.rope_scaling.model_dump(exclude_none=True) if config.rope_scaling else {"rope_type": "default"}
        self.widths = config.kv_lora_rank, config.qk_rope_head_dim
        self.hf_config = getattr(load("transformers", EXTRA), f"{name}Config")(
            **config.model_dump(include=WIDTHS),
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=163_840,
            rope_parameters=scaling | {"rope_theta": config.rope_theta},
            attn_implementation="sdpa",  # what transformers takes unless told otherwise
        )
        with torch.device("meta"):
            self.layer: nn.Module = getattr(modeling, f"{name}Attention")(self.hf_config, layer_idx=0)
        self.layer.load_state_dict(ours.state_dict(), assign=True)
        self.rotary: nn.Module = getattr(modeling, f"{name}RotaryEmbedding")(self.hf_config)

    def step(self, hidden_states: Tensor, rows: Tensor) -> Call:
        """One decode step; each call starts from the same cache.

        Args:
            hidden_states: the new token of each sequence, ``[batch, 1, hidden]``.
            rows: the cached tokens as ours are, ``[batch, cached, kv_lora_rank + qk_rope_head_dim]``.

        Returns:
            A call that gives ``[batch, 1, hidden]``.
        """
        c_kv, k_pe = rows[:, None].split(self.widths, dim=-1)
        if self.hf_config.model_type == "deepseek_v3":  # which caches rotated pairs as two halves
            k_pe = torch.cat((k_pe[..., 0::2], k_pe[..., 1::2]), dim=-1)
        cache = load("transformers", EXTRA).DynamicCache(config=self.hf_config)
        cached = cache.update(c_kv, k_pe, 0)
        # transformers turns the angles into a table once for all layers, so this is not timed.
        position = torch.tensor([[rows.shape[1]]], device=rows.device)
        angles = self.rotary.to(rows.device)(hidden_states, position)

        @torch.no_grad()
        def call() -> Tensor:
            cache.layers[0].keys, cache.layers[0].values = cached
            out: Tensor = self.layer(
                hidden_states, position_embeddings=angles, attention_mask=None, past_key_values=cache
            )[0]
            return out

        return call
