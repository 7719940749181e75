"""Replicate's output as lines of JSON, beside msgpack in base85: bytes on the wire and CPU time.

JSON is what we send. msgpack would have to travel as base85, since a prediction's output is text.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from base64 import b85decode, b85encode
from collections.abc import Callable, Sequence
from time import perf_counter

from lmtp_replicate.protocol.codecs import decode_items, encode_frame, encode_lines
from lmtp_replicate.protocol.messages import Dialect, Item, TokenItem

EVENT = "event: output\nid: 1690212292:{number}\ndata: {data}\ndata: \n\n"
"""How Replicate's stream wraps each piece of output that ends with a newline."""
VOCABULARY = 128_256


def steps(streams: int, best: int, count: int) -> list[list[Item]]:
    """`count` steps of a server: one token of each stream with its `best` likeliest ids."""
    source = random.Random(f"{streams}/{best}")
    return [[_item(source, stream, best) for stream in range(streams)] for _ in range(count)]


def _item(source: random.Random, stream: int, best: int) -> TokenItem:
    ids = source.sample(range(VOCABULARY), max(1, best))
    logprobs = sorted((math.log(source.random()) for _ in ids), reverse=True)
    top = dict(zip(ids, logprobs, strict=True)) if best else {}
    return TokenItem(10_000 + stream, ids[0], logprobs[0], top)


def as_json(items: Sequence[Item]) -> str:
    return encode_lines(items, Dialect.EXTENDED)


def from_json(line: str) -> list[Item]:
    return decode_items(line)


def as_msgpack(items: Sequence[Item]) -> str:
    (frame,) = encode_frame(items, binary=True)
    assert isinstance(frame, bytes)
    return f"BIN {b85encode(frame).decode('ascii')}\n"


def from_msgpack(line: str) -> list[Item]:
    return decode_items(b85decode(line.removeprefix("BIN ").rstrip("\n")))


CASES = {
    "greedy, 1 stream": (1, 1),
    "greedy, 8 streams": (8, 1),
    "5 best, 1 stream": (1, 5),
    "5 best, 8 streams": (8, 5),
    "scores of 8 options": (8, 0),
}
ENCODINGS: dict[str, tuple[Callable[[Sequence[Item]], str], Callable[[str], list[Item]]]] = {
    "JSON": (as_json, from_json),
    "msgpack, base85": (as_msgpack, from_msgpack),
}


def measure(case: tuple[int, int], encoding: str, count: int) -> tuple[float, float, float]:
    """Bytes of the event stream, and microseconds to write and to read, of each item."""
    streams, best = case
    write, read = ENCODINGS[encoding]
    work = steps(streams, best, count)
    began = perf_counter()
    lines = [write(items) for items in work]
    written = perf_counter()
    answers = [read(line) for line in lines]
    done = perf_counter()
    assert answers == work
    size = sum(
        len(EVENT.format(number=number, data=line.rstrip("\n")))
        for number, line in enumerate(lines)
    )
    items = streams * count
    return size / items, (written - began) / items * 1e6, (done - written) / items * 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding", description=__doc__)
    parser.add_argument("--steps", type=int, default=5000, help="of the server (%(default)s)")
    count = parser.parse_args(arguments).steps
    print("| case | encoding | bytes a token | µs to write | µs to read |")
    print("| --- | --- | --- | --- | --- |")
    for name, case in CASES.items():
        for encoding in ENCODINGS:
            size, write, read = measure(case, encoding, count)
            print(f"| {name} | {encoding} | {size:.0f} | {write:.1f} | {read:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
