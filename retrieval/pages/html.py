"""The readable text of HTML, by the standard library's parser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "head"})
_OF_HEAD = frozenset({"base", "head", "html", "link", "meta", "noscript", "script", "style", "template", "title"})
"""What may stand in a head; anything else ends it, whether or not it was closed."""
_APART = frozenset({"button", "caption", "legend", "optgroup", "option", "select", "summary", "textarea"})
"""Boxes of their own, which stand beside their neighbours."""
_BLOCKS = frozenset(
    {"address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "figcaption", "figure", "footer"}
    | {"form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "nav", "ol", "p", "pre", "section"}
    | {"table", "td", "th", "tr", "ul"}
)
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
)
_ENDED_BY = {
    "p": _BLOCKS - {"br"},
    "li": {"li"},
    "option": {"option", "optgroup"},
    "tr": {"tr"},
    **{tag: {"dt", "dd"} for tag in ("dt", "dd")},
    **{tag: {"td", "th", "tr"} for tag in ("td", "th")},
}
"""Elements whose end may be left out, and what begins after it."""
_NOT_DISPLAYED = re.compile(r"(^|;)\s*display\s*:\s*none\b", re.IGNORECASE)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.parts: list[str] = []
        self._hidden: list[str] = []
        self._in_title = False
        self._open: list[tuple[str, bool]] = []
        """The elements that are open, outermost first, and whether each is hidden by an attribute, or lies in one."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        while self._open and tag in _ENDED_BY.get(self._open[-1][0], ()):
            self._open.pop()
        if tag not in _VOID:
            self._open.append((tag, self._is_within_hidden() or _is_hidden(attrs)))
        if tag not in _OF_HEAD:
            self._end_head()
        if tag == "title" and self._hidden in ([], ["head"]):  # a drawing has titles too
            self._in_title = True
        elif tag in _HIDDEN:
            self._hidden.append(tag)
        elif tag == "body":
            self._hidden.clear()  # a head whose end is missing
        elif tag in _BLOCKS:
            self.parts.append("\n")
        elif tag in _APART and not self._hidden:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        names = [name for name, _ in self._open]
        if tag in names:
            del self._open[len(names) - 1 - names[::-1].index(tag) :]
        if tag == "title":
            self._in_title = False
        elif self._hidden and tag == self._hidden[-1]:
            self._hidden.pop()
        elif tag in _BLOCKS:
            self.parts.append("\n")
        elif tag in _APART and not self._hidden:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
            return
        if data.strip():
            self._end_head()
        if not self._hidden and not self._is_within_hidden():
            self.parts.append(data)

    def _is_within_hidden(self) -> bool:
        return bool(self._open) and self._open[-1][1]

    def _end_head(self) -> None:
        if self._hidden == ["head"]:
            self._hidden.clear()


def _is_hidden(attrs: list[tuple[str, str | None]]) -> bool:
    return any(name == "hidden" or (name == "style" and _NOT_DISPLAYED.search(value or "")) for name, value in attrs)


def text_of_html(content: str) -> tuple[str, str]:
    """The title, and the text with a line a block, without what a browser does not show."""
    reader = _Reader()
    reader.feed(content)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return " ".join(reader.title.split()), "\n".join(line for line in lines if line)
