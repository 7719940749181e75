"""Turn config.toml into one Cog work directory per model, below work/ in the current directory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shutil import which

NAME = "build"
HELP = "Turn config.toml into one Cog work directory per model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `lmtp-replicate build`."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these models")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="instead of config.toml here or in the project's root",
    )
    parser.add_argument(
        "--wheel",
        type=Path,
        metavar="FILE",
        help="the wheel of lmtp-replicate to install in the image, instead of this very one",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    from lmtp_replicate.building.config import BuildConfig, find_config
    from lmtp_replicate.building.work import build

    here = Path.cwd()
    config = BuildConfig.load(find_config(arguments.config, here))
    directories = build(config, arguments.models, here / "work", wheel=arguments.wheel)
    for directory in directories:
        sys.stdout.write(_next_steps(directory.relative_to(here), config.destination))
    return 0


def _next_steps(directory: Path, destination: str | None) -> str:
    # Whoever ran ./build from a checkout need not have the environment's programs on the PATH.
    command = which("lmtp-replicate") and "lmtp-replicate"
    command = command or str(Path(sys.executable).with_name("lmtp-replicate"))
    push = f"cd {directory} && ./push" if destination else "(set dest_prefix in config.toml first)"
    return f"""
{directory} is ready. Next:
  without Docker   {command} predict {directory} -i prompt='Hello'
                   {command} gateway {directory}
  in its image     cd {directory} && cog run -i prompt='Hello'
  to Replicate     {push}
"""
