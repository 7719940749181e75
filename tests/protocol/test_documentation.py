"""docs/protocol.md is a promise: its examples are read, its limits are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

from lmtp_replicate.protocol.codecs import decode_batch, decode_frame, decode_items
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.messages import EXTENSIONS, Dialect, ErrorItem
from lmtp_replicate.protocol.validation import READERS, Settings

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def examples(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert found
    return [example.strip() for example in found]


def test_the_examples_are_valid() -> None:
    for frame in examples("op"):
        assert not [op for op in decode_frame(frame) if isinstance(op, ErrorItem)], frame
    for batch in examples("batch"):
        assert not [op for op in decode_batch(batch) if isinstance(op, ErrorItem)], batch
    for frame in examples("items"):
        errors = [item for item in decode_items(frame) if isinstance(item, ErrorItem)]
        assert all("negative" in error.error for error in errors), frame


def test_the_limits_are_the_real_ones() -> None:
    section = TEXT.partition("### Limits")[2].partition("\n## ")[0]
    stated = re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)
    assert {name: int(value) for name, value in stated} == LIMITS.announced()


def test_every_name_is_explained() -> None:
    for name in [*EXTENSIONS, *Settings.model_fields, *READERS]:
        assert f"`{name}`" in TEXT or f"### {name}" in TEXT, name
    for dialect in Dialect:
        assert f'`"{dialect}"`' in TEXT
