"""Values of options arrive as typed, and every value has a text that is read as that value."""

from __future__ import annotations

import argparse

import pytest

from adpe.option_values import OptionAction, option_text, parse_value

READ = {
    # Strings, as they are typed.
    "/data/my data": "/data/my data", "shapes (1)": "shapes (1)", "/x/a,b": "/x/a,b", "set[1],x": "set[1],x",
    "it's": "it's", "Größe=groß": "Größe=groß", "007": "007", "1_000": "1_000", "３": "３", "none": "none",
    " lead": " lead", "": "", "[a": "[a", "[a] b [c]": "[a] b [c]", "bbox,segm": "bbox,segm", "{x}": "{x}",
    # Quotes keep a string a string.
    "'3'": "3", '"None"': "None", "'my data'": "my data", "'[a,b]'": "[a,b]",
    # Numbers and words.
    "1": 1, "-3": -3, "1e-5": 1e-5, ".5": 0.5, "1e3": 1000.0, "true": True, "False": False, "None": None,
    "inf": float("inf"),
    # Lists and tuples, with quotes or without.
    "[a,b c]": ["a", "b c"], "(32, 32)": (32, 32), "(1)": (1,), "[(1,2),['a,b',c]]": [(1, 2), ["a,b", "c"]],
    "8,11": [8, 11], "[]": [], "[it's,b]": ["it's", "b"], "{'a': [1]}": {"a": [1]},
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_text_to_value(text: str) -> None:
    value = parse_value(text)
    assert value == READ[text] and type(value) is type(READ[text])


@pytest.mark.parametrize("value", [
    1, 1.0, 100.0, 1 / 3, 5e-5, float("-inf"), True, None, "", "a b", "a,b", "1", "1,2", "None", "[a]", "'q'", "x'y",
    " lead", "'a', 'b'", "a\nb", "{1: 2}", "\\x", "ü (2) [3]", [1, "a, b", "c'd", 'e"f\'g', (1, 2)], (1,), [],
    {"a": [1.5]},
])  # fmt: skip
def test_value_to_text_and_back(value: object) -> None:
    again = parse_value(option_text(value))
    assert again == value and type(again) is type(value)


def test_action_collects_options_and_refuses_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=OptionAction)
    args = parser.parse_args(["--cfg-options", "a.b=x y", "c=1=2", "--cfg-options", "a.b=3"])
    assert args.cfg_options == {"a.b": 3, "c": "1=2"}
    for wrong in ("data_root", "=3"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--cfg-options", wrong])
        assert repr(wrong) in capsys.readouterr().err
