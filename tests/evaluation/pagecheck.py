"""A strict reading of a report page: what a browser would forgive is an error here, and so is anything it would have to fetch."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "img", "br", "hr"}
_KNOWN = {
    *["html", "head", "title", "style", "body", "main", "section", "article", "h1", "h2", "h3", "p", "ul", "li", "dl", "dt", "dd", "div"],
    *["table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "polyline", "polygon", "circle", "text"],
    *_VOID,
}


class Page(HTMLParser):
    """The page as (tags, texts, images); raises AssertionError on anything that is not well-formed or not self-contained."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        assert source.startswith("<!DOCTYPE html>")
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.images: list[dict[str, str]] = []
        self.headings: list[int] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == [], f"never closed: {self._open}"
        assert self.headings[0] == 1 and self.headings.count(1) == 1
        assert all(below <= above + 1 for above, below in zip(self.headings, self.headings[1:], strict=False))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _KNOWN, f"<{tag}> has no place in a report"
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"<{tag}> has an attribute twice"
        assert not [name for name in given if name.startswith("on") or name in ("href", "srcset", "xlink:href")]
        assert "url(" not in given.get("style", "")
        if tag == "img":
            assert given["src"].startswith(("data:image/jpeg;base64,", "data:image/png;base64,"))
            assert given["alt"] and given["width"] and given["height"]
            self.images.append(given)
        if tag == "svg":
            assert given["role"] == "img" and given["aria-label"]
        if tag in ("th",):
            assert given["scope"] in ("col", "row")
        if tag in ("h1", "h2", "h3"):
            self.headings.append(int(tag[1]))
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing that is open"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            assert "url(" not in data and "@import" not in data
        elif data.strip():
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment has no place in a report")

    @property
    def text(self) -> str:
        return "\n".join(self.texts)
