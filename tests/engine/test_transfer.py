"""Numbers of Python's as tensors."""

from __future__ import annotations

import pytest
import torch

from lmtp_replicate.engine.transfer import whole_numbers


@pytest.mark.parametrize("values", [[], [0], [-1, 2**63 - 1, -(2**63)], list(range(1000))])
def test_whole_numbers(values: list[int]) -> None:
    found = whole_numbers(values)
    assert found.dtype == torch.int64
    assert found.tolist() == values
