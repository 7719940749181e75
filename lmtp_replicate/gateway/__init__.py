"""Replicate's HTTP API on this machine, in front of Cog runtimes that it starts and supervises.

`Gateway` is the whole thing; `cog_runtime.CogRuntime` runs one work directory on the real Cog
runtime.
"""

from lmtp_replicate.gateway.gateway import Gateway

__all__ = ["Gateway"]
