"""From a ``config.json`` to a layer's configuration and a ``ModelSpec``: as transformers 5.23 reads it, or refused."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mla_edu.config import GQAConfig, MLAConfig
from mla_edu.hf.attention import attention_config
from mla_edu.hf.beside import asked_cache, parameters_beside, published_weights
from mla_edu.hf.config_file import ConfigFile, Source, is_whole, read_config_file, read_hf_config
from mla_edu.hf.dimensions import Dimensions
from mla_edu.hf.families import UNKNOWN, Family, get_family, list_remote_families, loadable_families
from mla_edu.hf.gather import read_dimensions, unsaid_sizes, without_mla
from mla_edu.hf.layer_types import index_layers, layer_types
from mla_edu.hf.layout import NO_ATTENTION, cache_groups, state_elements, state_heads, unfinished_elements
from mla_edu.hf.own import OWN, own_values
from mla_edu.hf.plain import plain
from mla_edu.hf.spec import ModelSpec
from mla_edu.validation import readable


@dataclass(frozen=True)
class Reading:
    """What a ``config.json`` says of its model."""

    hf: dict[str, Any]
    name: str  # its model_type
    family: Family
    dims: Dimensions
    types: list[str]  # of its layers

    @property
    def layers(self) -> Counter[str]:
        """How many layers of each type cache something."""
        return Counter(layer_type for layer_type in self.types if layer_type not in NO_ATTENTION)

    def module_name(self, layer: int) -> str:
        """What the tensors of an attention layer are called, up to the names within it.

        Args:
            layer: the index that transformers uses in its cache, from 0.

        Raises:
            ValueError: there is no such layer, or it has no softmax attention.
        """
        count = len(self.types)
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
            raise ValueError(f"layer is {layer!r}; expected 0 to {count - 1}")
        if self.types[layer] == "linear_attention":
            full = [i for i, layer_type in enumerate(self.types) if layer_type == "full_attention"]
            raise ValueError(
                f"layer is {layer}, which has linear attention; expected one with full attention, of {full}"
            )
        block, part = divmod(layer, self.family.per_block)
        return self.family.tensors.format(block=block, part=part)

    def config(self) -> GQAConfig | MLAConfig:
        """One attention layer; raises ``ValueError`` where the classes cannot express it."""
        return attention_config(self.hf, self.dims, self.family, self.layers)


def read(source: Source) -> Reading:
    """What a ``config.json``, its folder or its dict says.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is not one of these, nor a configuration of transformers.
        ValueError: a number is missing, null, of another type or out of range, or the types of the layers are not
            known.
    """
    return _read(read_hf_config(source))


def _read(hf: dict[str, Any]) -> Reading:
    name = hf["model_type"]
    if hf.get("is_encoder_decoder"):
        raise ValueError(f"{name!r} is an encoder-decoder, by is_encoder_decoder; expected a decoder-only model")
    family = get_family(name)
    if family is UNKNOWN:
        hf = plain(hf)
    if hf.get("use_mla") is False:
        hf, family = without_mla(hf, family)
    dims = read_dimensions(hf, family, name)
    return Reading(hf, name, family, dims, layer_types(dims, family, name))


def config_from_hf(source: Source) -> GQAConfig | MLAConfig:
    """The attention configuration in a Hugging Face ``config.json``, its folder, its dict, or of transformers.

    A layer does not depend on the number of layers, so the file may leave that out.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is not one of these.
        ValueError: the family's layer is not one of ours, a number that it needs is missing, or one is out of range.
    """
    hf = read_hf_config(source)
    name = hf["model_type"]
    family = get_family(name)
    if not family.loads:
        raise ValueError(f"model_type is {name!r}; expected one of {', '.join(loadable_families())}")
    if hf.get("use_mla") is False:
        raise ValueError("use_mla is False; expected MLA, which the family's layer is")
    if not {"layer_types", "num_hidden_layers", "num_layers"} & set(hf):
        hf = {**hf, "num_hidden_layers": family.per_block}
    dims = read_dimensions(hf, family, name)
    types = ["full_attention"] if dims.is_mla else layer_types(dims, family, name)
    return attention_config(hf, dims, family, Counter(types))


def spec_from_hf(source: Source) -> ModelSpec:
    """The cache of a model that the registry has never seen, from its Hugging Face ``config.json``.

    Families of ``families.yaml`` are read as transformers 5.23 reads them, with its defaults where the file is silent;
    those of ``remote.yaml`` as their makers' code does. Any other is read only where the file itself says everything:
    multi-head or latent attention over all tokens in every layer, with the number of key/value heads spelt out. What
    ``save_model`` writes of a model that no family is, is read as well. The number of parameters is in no such file,
    but may be in the index of weights beside it.

    Args:
        source: the file, a folder that holds it, its contents, or a configuration of transformers.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``source`` is not one of these.
        ValueError: the cache cannot be known from the file; says why.
    """
    file = read_config_file(source)
    if file.hf["model_type"] == OWN:
        values = own_values(file.hf, file.where)
        return ModelSpec(title=OWN, status="config", where=file.where, **values, **_beside(file, file.hf, source))
    reading = _read(file.hf)
    dims, layers, name = reading.dims, reading.layers, reading.name
    if not layers or set(layers) <= {"linear_attention", "conv"}:
        raise ValueError(f"{name!r} has no attention layer; expected at least one, since nothing else caches tokens")
    indexers = index_layers(dims, reading.types)
    config, no_config = None, None
    try:
        config = reading.config()
    except ValueError as error:
        no_config = str(error)
    return ModelSpec(
        title=name,
        kind=kind_of(dims, layers),
        num_attention_heads=dims.num_attention_heads,
        num_layers=len(reading.types),
        max_position_embeddings=dims.max_position_embeddings,
        config=config,
        no_config=no_config,
        kv_lora_rank=dims.kv_lora_rank,
        qk_rope_head_dim=dims.qk_rope_head_dim if dims.is_mla else None,
        cache=cache_groups(dims, layers, indexers),
        state_elements=state_elements(dims, layers, indexers),
        state_heads=state_heads(dims, layers),
        shared_state_elements=unfinished_elements(dims, layers, indexers),
        status="config",
        where=file.where,
        why=_why(reading),
        **_beside(file, reading.hf, source, *_cautions(file, reading)),
    )


def _beside(file: ConfigFile, hf: dict[str, Any], source: Source, *cautions: str) -> dict[str, Any]:
    """What does not follow from the layers: the model's name, its weights and their number."""
    parameters, weights = None, published_weights(hf)
    try:
        parameters = None if file.folder is None else parameters_beside(file.folder, weights)
    except ValueError as error:
        cautions += (f"its parameters are not counted: {error}",)
    return {
        "name": readable(source) if isinstance(source, str | Path) else hf["model_type"],
        "num_parameters": parameters,
        "weights": weights,
        "cautions": cautions,
    }


def kind_of(dims: Dimensions, layers: Mapping[str, int]) -> Literal["mha", "mqa", "gqa", "mla", "csa"]:
    """What a model with these layers is called."""
    if any("compressed" in layer_type for layer_type in layers):
        return "csa"
    if dims.is_mla:
        return "mla"
    if dims.num_key_value_heads == dims.num_attention_heads:
        return "mha"
    return "mqa" if dims.num_key_value_heads == 1 else "gqa"


def _why(reading: Reading) -> str:
    parts = ", ".join(f"{count} {layer_type.replace('_', ' ')}" for layer_type, count in reading.layers.items())
    how = "as transformers 5.23 reads it"
    if reading.family is UNKNOWN:
        how = "from the numbers that it spells out"
    elif reading.name in list_remote_families():
        how = "as its makers' code reads it"
    return f"config.json of {reading.name!r} read {how}: {parts} layers."


def _cautions(file: ConfigFile, reading: Reading) -> Iterator[str]:
    """What a reader of the figures should know of the file."""
    known = reading.family is not UNKNOWN
    if not known:
        yield f"family {reading.name!r} is not known: read as attention over all tokens in each of its layers"
    if file.whole is not None and not is_whole(file.whole):
        yield f"{file.whole!r} is not known: only its {file.part} is read, a {reading.name!r} model"
    if unsaid := unsaid_sizes(reading.hf, reading.family):
        yield f"its config.json gives no {' and no '.join(unsaid)}: those of {reading.name!r} by default"
    if asked := asked_cache(file.hf, file.folder):
        yield asked
