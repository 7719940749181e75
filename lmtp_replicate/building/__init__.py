"""From config.toml to one Cog work directory per model: configure, choose, plan, apply."""

from lmtp_replicate.building.config import BuildConfig
from lmtp_replicate.building.work import build

__all__ = ["BuildConfig", "build"]
