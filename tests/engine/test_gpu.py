"""What is told torch about GPUs, as far as it shows without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lmtp_replicate.engine import threads
from lmtp_replicate.engine.gpu import choose_kernels, make_current
from lmtp_replicate.engine.settings import EngineSettings
from lmtp_replicate.engine.torch_engine import TorchEngine
from lmtp_replicate.protocol.messages import Generate
from tests.engine.running import answers
from tests.engine.test_decode_graphs import Tape
from tests.engine.tiny_models import tiny_loaded, tiny_network


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


def test_the_current_gpu_is_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    for name in ("cpu", "cuda", "cuda:1"):
        make_current(torch.device(name))
    assert current == [torch.device("cuda:1")]


def test_every_thread_that_runs_a_model_is_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    # Threads, and not their numbers, which a new one has from one that has ended.
    told: dict[threading.Thread, torch.device] = {}
    ran = set()
    monkeypatch.setattr(
        threads, "make_current", lambda device: told.update({threading.current_thread(): device})
    )
    network = tiny_network("llama")
    network.register_forward_pre_hook(lambda *_: ran.add(threading.current_thread()))
    settings = EngineSettings(decode_graphs=True, share_pages=True, max_streams=1)
    engine = TorchEngine(tiny_loaded("llama", network), settings, Tape())
    try:
        answers(engine, [Generate(1, (3, 4), 3)])
    finally:
        engine.close()
    assert len(ran) > 1
    assert {told.get(thread) for thread in ran} == {torch.device("cpu")}
