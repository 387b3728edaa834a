"""Numbers in words: three digits or two, and never a unit that the rounded number has outgrown."""

import pytest

from mla_edu.words import digits, duration, percent, ratio, size


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (digits(0.75), "0.750"),
        (digits(9.994), "9.99"),
        (digits(9.996), "10.0"),
        (digits(99.94), "99.9"),
        (digits(99.96), "100"),
        (digits(1234.4), "1,234"),
        (size(0), "0 B"),
        (size(999), "999 B"),
        (size(999_499), "999 kB"),
        (size(999_500), "1.00 MB"),
        (size(4.8e12), "4.80 TB"),
        (size(5 * 10**21), "5,000 EB"),
        (duration(85.13), "85.1 µs"),
        (duration(999.4), "999 µs"),
        (duration(999.6), "1.00 ms"),
        (duration(7042), "7.04 ms"),
        (percent(0.834), "83%"),
        (percent(0.0994), "9.9%"),
        (percent(0.0996), "10%"),
        (percent(12.3), "1,230%"),
        (ratio(0.754), "0.75×"),
        (ratio(9.94), "9.9×"),
        (ratio(9.96), "10×"),
        (ratio(53.4), "53×"),
    ],
)
def test_numbers_keep_their_digits_across_a_change_of_unit(written, wanted):
    assert written == wanted
