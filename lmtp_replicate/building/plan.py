"""Plan a work directory: every file it will hold, with nothing written yet."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from importlib.resources import files as resources
from pathlib import Path

from lmtp_replicate.building.checkpoint import Checkpoint
from lmtp_replicate.building.files import Content, PlannedFile, Pointer, Weights
from lmtp_replicate.building.requirements import COG_SDK, PYTHON, requirements
from lmtp_replicate.building.schema import openapi_schema
from lmtp_replicate.building.wheel import OwnPackage
from lmtp_replicate.engine.options import LoadOptions

Plan = Mapping[str, PlannedFile]
"""Files by POSIX path relative to the work directory."""

CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"

_COG_YAML = f"""\
# https://github.com/replicate/cog/blob/main/docs/yaml.md
build:
  gpu: true
  python_version: "{PYTHON}"
  python_requirements: requirements.txt
  sdk_version: "{COG_SDK}"
run: "run.py:Runner"
"""

_DOCKERIGNORE = """\
.dockerignore
**/.*.partial
**/__pycache__
.git
.venv
push
"""

_PUSH = """\
#!/bin/sh
# Build the image of this directory and push it to Replicate. Written by lmtp-replicate build.
set -eu
CDPATH= cd -- "$(dirname -- "$0")"
if ! command -v cog >/dev/null 2>&1; then
    echo "push: cog is not installed; see https://cog.run" >&2
    exit 127
fi
exec cog push {image} --separate-weights "$@"
"""


def plan_work_directory(
    checkpoint: Checkpoint,
    sources: Mapping[str, Path],
    *,
    source: Mapping[str, str | None],
    options: LoadOptions,
    package: OwnPackage,
    image: str | None,
) -> Plan:
    """The files of one model's work directory.

    `sources` gives the local path of each file of `checkpoint`; `source` says where they came from
    and is recorded in config.json; `image` is the name to push under, None for no push script.
    """
    run = (resources("lmtp_replicate.building") / "templates" / "run.py").read_text("utf-8")
    config = {"model": CHECKPOINTS, "source": source, "load": options.model_dump(mode="json")}
    plan: dict[str, PlannedFile] = _checkpoint_files(checkpoint, sources)
    texts = {
        ".cog/openapi_schema.json": _json(openapi_schema(run)),
        ".dockerignore": _DOCKERIGNORE,
        "cog.yaml": _COG_YAML,
        "config.json": _json(config),
        "requirements.txt": requirements(package.requirement),
        "run.py": run,
    }
    plan |= {path: Content(text.encode()) for path, text in texts.items()}
    if package.wheel is not None:
        name, data = package.wheel
        plan[name] = Content(data)
    if image is not None:
        plan["push"] = Content(push_script(image).encode(), executable=True)
    return plan


def push_script(image: str) -> str:
    """A shell script that pushes the directory it lies in as `image`."""
    return _PUSH.format(image=shlex.quote(image))


def _checkpoint_files(
    checkpoint: Checkpoint, sources: Mapping[str, Path]
) -> dict[str, PlannedFile]:
    # `cog push --separate-weights` never takes a folder that holds code for weights. A model with
    # code of its own therefore has its weights in another folder, with links to them where
    # transformers looks.
    folder = WEIGHTS if checkpoint.code else CHECKPOINTS
    files: dict[str, PlannedFile] = {}
    for name in checkpoint.weights:
        files[f"{folder}/{name}"] = Weights(sources[name])
        if checkpoint.code:
            link = f"{CHECKPOINTS}/{name}"
            target = os.path.relpath(f"{WEIGHTS}/{name}", os.path.dirname(link))  # noqa: PTH120
            files[link] = Pointer(target)
    for name in checkpoint.texts + checkpoint.code:
        files[f"{CHECKPOINTS}/{name}"] = Content(sources[name].read_bytes())
    return files


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
