"""Draws the pictures of the book that no notebook computes.

Run ``python book/figures/make_figures.py`` after a change. The pictures are written
by hand as SVG: the page supplies ink, font and colours, in light and in dark mode.
"""

from pathlib import Path

from absorbing import absorbing
from bottleneck import bottleneck
from cache_growing import cache_growing
from chip import chip
from data_flow import data_flow
from decode_kernel import (
    block_table,
    merge_of_two,
    program_grid,
    rows_and_mask,
    tile_twice,
)
from four_attentions import four_attentions, multi_head, one_latent, shared_heads
from matmul_tiles import matmul_tiles
from whole_model import whole_model

FIGURES = Path(__file__).parent
DRAWINGS = {
    "absorbing.svg": absorbing,
    "bottleneck.svg": bottleneck,
    "attention-latent.svg": one_latent,
    "attention-multi-head.svg": multi_head,
    "attention-shared-heads.svg": shared_heads,
    "cache-growing.svg": cache_growing,
    "block-table.svg": block_table,
    "chip.svg": chip,
    "data-flow.svg": data_flow,
    "decode-merge.svg": merge_of_two,
    "decode-rows.svg": rows_and_mask,
    "decode-tile.svg": tile_twice,
    "four-attentions.svg": four_attentions,
    "four-attentions-wide.svg": lambda: four_attentions(across=4),
    "matmul-tiles.svg": matmul_tiles,
    "program-grid.svg": program_grid,
    "whole-model.svg": whole_model,
}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (FIGURES / name).write_text(draw(), encoding="utf-8")
        print(f"wrote {name}")
