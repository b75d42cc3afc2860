"""A stretch of a text file -> blocks of whole records, as UTF-8, each as large as memory allows.

Where a block ends depends on nothing but the file's records: text is cut only where a record begins however the lines
before are read. Knows lines and encodings, and of CSV only the layout.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator

from llmrec_ray.data.layout import Layout, separation
from llmrec_ray.data.sources import SourceFile
from llmrec_ray.data.text_lines import MAX_RECORD_LINES, record_start, split_lines, walk
from llmrec_ray.errors import DataError

__all__ = ["BLOCK_BYTES", "can_cut", "first_lines", "next_cut", "text_blocks"]

BLOCK_BYTES = 32 * 1024 * 1024
READ_BYTES = 4 * 1024 * 1024
LONGEST_RECORD_BYTES = 64 * 1024 * 1024
HEADER_BYTES = 256 * 1024
CUT_BYTES = (64 * 1024, 1024 * 1024, 16 * 1024 * 1024)
TAIL_LINES = 4 * MAX_RECORD_LINES
BYTE_ORDER_MARK = codecs.BOM_UTF8


def can_cut(source: SourceFile) -> bool:
    """Whether the file can be read from its middle."""
    return not source.is_compressed and source.config.encoding != "utf-16"


def text_blocks(
    source: SourceFile, start: int, stop: int, layout: Layout | None, block_bytes: int = BLOCK_BYTES
) -> Iterator[bytes]:
    """Blocks of about `block_bytes` of a file from `start`, where a record begins, to `stop`, where another does.

    Lines of JSON have no layout. Raises MissingInputError when the file cannot be read to its end, DataError when it is
    no text of its encoding or has no lines.
    """
    held, size = [], 0
    for text in _decoded(source, start, stop, min(block_bytes, READ_BYTES)):
        held.append(text)
        size += len(text)
        if size < block_bytes:
            continue
        whole = b"".join(held)
        cut = _last_start(whole, layout)
        if cut:
            yield whole[:cut]
        elif size > block_bytes + LONGEST_RECORD_BYTES:
            raise DataError(
                f"{source.name} has records of more than {LONGEST_RECORD_BYTES >> 20} MiB: correct `format`, or write "
                "one record a line."
            )
        held = [whole[cut:]]
        size = len(held[0])
    if size:
        yield b"".join(held)


def first_lines(source: SourceFile) -> list[str]:
    """The lines that a header can take."""
    text = b""
    for more in _decoded(source, 0, source.size_bytes, HEADER_BYTES):
        text += more
        if text.count(b"\n") > MAX_RECORD_LINES or len(text) > LONGEST_RECORD_BYTES:
            break
    return split_lines(text)[: MAX_RECORD_LINES + 1]


def next_cut(source: SourceFile, after: int) -> int | None:
    """A byte not far behind `after` that surely begins a record; None when none is found."""
    layout = None if source.config.format == "jsonl" else separation(source.config)
    for size in CUT_BYTES:
        stop = min(after + size, source.size_bytes)
        cut = _first_start(b"".join(source.read_bytes(after, stop)), source, layout)
        if cut is not None:
            return after + cut
    return None


def _first_start(raw: bytes, source: SourceFile, layout: Layout | None) -> int | None:
    """Offset of the first sure beginning of a record behind the line that `raw` begins in."""
    begin, end = raw.find(b"\n") + 1, raw.rfind(b"\n") + 1
    if layout is None or not layout.quotes:
        return begin or None
    lines = split_lines(_in_utf8(raw[begin:end], source)) if begin else []
    number = record_start(lines, layout.separator)
    for _ in range(number or 0):
        begin = raw.index(b"\n", begin) + 1
    return None if number is None else begin


def _last_start(text: bytes, layout: Layout | None) -> int:
    """Offset of a beginning of a record near the end of text that begins with one; 0 when there is none."""
    end = text.rfind(b"\n") + 1
    if layout is None or not layout.quotes or b'"' not in text:
        return end
    begin = end
    for _ in range(TAIL_LINES):
        begin = text.rfind(b"\n", 0, max(begin - 1, 0)) + 1
    lines = split_lines(text[begin:end])
    number = record_start(lines, layout.separator)
    if number is None:
        begin, lines = 0, split_lines(text[:end])
        number = 0
    for _ in range(walk(lines, number, layout.separator)):
        begin = text.index(b"\n", begin) + 1
    return begin


def _decoded(source: SourceFile, start: int, stop: int, chunk_bytes: int) -> Iterator[bytes]:
    if source.config.encoding == "utf-16":
        chunks: Iterable[bytes] = _from_utf16(source, start, stop, chunk_bytes)
    else:
        chunks = (_in_utf8(raw, source) for raw in source.read_bytes(start, stop, chunk_bytes))
    for number, text in enumerate(chunks):
        yield text.removeprefix(BYTE_ORDER_MARK) if number == start == 0 else text


def _in_utf8(raw: bytes, source: SourceFile) -> bytes:
    """Bytes that the encoding does not have stay bytes that are no UTF-8, so that their lines can be told."""
    if source.config.encoding == "utf-8":
        return raw
    return raw.decode(source.config.encoding, "surrogateescape").encode("utf-8", "surrogateescape")


def _from_utf16(source: SourceFile, start: int, stop: int, chunk_bytes: int) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
    try:
        for raw in source.read_bytes(start, stop, chunk_bytes):
            yield decoder.decode(raw).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise DataError(f"{source.name} is not utf-16 text ({error}): correct `encoding`, or restore it.") from None
