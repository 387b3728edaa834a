"""A whole decoder: embedding, layers that mix tokens and layers that take each by itself, and a head."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from mla_edu.cache.layer import LayerCache, check_config
from mla_edu.cache.table import Step
from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.layers.gqa import GroupedQueryAttention
from mla_edu.layers.inputs import check_tokens, check_weights
from mla_edu.layers.mamba2 import Mamba2
from mla_edu.layers.mla import MultiHeadLatentAttention
from mla_edu.layers.mlp import SwiGLU
from mla_edu.layers.moe import MixtureOfExperts
from mla_edu.models.cache import ModelCache
from mla_edu.models.config import ModelConfig
from mla_edu.models.mtp import MTPModule
from mla_edu.validation import check_integer


class DecoderLayer(nn.Module):
    """What mixes the tokens, then what takes each by itself, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, dtype: torch.dtype | None, device: torch.device | str | None):
        super().__init__()
        hidden, part = config.hidden_size, config.part(layer)
        self.residual_scale = config.residual_scale
        self.input_layernorm = nn.RMSNorm(hidden, eps=config.rms_norm_eps, dtype=dtype, device=device)
        mixer: nn.Module
        if isinstance(part, GQAConfig):
            mixer = GroupedQueryAttention(part, dtype=dtype, device=device)
        elif isinstance(part, MLAConfig):
            mixer = MultiHeadLatentAttention(part, dtype=dtype, device=device)
        else:
            mixer = Mamba2(part, dtype=dtype, device=device)
        self.mixer_name = "mamba" if part.kind == "mamba2" else "self_attn"
        self.add_module(self.mixer_name, mixer)
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=config.rms_norm_eps, dtype=dtype, device=device)
        self.mlp: SwiGLU | MixtureOfExperts
        if config.feed_forward[layer] == "moe":
            assert config.moe is not None
            self.mlp = MixtureOfExperts(config.moe, dtype=dtype, device=device)
        else:
            assert config.intermediate_size is not None
            self.mlp = SwiGLU(hidden, config.intermediate_size, dtype=dtype, device=device)

    def forward(
        self,
        x: Float[Tensor, "batch seq hidden"],
        cache: LayerCache | None = None,
        steps: Sequence[Step] = (),
    ) -> Float[Tensor, "batch seq hidden"]:
        """The residual stream after the layer.

        Args:
            x: before it.
            cache: of the tokens before.
            steps: groups of sequences that grow by different numbers, under way in the cache's table; ``x`` is then one
                row of all their tokens. What mixes the tokens takes one group after the other, the rest takes all.
        """
        mixer, normed = getattr(self, self.mixer_name), self.input_layernorm(x)
        if cache is None or not steps:
            mixed = mixer(normed, cache)
        else:
            groups = normed[0].split([len(step.sequences) * step.num_new for step in steps])
            outputs = []
            for step, group in zip(steps, groups, strict=True):
                with cache.table.turn(step):
                    outputs.append(mixer(group.unflatten(0, (len(step.sequences), step.num_new)), cache).flatten(0, 1))
            mixed = torch.cat(outputs)[None]
        x = torch.add(x, mixed, alpha=self.residual_scale)
        return torch.add(x, self.mlp(self.post_attention_layernorm(x)), alpha=self.residual_scale)


class Decoder(nn.Module):
    """A causal language model: token ids in, logits of the next token out.

    Modules bear the names of Hugging Face checkpoints, without their ``model.`` in front. Weights start normal with
    standard deviation ``fan_in ** -0.5``, biases and the last matrix of each part at zero, so that every layer begins
    as the identity.

    Args:
        config: what it is made of; kept as ``model.config``.
        seed: of the weights.
        dtype: of the weights; None for torch's default.
        device: of the weights; None for torch's default. On ``"meta"`` they are left out.

    Attributes:
        mtp: the module that guesses one token further; None where ``config.num_mtp_layers`` is 0.

    Raises:
        TypeError: ``config`` is not a ``ModelConfig``, or ``dtype`` or ``device`` not one.
        ValueError: ``seed`` is none that torch takes, a layer does not compute in ``dtype``, or there is no such
            ``device``.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        check_config(config, ModelConfig)
        check_integer("seed", seed, -(2**63), 2**64 - 1)
        check_weights(dtype, device)
        self.config = config
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden, dtype=dtype, device=device)
        self.layers = nn.ModuleList(DecoderLayer(config, i, dtype, device) for i in range(len(config.layers)))
        self.norm = nn.RMSNorm(hidden, eps=config.rms_norm_eps, dtype=dtype, device=device)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else nn.Linear(hidden, config.vocab_size, bias=False, dtype=dtype, device=device)
        )
        self.mtp = (
            MTPModule(config, DecoderLayer(config, -1, dtype, device), dtype=dtype, device=device)
            if config.num_mtp_layers
            else None
        )
        if self.embed_tokens.weight.device.type != "meta":
            self._start(seed)

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        generator = torch.Generator(self.embed_tokens.weight.device).manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "down_proj", ".bias")):
                nn.init.zeros_(weight)
            elif weight.ndim > 1:
                nn.init.normal_(weight, std=weight.shape[-1] ** -0.5, generator=generator)

    def forward(
        self, tokens: Int[Tensor, "batch seq"], cache: ModelCache | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the token after each of ``tokens``: ``logits(hidden_states(tokens, cache))``.

        The arguments and errors are those of ``hidden_states``.
        """
        return self.logits(self.hidden_states(tokens, cache))

    def hidden_states(
        self, tokens: Int[Tensor, "batch seq"], cache: ModelCache | None = None, steps: Sequence[Step] = ()
    ) -> Float[Tensor, "batch seq hidden"]:
        """The residual stream behind the last layer and the final norm: what ``logits`` and ``mtp`` take.

        Args:
            tokens: the new ones; one row for each sequence of the cache, or of the step under way.
            cache: of the tokens before them, from ``new_cache``; they are appended.
            steps: under way in ``cache.table``, groups of sequences that grow by different numbers; ``tokens`` is then
                one row of all their tokens, group after group, sequence after sequence.

        Raises:
            TypeError: ``cache`` is not a ``ModelCache``.
            ValueError: a token is not of the vocabulary, or there is no room; the cache is left as it was.
        """
        if cache is not None and not isinstance(cache, ModelCache):
            raise TypeError(f"cache is a {type(cache).__name__}; expected a ModelCache, from model.new_cache")
        check_tokens(tokens, self.config.vocab_size)
        with nullcontext() if cache is None or steps else cache.step(tokens.shape[1]):
            x = self.embed_tokens(tokens) * self.config.embedding_scale
            for i, layer in enumerate(self.layers):
                x = layer(x, None if cache is None else cache.layers[i], steps)
            hidden_states: Tensor = self.norm(x)
            return hidden_states

    def logits(self, hidden_states: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens vocab"]:
        """What the head makes of hidden states, of ``hidden_states`` or of ``mtp``."""
        x = hidden_states * self.config.logit_scale
        logits: Tensor = linear(x, self.embed_tokens.weight) if self.lm_head is None else self.lm_head(x)
        return logits

    if TYPE_CHECKING:  # torch types a call of any module as one of any arguments

        def __call__(self, tokens: Tensor, cache: ModelCache | None = None) -> Tensor:
            """As ``forward``."""

    def new_cache(
        self,
        batch_size: int = 1,
        max_seq_len: int = 4096,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> ModelCache:
        """An empty cache for the model.

        Args:
            batch_size: sequences.
            max_seq_len: tokens that fit in each.
            dtype: of the stored numbers; None for the weights' own.
            device: where they lie; None for the weights' own.

        Raises:
            TypeError: ``dtype`` or ``device`` is not one.
            ValueError: a size is not positive, ``dtype`` is not one that a layer computes in, or there is no such
                device.
        """
        weight = self.embed_tokens.weight
        dtype, device = weight.dtype if dtype is None else dtype, weight.device if device is None else device
        return ModelCache(self.config, batch_size, max_seq_len, dtype, device)
