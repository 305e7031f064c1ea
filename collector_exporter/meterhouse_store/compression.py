"""Decompresses the bodies of requests: in time that grows with their size alone, to a bound, whatever they hold."""

import zlib
from typing import Any

# A body may be several compressed streams in a row (RFC 1952, section 2.2). What a decoder leaves of its input is
# copied at the end of each stream, so the input is given in pieces and the streams are counted.
MAX_STREAMS = 10_000
PIECE_BYTES = 16 * 1024
ENCODINGS = ("gzip", "deflate", "lz4", "zstd")


class UnknownEncoding(ValueError):
    """A Content-Encoding that is not one of ENCODINGS."""


class BadCompression(ValueError):
    """The body is damaged, ends too early, or is cut into too many streams."""


class TooLarge(ValueError):
    """The body is larger than allowed once it is decompressed."""


def decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    """The decompressed body, at most `limit_bytes`; no encoding and `identity` leave it as it is.

    May take long for a large body: call it in a thread. Raises UnknownEncoding, BadCompression, TooLarge.
    """
    if encoding in ("", "identity"):
        if len(body) > limit_bytes:
            raise TooLarge(f"a body has at most {limit_bytes} bytes")
        return body
    _decoder(encoding)  # an unknown encoding is refused for an empty body too
    try:
        return _decompress(body, encoding, limit_bytes)
    except (BadCompression, TooLarge):
        raise
    except Exception as problem:  # noqa: BLE001 - zlib, lz4 and zstd raise classes of their own for damaged data
        raise BadCompression(f"the body is not {encoding}: {problem}") from None


def _decompress(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    out = bytearray()
    decoder = None
    streams = 0
    for start in range(0, len(body), PIECE_BYTES):
        piece = body[start : start + PIECE_BYTES]
        while piece:
            if decoder is None:
                decoder = _decoder(encoding)
                streams += 1
            if streams > MAX_STREAMS:
                raise BadCompression(f"the body is more than {MAX_STREAMS} {encoding} streams: send it as one")
            out += decoder.decompress(piece, limit_bytes + 1 - len(out))
            if len(out) > limit_bytes:
                raise TooLarge(f"a body has at most {limit_bytes} bytes when it is decompressed")
            if not decoder.eof:
                break
            piece, decoder = decoder.unused_data or b"", None
    if decoder is not None:
        raise BadCompression(f"the {encoding} body ends too early")
    return bytes(out)


def _decoder(encoding: str) -> Any:
    if encoding in ("gzip", "deflate"):
        return zlib.decompressobj(wbits=47)  # 47: zlib or gzip, whichever it is
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return lz4.frame.LZ4FrameDecompressor()
    if encoding == "zstd":
        from backports import zstd

        return zstd.ZstdDecompressor()
    raise UnknownEncoding(f"Content-Encoding {encoding[:20]!r} is not known: use one of {', '.join(ENCODINGS)}")
