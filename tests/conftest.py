"""What every test gets: a home of its own, no network hub, and few threads.

LMQL pickles tokenizers under the user's home, so the real one is never used. Compiled kernels are
shared by all processes of a run: compiling them takes many seconds of all cores.
"""

from __future__ import annotations

import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

HOME = tempfile.mkdtemp(prefix="lmtp-replicate-tests-")
CACHE = os.environ.setdefault("LMTP_REPLICATE_TESTS_CACHE", f"{HOME}/.cache")
"""That of the process that began the run, which other processes of it inherit."""
os.environ |= {
    "HOME": HOME,
    "XDG_CACHE_HOME": CACHE,
    "HF_HOME": f"{HOME}/huggingface",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # tiny models: more threads only wait for each other
}
for name in ("REPLICATE_API_TOKEN", "REPLICATE_BASE_URL"):
    os.environ.pop(name, None)

# Two cores, shared: slowness is no failure.
settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared-machine")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)
