"""Run LMQL queries on open models hosted on Replicate.

Importing this package makes unmodified LMQL use our client for ``endpoint="replicate:..."``
(see :mod:`lmtp_replicate.lmql`); neither torch nor lmql is imported by it.
"""

from importlib.metadata import PackageNotFoundError, version

from lmtp_replicate.client import Stats, connect, stats
from lmtp_replicate.errors import LmtpReplicateError
from lmtp_replicate.lmql import install

try:
    __version__ = version("lmtp-replicate")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0.0.0"

install()

__all__ = ["LmtpReplicateError", "Stats", "__version__", "connect", "stats"]
