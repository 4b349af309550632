"""Escape text from data, file names and models for the place where it is shown, so that it is read there and does nothing.

One function each for a terminal, Markdown, a spreadsheet and a plot. The page's template escapes HTML by itself.
"""

import html
import json as json_format
import re
from typing import Any

_ACTS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
"""What moves a cursor, ends a line, turns the direction of the text round, or is no character at all."""
_UNSEEN = re.compile(f"[{_ACTS}]")
_UNSEEN_IN_LINES = re.compile(rf"(?![\t\n])[{_ACTS}]")
_MARK = re.compile(r"[\\`|<>\[\]*_~#&$@]|(?<=[a-z]):(?=//)|(?<=www)\.", re.IGNORECASE)
"""Marks, and what makes an address: GitHub turns those into links."""
_LIST = re.compile(r"^(\d{0,9})(?:(?<=\d)[.)]|(?<!\d)[-+=])(?=[\s+=-]|$)")
"""What begins a list or underlines a heading."""
_FORMULA = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ufeff]*[=+\-@＝＋－＠]")
"""How a formula begins in a spreadsheet; the wide signs count in those set to Japanese or Chinese."""


def terminal(text: object, *, lines: bool = False) -> str:
    r"""Return text as one line for a terminal: control characters are shown as `\x1b`.

    Args:
        text: anything; `str` is applied.
        lines: line ends and tabs stay.
    """
    return (_UNSEEN_IN_LINES if lines else _UNSEEN).sub(_shown, str(text))


def _shown(found: re.Match[str]) -> str:
    code = ord(found.group())
    named = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}
    return named.get(found.group()) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def markdown(text: object) -> str:
    """Return text that is the same plain text in Markdown, in a line, a heading or a table."""
    line = _MARK.sub(r"\\\g<0>", " ".join(terminal(text, lines=True).split()))
    return _LIST.sub(lambda found: f"{found[1]}\\{found[0][len(found[1]) :]}", line)


def spreadsheet(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula: such text gets an apostrophe in front. Numbers stay, also as text."""
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def plot(text: object) -> str:
    """Return text for a figure: plotly interprets a little HTML, and takes `%{x}` for a value."""
    return html.escape(terminal(text), quote=False).replace("{", "&#123;")


def json(document: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    r"""Return JSON that is also YAML and may be shown anywhere: control characters are escaped (`\u001b`). The values are the same.

    Args:
        document: plain values.
        indent: as in `json.dumps`.
        ascii_only: for streams of another encoding than UTF-8.

    Raises:
        ValueError: a number isn't finite.
    """
    text = json_format.dumps(document, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
    return _UNSEEN_IN_LINES.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
