"""``mla-edu kernels``: what the compiler makes of the decode kernel, and what that lets one expect."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from mla_edu.cli.bench import need_torch
from mla_edu.cli.show import naming_options, new_console, new_table, working
from mla_edu.words import parse_count

if TYPE_CHECKING:
    from rich.table import Table

    from mla_edu.kernels.offline import KernelReport

GLUON_HEADS = {"bf16": [16, 32, 64, 128], "fp8_mla": [16, 32]}  # that are shown if none are named
# What the arguments of a request are called on the command line.
OPTIONS = {
    "backend": "--backend",
    "dtype": "--dtype",
    "num_heads": "--heads",
    "s_q": "--s-q",
    "page_size": "--page-size",
}
REACHED = {
    "triton": (
        "The step took 0.9 to 1.7 times",
        "as long as predicted on an H100, fp8 1.3 to 1.7 times: see",
        "mla_edu.kernels.forecast.",
    ),
    "gluon": (
        "A step took 1.1 to 1.9 times",
        "as long as predicted on an H100, by earlier forms of the bf16 kernel; fp8 was",
        "never timed: see mla_edu.kernels.forecast.",
    ),
}


def kernels(
    archs: Annotated[list[str] | None, typer.Argument(help="sm_75 to sm_120, gfx942; all if none is named.")] = None,
    backend: Annotated[str, typer.Option(help="triton, or gluon, which is for sm_90.")] = "triton",
    heads: Annotated[
        list[str] | None, typer.Option(help="Query heads, may be repeated; else 16 and 128, or Gluon's.")
    ] = None,
    s_q: Annotated[str, typer.Option(help="New tokens.")] = "1",
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16, fp32, fp8_mla; else bf16, or fp16 on sm_75.")] = None,
    page_size: Annotated[str, typer.Option(help="Tokens in a page.")] = "64",
    batch: Annotated[str, typer.Option(help="Sequences of the step whose time is predicted.")] = "32",
    context: Annotated[str, typer.Option(help="Cached tokens of each.")] = "16k",
) -> None:
    """Compile the decode kernel for GPUs that need not be there. Shows what the compiler made of it."""
    counts, num_new = [parse_count(each, "--heads") for each in heads or ()], parse_count(s_q, "--s-q")
    tokens = parse_count(page_size, "--page-size")
    step = parse_count(batch, "--batch"), parse_count(context, "--context")
    need_torch()
    from mla_edu.kernels.assembler import known_fault
    from mla_edu.kernels.forecast import CHIPS
    from mla_edu.kernels.offline import ARCHITECTURES, Request, compile_reports

    for arch in archs or ():
        if chip := CHIPS.get(arch.lower()):
            raise ValueError(f"arch is {arch!r}; expected its architecture, {chip.arch}")
    requests = [
        Request(arch, stored, count, num_new, tokens, backend=backend)
        for arch in archs or (["sm_90"] if backend == "gluon" else ARCHITECTURES)
        for stored, count in _cases(backend, arch, dtype, counts)
    ]
    with working(f"kernels to compile: {len(requests)}", len(requests)) as note, naming_options(OPTIONS):
        reports = compile_reports(requests, note)
    console = new_console()
    console.print(_compiled(reports))
    _note(console, "tile: rows of queries x tokens. regs, spill (bytes): per thread.")
    _note(console, "shared (bytes): per block.")
    _note(console, "tensor cores: instructions in the program text, where a loop counts once.")
    console.print(_loads(reports))
    _note(console, "programs: on a multiprocessor.")
    _note(console, "in flight: bytes on their way to it while one multiplies.")
    _note(console, "waits: cp.async.wait_group in the loop. overlap: products with loads under way.")
    _note(console, "useful: of tensor work.")
    if (predicted := _predicted(reports, *step)).row_count:
        console.print(predicted)
        _note(console, "Predictions from these counts, in shares of datasheet rates; nothing was timed.")
        _note(console, "needs: bytes in flight for the full bandwidth, bandwidth x latency.")
        _note(console, f"us: of a whole step of {step[0]} x {step[1]:,} tokens. {REACHED[backend][0]}")
        for line in REACHED[backend][1:]:
            _note(console, line)
    at_risk = [each for each in reports if "HGMMA" in each.tensor_core_instructions]
    for version in dict.fromkeys(each.assembler or "" for each in at_risk):
        if known_fault(version):
            _warn(console, at_risk[0].arch, version)


def _cases(backend: str, arch: str, dtype: str | None, counts: list[int]) -> list[tuple[str, int]]:
    """What is compiled for an architecture: dtypes and heads."""
    if backend == "gluon":
        dtypes = [dtype] if dtype is not None else ["bf16"] if counts else list(GLUON_HEADS)
        return [(each, count) for each in dtypes for count in counts or GLUON_HEADS.get(each, [16])]
    stored = dtype if dtype is not None else "fp16" if arch == "sm_75" else "bf16"
    return [(stored, count) for count in counts or [16, 128]]


def _compiled(reports: "Sequence[KernelReport]") -> "Table":
    table = new_table("GPU", "dtype", "heads", "tile", "regs", "spill", "shared", "occupancy", "tensor cores")
    table.columns[0].no_wrap, table.columns[1].justify, table.columns[-1].justify = True, "left", "left"
    for report in reports:
        tiles = report.tiles
        units = [f"{count} {name}" for name, count in report.tensor_core_instructions.items()]
        numbers = [report.num_heads, f"{tiles.block_h} x {tiles.block_n}", report.registers, report.spill_bytes]
        numbers += [f"{report.shared_bytes:,}", f"{report.occupancy:.0%}"]
        table.add_row(report.arch, report.dtype, *map(str, numbers), ", ".join(units) or "none")
    return table


def _loads(reports: "Sequence[KernelReport]") -> "Table":
    headings = ("programs", "in flight", "waits", "overlap", "instr/token", "useful")
    table = new_table("GPU", "dtype", "heads", *headings)
    table.columns[0].no_wrap, table.columns[1].justify = True, "left"
    for report in reports:
        ahead, per_token, useful = report.ahead, report.instructions_per_token, report.useful_share
        cells = ["-"] * 3 if ahead is None else [
            f"{report.bytes_in_flight:,}", ",".join(map(str, ahead.waits)) or "-", f"{ahead.overlap:.0%}",
        ]  # fmt: skip
        cells += ["-" if per_token is None else f"{per_token:,.0f}", "-" if useful is None else f"{useful:.0%}"]
        table.add_row(report.arch, report.dtype, str(report.num_heads), str(report.programs), *cells)
    return table


def _predicted(reports: "Sequence[KernelReport]", batch: int, context: int) -> "Table":
    from mla_edu.kernels.forecast import CHIPS, forecast, predict_seconds

    headings = ("needs", "of bandwidth", "of product", "us", "set by")
    table = new_table("predicted on", "dtype", "heads", *headings)
    table.columns[0].no_wrap, table.columns[1].justify, table.columns[-1].justify = True, "left", "left"
    for report in reports:
        for gpu in (name for name, chip in CHIPS.items() if chip.arch == report.arch):
            if found := forecast(report, gpu):
                shares = [f"{found.of_bandwidth:.0%}", f"{found.of_product:.0%}"]
                needs = f"{found.needed_bytes:,.0f}"
                seconds = predict_seconds(report, gpu, batch, context) or 0.0
                time = f"{1e6 * seconds:,.0f}"
                table.add_row(gpu, report.dtype, str(report.num_heads), needs, *shares, time, found.set_by)
    return table


def _note(console: Console, text: str) -> None:
    console.print(text, highlight=False, style="dim")


def _warn(console: Console, arch: str, version: str) -> None:
    from mla_edu.kernels.assembler import assembler, known_fault

    here = assembler(arch)
    warning = here.warning if here.version == version else known_fault(version)
    console.print(f"warning: {warning}", highlight=False, style="bold", soft_wrap=True)
