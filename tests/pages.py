"""Pages that people read, looked at by programs: tags, text, colours, and whether anything comes from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

__all__ = ["HOSTILE", "Page", "check_is_alone", "colours", "contrast"]

HOSTILE = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}


class Page(HTMLParser):
    """Tags with their attributes and the text of a page; complains about tags that are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def check_is_alone(page: str) -> None:
    """Nothing runs and nothing is fetched when the page is opened."""
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    assert not any({"src", "href", "srcset", "style"} & attrs.keys() for _, attrs in parsed.tags)
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    for outside in ("http:", "https:", "url(", "@import", "@font-face"):
        assert outside not in page


def colours(css: str, scheme: str) -> dict[str, str]:
    """The variables of a style sheet that are colours, in the light or the dark scheme."""
    light, dark = css.split("@media (prefers-color-scheme: dark)")
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light if scheme == "light" else dark))


def contrast(one: str, other: str) -> float:
    """Of two colours, from 1 to 21, as WCAG 2.2 counts it."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
