"""``mla-edu cache``: what a model's cache takes, on each GPU, and what fits beside the weights."""

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.console import Console

from mla_edu import cost
from mla_edu.cli.named import model_of
from mla_edu.cli.show import naming_options, new_console, new_table, print_table, say
from mla_edu.hf import ModelSpec, WeightFormat
from mla_edu.registry import GPUSpec, get_gpu
from mla_edu.words import parse_count, parse_parameters, size

GPUS = 8  # where neither their number nor a GPU is given: those of a server
# What the arguments of the cost model are called on the command line.
OPTIONS = {
    "dtype": "--dtype",
    "weights_dtype": "--weights-dtype",
    "tensor": "--tp",
    "data": "--dp",
    "context": "--cp",
    "pipeline": "--pp",
    "experts": "--ep",
    "tensor x context": "--tp x --cp",
    "tensor x data x context x pipeline": "--tp x --dp x --cp x --pp",
    "tolerance": "--tolerance",
}
Ways = dict[str, cost.Parallelism]
Row = dict[str, Any]


def read_layout(
    gpus: str | None, tp: str | None, dp: str | None, cp: str | None, pp: str | None, ep: str | None
) -> tuple[int | None, cost.Parallelism | None]:
    """The number of GPUs and the layout that the options ask for; None for what they leave open.

    Raises:
        ValueError: an option is no positive number, the sizes do not multiply to the GPUs, or ``ep`` stands alone.
    """

    def count(text: str | None, option: str) -> int | None:
        return None if text is None else parse_count(text, option)

    num_gpus = count(gpus, "--gpus")
    sizes = [count(*each) for each in ((tp, "--tp"), (dp, "--dp"), (cp, "--cp"), (pp, "--pp"), (ep, "--ep"))]
    if all(each is None for each in sizes):
        return num_gpus, None
    tensor, data, context, pipeline, experts = sizes
    if all(each is None for each in sizes[:4]):
        raise ValueError(f"--ep is {experts} without a layout; expected --tp, --dp, --cp or --pp beside it")
    layout = cost.Parallelism(tensor or 1, data or 1, context or 1, pipeline or 1, experts)
    if num_gpus is not None:
        cost.layout_of(num_gpus, layout.tensor, layout.data, layout.context, layout.pipeline, experts)
    return layout.num_gpus, layout


Gpus = Annotated[
    str | None, typer.Option(help="GPUs; else the fewest of 1, 2, 4, ... that hold the weights, or 8 without --gpu.")
]
Tensor = Annotated[str | None, typer.Option(help="Tensor-parallel GPUs: they share out the heads.")]
Data = Annotated[str | None, typer.Option(help="Groups with sequences of their own: data-parallel attention.")]
Context = Annotated[str | None, typer.Option(help="GPUs that share out the tokens of a sequence.")]
Pipeline = Annotated[str | None, typer.Option(help="Pipeline stages.")]
Experts = Annotated[str | None, typer.Option(help="GPUs that share one copy of all but attention; else all.")]


def cache(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Names of the registry; a config.json or its folder; ORG/NAME that was downloaded; - for stdin."
        ),
    ],
    tokens: Annotated[str, typer.Option(help="Tokens per sequence: 4096, 128k, 1m.")] = "128k",
    batch: Annotated[str, typer.Option(help="Sequences.")] = "1",
    gpu: Annotated[str | None, typer.Option(help="What fits on this GPU, e.g. h200.")] = None,
    gpus: Gpus = None,
    tp: Tensor = None,
    dp: Data = None,
    cp: Context = None,
    pp: Pipeline = None,
    ep: Experts = None,
    dtype: Annotated[str, typer.Option(help=f"Cache format: fp32, fp16, bf16, fp8, {', '.join(cost.ROWS)}.")] = "bf16",
    weights_dtype: Annotated[
        str | None, typer.Option(help="Weight format: fp32, fp16, bf16, fp8, fp4, int4; else as published.")
    ] = None,
    parameters: Annotated[str | None, typer.Option(help="Of a model that does not say how many: 8b, 270m.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Exact integers, for programs.")] = False,
) -> None:
    """How much cache models need, and what fits beside their weights.

    On each of tp x dp x cp x pp GPUs; vLLM's tensor parallelism is tp x cp here. Without a layout, three stand beside
    each other.
    """
    num_tokens, batch_size = parse_count(tokens, "--tokens"), parse_count(batch, "--batch")
    card = None if gpu is None else _card(gpu)
    with naming_options(OPTIONS):
        cached = cost.cache_format(dtype)
        weights = None if weights_dtype is None else cost.weight_format(weights_dtype)
        num_gpus, layout = read_layout(gpus, tp, dp, cp, pp, ep)
    num_parameters = None if parameters is None else parse_parameters(parameters, "--parameters")

    @naming_options(OPTIONS)
    def row_of(spec: ModelSpec) -> Row:
        spec = _with_parameters(spec, num_parameters, weights)
        if layout is not None:
            cost.check_layout(spec, layout)
        count = num_gpus or (card and cost.fewest_gpus(spec, card, weights)) or GPUS
        ways: Ways = {"given": layout} if layout is not None else cost.layouts(count)
        if count == 1:
            ways = {"one": cost.Parallelism()}  # the three are one
        row = _whole(spec, num_tokens, batch_size, cached, weights)
        row["layouts"] = [
            {"name": way} | _on_each(spec, spread, card, num_tokens, batch_size, cached, weights)
            for way, spread in ways.items()
        ]
        return row

    rows, refused = [], {}
    for name in models:
        try:
            rows.append(row_of(model_of(name)))
        except (ValueError, OSError) as error:
            refused[name] = str(error)
    if rows and as_json:
        question = {"num_tokens": num_tokens, "batch_size": batch_size, "dtype": dtype, "weights_dtype": weights_dtype}
        answer = {"gpu": card and card.name, "models": rows, "refused": refused}
        typer.echo(json.dumps(question | answer, indent=2))
    elif rows:
        console = new_console()
        said = f"weights {weights_dtype or 'as published'}"
        console.print(f"{batch_size:,} x {num_tokens:,} tokens; cache {dtype}, {said}", highlight=False)
        _print_models(rows, console)
        _print_layouts(rows, card, console)
        for note in [*_model_notes(rows, num_tokens), *_layout_notes(rows, card, batch_size, num_gpus, layout)]:
            console.print(note, highlight=False, style="dim")
    for name, why in refused.items():
        name = "stdin" if name == "-" else name
        say(why if len(models) == 1 or name in why else f"{name}: {why}")
    if refused:
        raise typer.Exit(2)


def _card(name: str) -> GPUSpec:
    try:
        return get_gpu(name)
    except ValueError as error:
        raise ValueError(f"--gpu: {error}") from None


def _with_parameters(model: ModelSpec, number: int | None, weights: WeightFormat | None) -> ModelSpec:
    """The model with a number of parameters that it does not have of its own.

    Raises:
        ValueError: it has one, or the number says nothing: the weights' format is not known, or not which have which.
    """
    if number is None:
        return model
    if model.num_parameters is not None:
        raise ValueError(
            f"--parameters is {number:,}; expected none for {model.name}, known to have {model.num_parameters:,}"
        )
    found = model.model_copy(update={"num_parameters": number})
    if cost.weight_bytes(found, weights) is None:
        raise ValueError(f"--parameters is {number:,}; expected --weights-dtype beside it for {model.name}")
    return found


def _whole(
    model: ModelSpec, num_tokens: int, batch_size: int, cached: cost.CacheFormat, weights: WeightFormat | None
) -> Row:
    per_sequence = cost.sequence_bytes(model, num_tokens, cached)
    formats = cost.weight_formats(model, weights)
    return {
        "name": model.name,
        "kind": model.kind,
        "bytes_per_token": cost.kv_cache_bytes(model, 1, 1, cached),
        "kv_bytes_per_sequence": cost.kv_cache_bytes(model, num_tokens, 1, cached),
        "index_bytes_per_sequence": cost.index_cache_bytes(model, num_tokens, 1, cached),
        "state_bytes_per_sequence": cost.state_bytes(model),
        "bytes_per_sequence": per_sequence,
        "bytes_in_all": batch_size * per_sequence,
        "weight_bytes": cost.weight_bytes(model, weights),
        "weight_formats": formats and formats.model_dump(),
        "positions": model.max_position_embeddings,
        "why": model.why,
        "cautions": list(model.cautions),
    }


def _on_each(
    model: ModelSpec,
    layout: cost.Parallelism,
    gpu: GPUSpec | None,
    num_tokens: int,
    batch_size: int,
    cached: cost.CacheFormat,
    weights: WeightFormat | None,
) -> Row:
    """What the fullest GPU of a layout holds; a layout that the model does not allow says why."""
    row: Row = dataclasses.asdict(layout) | {"num_gpus": layout.num_gpus, "words": str(layout)}
    try:
        share = cost.sequence_share(model, num_tokens, layout, cached)
    except ValueError as error:
        return row | {"refused": str(error)}
    fit = gpu and cost.fit(model, gpu, num_tokens, layout, batch_size, cached, weights)
    return row | {
        "weight_bytes": cost.weight_share(model, layout, weights),
        "kv_bytes_per_sequence": share.kv,
        "index_bytes_per_sequence": share.index,
        "state_bytes_per_sequence": share.state,
        "bytes_per_sequence": share.total,
        "copies": cost.cache_copies(model, layout),
        "padded_heads": cost.padded_heads(model, layout),
        "fit": fit and dataclasses.asdict(fit),
    }


def _print_models(rows: list[Row], console: Console) -> None:
    keys = ("bytes_per_token", "bytes_per_sequence", "bytes_in_all", "weight_bytes")
    table = new_table("model", "per token", "per sequence", "in all", "weights")
    for row in rows:
        table.add_row(row["name"], *(_size(row[key]) for key in keys))
    print_table(table, console)


def _print_layouts(rows: list[Row], gpu: GPUSpec | None, console: Console) -> None:
    console.print("\non each GPU", highlight=False)
    room = ["room", "fit", "tokens"] if gpu else []
    table = new_table("model", "layout", "weights", "per sequence", "copies", *room)
    table.columns[1].justify = "left"
    for row in rows:
        for i, way in enumerate(row["layouts"]):
            name = "" if i else row["name"]
            if "refused" in way:
                table.add_row(name, way["words"], *(["-"] * (len(table.columns) - 2)))
                continue
            cells = [_size(way["weight_bytes"]), _size(way["bytes_per_sequence"]), f"{way['copies']:,}"]
            if gpu:
                fit = way["fit"]
                found = fit and [fit["max_sequences"], fit["max_tokens"]]
                free = fit and max(fit["free_bytes"], 0)
                cells += [_size(free), *map(_many, found)] if fit else ["?", "?", "?"]
            table.add_row(name, way["words"], *cells)
    print_table(table, console)


def _size(num_bytes: int | None) -> str:
    return "?" if num_bytes is None else size(num_bytes)


def _many(number: int | None) -> str:
    return "no limit" if number is None else f"{number:,}"


def _formats(formats: dict[str, str]) -> str:
    """``"fp8"``, or ``"fp4 (attention bf16)"`` where they differ."""
    attention, others = formats["attention"], formats["others"]
    return others if attention == others else f"{others} (attention {attention})"


def _model_notes(rows: list[Row], num_tokens: int) -> list[str]:
    notes = ["1 GB = 10**9 bytes. per token: the first one, before a window is full."]
    extras = [row["name"] for row in rows if row["index_bytes_per_sequence"] or row["state_bytes_per_sequence"]]
    if extras:
        notes.append(f"per sequence includes index keys and fp32 states: {', '.join(extras)}.")
    if unknown := [row["name"] for row in rows if row["state_bytes_per_sequence"] is None]:
        notes.append(f"recurrent state not known, not included: {', '.join(unknown)}.")
    published = [f"{row['name']} {_formats(row['weight_formats'])}" for row in rows if row["weight_formats"]]
    if published:
        notes.append(f"weights: {', '.join(published)}.")
    if unknown := [row["name"] for row in rows if row["weight_formats"] is None]:
        notes.append(f"format of the published weights not known, --weights-dtype gives one: {', '.join(unknown)}.")
    sizeless = [row["name"] for row in rows if row["weight_bytes"] is None and row["weight_formats"]]
    if sizeless:
        notes.append(f"the number of parameters is not known, --parameters gives it: {', '.join(sizeless)}.")
    for row in rows:
        if row["positions"] is not None and num_tokens > row["positions"]:
            notes.append(f"{row['name']}: more tokens than the {row['positions']:,} positions of its configuration.")
    return notes + [f"{row['name']}: {caution}." for row in rows for caution in row["cautions"]]


def _layout_notes(
    rows: list[Row], gpu: GPUSpec | None, batch_size: int, num_gpus: int | None, layout: cost.Parallelism | None
) -> list[str]:
    notes = []
    if layout is None and any(way["num_gpus"] > 1 for row in rows for way in row["layouts"]):
        known = gpu is not None and any(row["weight_bytes"] is not None for row in rows)
        assumed = f"the fewest of 1, 2, 4, ... {gpu.title} that hold the weights" if gpu and known else f"{GPUS} GPUs"
        notes.append(f"no layout given; assumed: each of the three on {f'{num_gpus:,} GPUs' if num_gpus else assumed}.")
    if any(way["num_gpus"] > 1 for row in rows for way in row["layouts"]):
        notes.append("tp: heads shared out; dp: sequences, attention's weights copied; cp: tokens.")
    notes.append("copies: GPUs that hold the same latent, or the same key/value head.")
    if gpu:
        notes.append(f"fit: sequences on all GPUs. tokens: in each of {batch_size:,}, at most.")
    apart = [row for row in rows if row["weight_bytes"] is not None]
    if unknown := [row["name"] for row in apart if any(way.get("weight_bytes", 0) is None for way in row["layouts"])]:
        notes.append(f"?: the weights of attention, which dp copies, are not known: {', '.join(unknown)}.")
    for row in rows:
        if padded := {way["words"]: way["padded_heads"] for way in row["layouts"] if way.get("padded_heads")}:
            ways = ", ".join(f"by {number:,} for {words}" for words, number in padded.items())
            notes.append(f"{row['name']}: query heads padded {ways}, and counted so; an engine may refuse that.")
    refused = {way["refused"]: None for row in rows for way in row["layouts"] if "refused" in way}
    return notes + [f"-: {why}." for why in refused]
