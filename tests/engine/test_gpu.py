"""What is told torch about GPUs, as far as it shows without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lmtp_replicate.engine.gpu import choose_kernels


@pytest.fixture
def cudnn() -> Iterator[None]:
    """torch as it starts."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.usefixtures("cudnn")
def test_attention_on_a_gpu_is_not_cudnns() -> None:
    choose_kernels(torch.device("cpu"))
    assert torch.backends.cuda.cudnn_sdp_enabled()
    choose_kernels(torch.device("cuda:1"))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
