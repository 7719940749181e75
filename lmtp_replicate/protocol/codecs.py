"""LMTP's messages as bytes: what the layers above need of `op_codec`, `item_codec` and `lines`."""

from lmtp_replicate.protocol.item_codec import decode_items, encode_frame, encode_lines
from lmtp_replicate.protocol.lines import LineDecoder
from lmtp_replicate.protocol.op_codec import decode_batch, decode_frame, encode_batch, encode_op

__all__ = [
    "LineDecoder",
    "decode_batch",
    "decode_frame",
    "decode_items",
    "encode_batch",
    "encode_frame",
    "encode_lines",
    "encode_op",
]
