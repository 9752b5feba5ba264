"""Messages are shown, never obeyed by a terminal."""

import pytest

from pipeline_lib.errors import UserError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("grüne Fläche 猫 👩‍👩‍👧", "grüne Fläche 猫 👩‍👩‍👧"),
        ("two lines\n\tof text", "two lines\n\tof text"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\0\x7f\x9b", r"a\rb\x00\x7f\x9b"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_printable(text: str, shown: str):
    assert printable(text) == str(UserError(text)) == shown
    assert printable(shown) == shown
