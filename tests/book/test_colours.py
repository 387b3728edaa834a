"""The colours of the book, as readers see them who lack one of the three kinds of cones, in both modes."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from mla_edu.book import KEY, NEUTRAL, QUERY, ROPE, VALUE

STYLES = (Path(__file__).resolve().parents[2] / "book/_static/book.css").read_text(encoding="utf-8")
KINDS = ("query", "key", "rope", "value", "neutral")
SMALLEST = 15  # CIE 1976 colour difference
# What is left of linear RGB without the cones for long, middle or short waves: Machado, Oliveira and Fernandes (2009),
# severity 1.
SEEN = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(colour):
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear RGB."""
    ratios = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    """The ratio of WCAG 2."""
    light, dark = sorted((float(XYZ[1] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def declared(selector):
    """Kind to colour, and the background, in the block of one selector of the style sheet."""
    block = STYLES.split(selector + " {")[1].split("}")[0]
    colours = {kind: re.search(rf"--mla-{kind}: (#\w{{6}});", block)[1] for kind in KINDS}
    return colours, re.search(r"--pst-color-background: (#\w{6});", block)[1]


LIGHT, DARK = declared("html, html[data-theme]"), declared('html[data-theme="dark"]')
ALONE = dict(zip(KINDS, (QUERY, KEY, ROPE, VALUE, NEUTRAL), strict=True))
PALETTES = {"light": LIGHT, "dark": DARK, "alone on white": (ALONE, "#ffffff"), "alone on black": (ALONE, "#111111")}


@pytest.mark.parametrize("mode", PALETTES)
@pytest.mark.parametrize("eyes", SEEN)
def test_kinds_of_tensors_are_told_apart(mode, eyes):
    colours, _ = PALETTES[mode]
    seen = {kind: lab(np.array(SEEN[eyes]) @ linear(colour)) for kind, colour in colours.items()}
    apart = {pair: float(np.linalg.norm(seen[pair[0]] - seen[pair[1]])) for pair in itertools.combinations(KINDS, 2)}
    assert min(apart.values()) >= SMALLEST, apart


@pytest.mark.parametrize("mode", PALETTES)
def test_kinds_of_tensors_stand_out_from_the_page(mode):
    colours, ground = PALETTES[mode]
    ratios = {kind: contrast(colour, ground) for kind, colour in colours.items()}
    assert min(ratios.values()) >= 3, ratios


def test_a_difference_is_that_of_the_textbook():
    """Red and green of full strength, which a protanope takes for shades of one colour."""
    assert np.allclose(lab(linear("#ff0000")), [53.24, 80.09, 67.20], atol=0.01)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
