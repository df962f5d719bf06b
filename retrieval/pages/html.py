"""The readable text of HTML, by the standard library's parser."""

from __future__ import annotations

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


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.parts: list[str] = []
        self._hidden: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
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
        if not self._hidden:
            self.parts.append(data)

    def _end_head(self) -> None:
        if self._hidden == ["head"]:
            self._hidden.clear()


def text_of_html(content: str) -> tuple[str, str]:
    """The title, and the text with a line a block, without what a browser does not show."""
    reader = _Reader()
    reader.feed(content)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return " ".join(reader.title.split()), "\n".join(line for line in lines if line)
