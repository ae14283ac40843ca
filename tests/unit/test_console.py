"""Tables as a terminal shows them."""

from __future__ import annotations

from collections import Counter

import pytest

from flagrelease.console import human_number, out, table


def test_a_narrow_terminal_cuts_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    shown = table("operator", ">tokens a second")
    shown.add_row("fp4_act_quant_roundtrip", "123456789.5")
    out().print(shown)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 20
    words = ("operator", "tokensasecond", "fp4_act_quant_roundtrip", "123456789.5")
    assert Counter("".join(text.split())) == Counter("".join(words))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.01234, "0.01234"),
        (201.49, "201.5"),
        (999.9, "999.9"),
        (999.96, "1,000"),
        (10623.7, "10,624"),
        (-1234.5, "-1,234"),
    ],
)
def test_large_numbers_have_no_exponent(value: float, shown: str) -> None:
    assert human_number(value) == shown
