"""What every test gets: a home of its own, no network hub, and few threads.

LMQL pickles tokenizers under the user's home, so the real one is never used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

HOME = tempfile.mkdtemp(prefix="lmtp-replicate-tests-")
os.environ |= {
    "HOME": HOME,
    "HF_HOME": f"{HOME}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny models: more threads only wait for each other
}
for name in ("REPLICATE_API_TOKEN", "REPLICATE_BASE_URL"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def _own_home() -> Iterator[None]:
    yield
    shutil.rmtree(HOME, ignore_errors=True)
