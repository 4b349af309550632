"""Text from data that is shown: what a terminal, Markdown, YAML and a spreadsheet make of it."""

import json
import unicodedata
from tempfile import TemporaryFile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rankwise import console, inert

texts = st.text(
    st.characters() | st.sampled_from(list("\\`|<>[]()*_~#&$@!+-=.:1 \n\t\r\x1b\x07\x9b\u202e'\"{%"))
)
ACTS = [
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b2J",
    "a\rb",
    "a\x08b",
    "\u202edcba",
    "a\nb",
    "a\x00b",
    "\ud800",
    "a\x7f",
]


def acts(text: str) -> bool:
    """Whether a character of it does something instead of being seen."""
    kinds = {unicodedata.category(character) for character in text}
    directions = {unicodedata.bidirectional(character) for character in text}
    return bool(kinds & {"Cc", "Cs", "Zl", "Zp"}) or bool(
        directions & {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    )


@pytest.mark.parametrize("text", ACTS)
def test_what_acts_on_a_terminal_is_shown_instead(text):
    assert acts(text)
    assert not acts(inert.terminal(text))


@given(texts)
def test_no_text_acts_on_a_terminal(text):
    shown = inert.terminal(text)
    assert not acts(shown)
    assert acts(text) or shown == text
    assert not acts(inert.terminal(text, lines=True).replace("\n", "").replace("\t", ""))


@pytest.mark.parametrize("text", ["größe", "日本語", "👩‍👩‍👧", "שלום", "−0.5 ± 0.1", "a  b", "C:\\data"])
def test_what_is_only_read_stays(text):
    assert inert.terminal(text) == text
    assert inert.spreadsheet(text) == text
    assert json.loads(inert.json(text)) == text


@pytest.mark.parametrize("text", ACTS)
def test_a_line_on_a_console_is_inert(text):
    with TemporaryFile("w+", encoding="utf-8") as stream:
        console.console(stream).print(console.text(text))
        console.line(text, stream)
        stream.seek(0)
        lines = stream.read().split("\n")
    assert len(lines) == 3
    assert not acts("".join(lines))


def test_a_stream_that_lacks_a_character_gets_its_number():
    with TemporaryFile("w+", encoding="ascii") as stream:
        console.line("größe ±", stream)
        console.console(stream).print(console.text("größe"))
        stream.seek(0)
        assert stream.read() == "gr\\xf6\\xdfe \\xb1\ngr\\xf6\\xdfe\n"


# Markdown

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PLACES = ("{}", "- {}", "# {}", "before\n\n{}\n\nafter", "| a |\n|---|\n| {} |", "word {} word")


def rendered(markdown: str) -> tuple[list[str], str]:
    """The kinds of its parts, and the text that a reader sees in it."""
    kinds, words = [], []
    for token in PARSER.parse(markdown):
        kinds.append(token.type)
        for part in token.children or []:
            kinds.append(part.type)
            words.append(part.content)
    return kinds, "".join(words)


@pytest.mark.parametrize("place", PLACES)
@given(texts)
def test_text_is_the_same_text_in_markdown(place, text):
    """A place with it has the same structure as the place with a word, and a reader sees the same characters."""
    kinds, words = rendered(place.format(inert.markdown(text)))
    plain = " ".join(inert.terminal(text, lines=True).split())
    if not plain:
        return
    usual, _ = rendered(place.format("word"))
    assert [kind for kind in kinds if kind != "text_special"] == usual
    assert words == rendered(place.format("word"))[1].replace("word", plain, 1) or "word {} word" in place


@pytest.mark.parametrize(
    "text",
    ["# a", "```", "---", "===", "- a", "+ a", "1. a", "2) a", "> a", "    a", "<b>", "[a](b)", "![a](b)", "a|b", "&amp;", "*a*",
     "__a__", "~~a~~", "https://x.y", "<https://x.y>", "a\n\n# b", "a\n---", "\\*a\\*", "$x$"],
)  # fmt: skip
@pytest.mark.parametrize("place", PLACES)
def test_marks_are_only_characters(place, text):
    kinds, words = rendered(place.format(inert.markdown(text)))
    assert [kind for kind in kinds if kind != "text_special"] == rendered(place.format("word"))[0]
    assert " ".join(text.split()) in words


@pytest.mark.parametrize("text", ["see https://x.y/z", "www.x.y", "WWW.x.y", "mail a@b.c", "@user", "#12"])
def test_addresses_are_no_links_on_github(text):
    parser = MarkdownIt("commonmark")
    shown = inert.markdown(text)
    for mark in ("://", "www.", "WWW.", "@", "#"):
        assert mark not in shown.replace(f"\\{mark}", "").replace("\\://", "").replace("\\.", "")
    assert parser.render(shown) == f"<p>{text}</p>\n"


# Spreadsheets


@pytest.mark.parametrize(
    "text",
    [
        "=cmd()",
        "=1+1",
        "+a",
        "-a",
        "@SUM(A1)",
        " =a",
        "\t=a",
        "\r=a",
        "\n=a",
        "＝a",
        "+",
        "--1",
        "=",
        "\x00=a",
    ],
)
def test_what_would_be_a_formula_is_text(text):
    assert inert.spreadsheet(text) == f"'{text}"


@pytest.mark.parametrize(
    "value", ["-1", "+1.5", "-1e-3", "-inf", "a=b", "a", "", "'=a", -1, -0.5, None, True, "1-2", "a@b.c"]
)
def test_what_is_no_formula_stays(value):
    assert inert.spreadsheet(value) == value


# JSON, YAML and plots

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(values)
def test_json_has_the_same_values_and_acts_nowhere(value):
    for text in (inert.json(value), inert.json(value, indent=1), inert.json(value, ascii_only=True)):
        assert json.loads(text) == value
        assert not acts(text.replace("\n", ""))
    assert inert.json(value, ascii_only=True).isascii()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_is_yaml(text):
    document = yaml.safe_load(f"a: {inert.json({'x': [text]})}\nb: {inert.json(text)}\n")
    assert document == {"a": {"x": [text]}, "b": text}


def test_json_of_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        inert.json([float("nan")])


@pytest.mark.parametrize("text", ["<b>bold</b>", "%{x}", "&lt;", "\x1b[31m"])
def test_a_plot_gets_no_tags_and_no_templates(text):
    shown = inert.plot(text)
    assert not {"<", ">", "{", "\x1b"} & {*shown}
