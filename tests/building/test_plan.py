"""What a work directory holds."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.metadata import requires, version
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lmtp_replicate.building.checkpoint import Checkpoint
from lmtp_replicate.building.files import Content, Weights
from lmtp_replicate.building.plan import Plan, plan_work_directory, push_script
from lmtp_replicate.building.requirements import COG_SDK, TORCH, pins
from lmtp_replicate.building.wheel import OwnPackage
from lmtp_replicate.building.workdir import apply
from lmtp_replicate.engine.options import LoadOptions
from tests.building.tiny import MODEL, safetensors, write_files

# pkg/config/data/config_schema_v1.0.json of github.com/replicate/cog (Apache-2.0).
COG_SCHEMA = Path(__file__).parent / "cog_config_schema_v1.0.json"
WHEEL = "lmtp_replicate-1.0-py3-none-any.whl"


def make_plan(
    model: Path, *, code: tuple[str, ...] = (), image: str | None = None, **options: object
) -> Plan:
    texts = tuple(name for name in MODEL if name.endswith(".json"))
    checkpoint = Checkpoint(("model.safetensors",), texts, code)
    return plan_work_directory(
        checkpoint,
        {name: model / name for name in checkpoint.files},
        source={"repo": "me/model", "revision": "c" * 40},
        options=LoadOptions.from_model_args(options),
        package=OwnPackage(f"./{WHEEL}", (WHEEL, b"PK")),
        image=image,
    )


def text(plan: Plan, name: str) -> str:
    file = plan[name]
    assert isinstance(file, Content)
    return file.data.decode()


def test_cog_yaml_is_valid_and_modern(model: Path) -> None:
    settings = yaml.safe_load(text(make_plan(model), "cog.yaml"))
    jsonschema.validate(settings, json.loads(COG_SCHEMA.read_text()))
    assert settings["run"] == "run.py:Runner"
    assert settings["build"]["python_requirements"] in make_plan(model)
    assert settings["build"]["sdk_version"] == COG_SDK == version("cog")
    assert settings["build"]["gpu"] is True
    assert {"predict", "python_packages"}.isdisjoint({*settings, *settings["build"]})


def test_config_json_is_what_the_runner_reads(model: Path) -> None:
    config = json.loads(text(make_plan(model, load_in_8bit=True), "config.json"))
    assert config["model"] == "checkpoints"
    assert config["source"] == {"repo": "me/model", "revision": "c" * 40}
    assert LoadOptions.model_validate(config["load"]) == LoadOptions(quantize="8bit")


def test_requirements_name_the_wheel_and_pin_all_else(model: Path) -> None:
    plan = make_plan(model)
    own, *others = text(plan, "requirements.txt").splitlines()
    assert own == f"./{WHEEL}"
    assert WHEEL in plan
    assert all(len(Requirement(line).specifier) == 1 and "==" in line for line in others)


PINS = {canonicalize_name(name): pin for name, pin in ({"torch": TORCH} | pins()).items()}
NOT_IN_THE_IMAGE = {
    "cog",  # by sdk_version: Cog drops it from a requirements file
    "jsonschema",  # for the gateway
}


def test_pins_cover_what_the_server_needs_in_versions_that_were_tested() -> None:
    for line in requires("lmtp-replicate") or []:
        needed = Requirement(line)
        name = canonicalize_name(needed.name)
        if needed.marker is None or needed.marker.evaluate({"extra": "server"}):
            assert name in NOT_IN_THE_IMAGE or PINS[name] in needed.specifier, name
    for name, pin in PINS.items():
        if name != "torch":  # the image's is older than a machine's without a GPU may be
            assert version(name) == pin, name


def test_pins_fit_each_other() -> None:
    for name in ("cog", *PINS):
        for line in [] if name == "torch" else requires(name) or []:
            other = Requirement(line)
            if (other.marker is None or other.marker.evaluate({"extra": ""})) and (
                pin := PINS.get(canonicalize_name(other.name))
            ):
                assert pin in other.specifier, f"{name} needs {line}"


def test_weights_lie_in_a_folder_without_code(model: Path, tmp_path: Path) -> None:
    """`cog push --separate-weights` takes no folder for weights whose path begins the path of a
    Python file (pkg/weightslegacy/weights.go), nor a symbolic link."""
    write_files(model, {"modeling_x.py": "x = 1"})
    for code in ((), ("modeling_x.py",)):
        work = tmp_path / f"work{len(code)}"
        plan = make_plan(model, code=code)
        apply(plan, work)
        folders = {name.rpartition("/")[0] for name, f in plan.items() if isinstance(f, Weights)}
        assert len(folders) == 1
        assert not any(name.startswith(*folders) for name in plan if name.endswith(".py"))
        assert (work / "checkpoints/model.safetensors").read_bytes() == safetensors()
        assert (work / "checkpoints/modeling_x.py").exists() == bool(code)


def test_nothing_that_the_image_needs_is_ignored(model: Path) -> None:
    ignored = text(make_plan(model), ".dockerignore").split()
    assert not {"*", "checkpoints", "weights", "cog.yaml", WHEEL, "run.py"} & set(ignored)


def test_push_only_where_there_is_a_place(model: Path) -> None:
    assert "push" not in make_plan(model)
    push = make_plan(model, image="r8.im/me/demo")["push"]
    assert isinstance(push, Content)
    assert push.executable


HOSTILE = [
    "r8.im/me/demo",
    "r8.im/me/$(touch pwned)",
    "r8.im/me/`touch pwned`",
    "r8.im/me/'; touch pwned; '",
    'r8.im/me/"x" && touch pwned',
    "r8.im/me/a b\n touch pwned",
    "--help",
    "r8.im/{image}",
]


@pytest.mark.parametrize("image", HOSTILE)
def test_push_gives_cog_exactly_the_image(tmp_path: Path, image: str) -> None:
    work, tools = tmp_path / "wo rk", tmp_path / "tools"
    write_files(work, {"push": push_script(image)})
    write_files(tools, {"cog": '#!/bin/sh\npwd\nfor a in "$@"; do printf "[%s]" "$a"; done\n'})
    (work / "push").chmod(0o755)
    (tools / "cog").chmod(0o755)
    assert subprocess.run(["sh", "-n", work / "push"], check=False).returncode == 0
    done = subprocess.run(
        [work / "push", "--progress=plain"],
        env={"PATH": f"{tools}:{os.environ['PATH']}", "CDPATH": "/"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{work}\n[push][{image}][--separate-weights][--progress=plain]"
    assert done.returncode == 0
    assert list(tmp_path.rglob("pwned")) == []


def test_push_without_cog_says_how_to_get_it(tmp_path: Path) -> None:
    write_files(tmp_path, {"push": push_script("r8.im/me/demo")})
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(
        ["/bin/sh", tmp_path / "push"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 127
    assert "cog is not installed" in done.stderr
    assert "https://cog.run" in done.stderr
