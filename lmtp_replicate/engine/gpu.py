"""What torch must be told before anything runs on a GPU."""

from __future__ import annotations

import torch


def choose_kernels(device: torch.device) -> None:
    """For the whole process. On a GPU attention is not computed by cuDNN, which torch from 2.11 on
    asks first on recent ones: it makes a plan for each shape it has not seen, for tens of
    milliseconds at the least (https://github.com/modelscope/FunASR/issues/3704), and our streams
    grow with every step."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def make_current(device: torch.device) -> None:
    """For the calling thread: every new one starts on the first GPU, where kernels that are not
    torch's own, Triton's and bitsandbytes' among them, would be launched."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
