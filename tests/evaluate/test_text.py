from __future__ import annotations

from anchorite.evaluate.result import aligned_table


def test_table_lines_up_wide_letters_and_takes_control_characters_out():
    table = aligned_table([("name", "n"), ("\u591a\u8a00\u8a9e", "1"), ("a\x1b[31m\nb", "22"), ("x" * 90, "3")])
    lines = table.split("\n")
    assert len(lines) == 4
    assert "\x1b" not in table
    assert lines[1] == "\u591a\u8a00\u8a9e" + " " * (40 - 6) + "   1"
    assert lines[3].startswith("x" * 37 + "...")
