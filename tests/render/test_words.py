"""Numbers, sizes, times and foreign text in the words of the screen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from dwcli.render import words

NOW = datetime(2026, 11, 22, 21, 52, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 日本語 🦆", "größe 日本語 🦆"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\tb\r\nc\x00", "a\\tb\\r\\nc\\x00"),
        ("\x9b31m \x7f", "\\x9b31m \\x7f"),
        ("abc\u202egnp.exe\u2066", "abc\\u202egnp.exe\\u2066"),
        ("line\u2028end \ud800", "line\\u2028end \\ud800"),
        ("[red]x[/] {a} %s", "[red]x[/] {a} %s"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_instead(text, shown):
    assert words.escape(text) == shown


def test_line_breaks_and_tabs_may_be_kept():
    assert words.escape_lines("a\tb\nc\x1b") == "a\tb\nc\\x1b"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (980, "980"),
        (9_800, "9.8k"),
        (9_960, "10k"),
        (212_000, "212k"),
        (999_949, "1.0M"),
        (1_200_000, "1.2M"),
        (3.2e9, "3.2G"),
        (4e12, "4000G"),
    ],
)
def test_compact_numbers_take_five_characters_at_most(number, shown):
    assert words.compact(number) == shown
    assert len(shown) <= 5


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (43_000_000, "41 MB"),
        (2.1 * 2**30, "2.1 GB"),
        (3 * 2**40, "3.0 TB"),
    ],
)
def test_sizes_have_two_figures(number, shown):
    assert words.size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.012, "12 ms"),
        (0.9996, "1.0 s"),
        (6.1, "6.1 s"),
        (59.96, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7380, "2 h 3 min"),
    ],
)
def test_durations_use_the_unit_that_fits(seconds, shown):
    assert words.duration(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(9, "0:09"), (750, "12:30"), (3723, "1:02:03"), (-1, "0:00")])
def test_time_left_reads_as_a_clock(seconds, shown):
    assert words.clock(seconds) == shown


@pytest.mark.parametrize(
    ("past", "shown"),
    [
        (0, "just now"),
        (-30, "just now"),
        (12, "12 s ago"),
        (240, "4 min ago"),
        (9 * 3600, "9 h ago"),
        (86400 * 3, "3 d ago"),
    ],
)
def test_past_moments_are_told_in_one_unit(past, shown):
    assert words.ago(NOW - timedelta(seconds=past), NOW) == shown


def test_moments_for_programs_are_utc():
    there = datetime(2026, 11, 22, 23, 52, tzinfo=timezone(timedelta(hours=2)))
    assert words.utc_iso(there) == "2026-11-22T21:52:00Z"


def test_a_sparkline_marks_failures_and_keeps_zero_low():
    assert words.sparkline([0, 50, 100, None]) == "▁▄█x"
    assert words.sparkline([0, 50, 100, None], ascii_only=True) == "_:#x"
    assert words.sparkline([0, 0]) == "▁▁"
    assert words.sparkline([]) == ""
