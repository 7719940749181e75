"""Models of the Hugging Face Hub: the real huggingface_hub against a local stand-in of the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.building.tiny import MODEL, index, safetensors

MAIN, OLD = "a" * 40, "b" * 40
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHARDED: Mapping[str, str | bytes] = {
    "config.json": "{}",
    "odd [name].jinja": "{{ x }}",
    "model.safetensors.index.json": index(*SHARDS),
    SHARDS[0]: safetensors(1),
    SHARDS[1]: safetensors(2),
    "pytorch_model.bin": b"x" * 100,
    "onnx/model.onnx": b"x" * 100,
}


class Hub:
    """Serves models as huggingface.co does; `requests` are those it had, `METHOD path`."""

    def __init__(self, repos: Mapping[str, Mapping[str, Mapping[str, str | bytes]]]) -> None:
        self.requests: list[str] = []
        self.branches = {"main": MAIN, "v1": OLD}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                path = unquote(urlsplit(self.path).path).removeprefix("/")
                repo = next((name for name in repos if f"{name}/" in f"{path}/"), None)
                if repo == "me/gated":
                    self.answer(403, {"X-Error-Code": "GatedRepo"}, b"{}")
                elif repo is None:
                    self.answer(404, {"X-Error-Code": "RepoNotFound"}, b"{}")
                else:
                    self.serve(repo, path.partition(repo)[2].removeprefix("/"))

            do_HEAD = do_GET  # noqa: N815

            def serve(self, repo: str, rest: str) -> None:
                kind, _, rest = rest.partition("/")
                revision, _, name = rest.partition("/")
                commit = hub.branches.get(revision or "main", revision)
                files = repos[repo].get(commit)
                if files is None:
                    self.answer(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
                elif kind == "resolve":
                    self.file(files[name], commit)
                elif kind == "tree":
                    tree = [
                        {"type": "file", "path": n, "size": len(c), "oid": etag(c)}
                        for n, c in files.items()
                    ]
                    self.answer(200, {}, json.dumps(tree).encode())
                else:
                    siblings = [{"rfilename": name} for name in files]
                    info = {"id": repo, "sha": commit, "siblings": siblings}
                    self.answer(200, {}, json.dumps(info).encode())

            def file(self, content: str | bytes, commit: str) -> None:
                data = content if isinstance(content, bytes) else content.encode()
                headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": commit}
                self.answer(200, headers, data)

            def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def etag(content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode()
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(
        {
            "me/model": {MAIN: MODEL, OLD: {**MODEL, "tokenizer.json": '{"old": 1}'}},
            "me/sharded": {MAIN: SHARDED},
            "me/gated": {MAIN: MODEL},
        }
    )
    thread = threading.Thread(target=hub.server.serve_forever)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


class Builder:
    """Runs `lmtp-replicate build` in a process of its own: huggingface_hub reads its environment
    when it is imported."""

    def __init__(self, folder: Path, wheel: Path, hub: Hub) -> None:
        self.folder, self.wheel = folder, wheel
        kept = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        self.environment = kept | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def __call__(self, repo: str, version: str | None = None, **environment: str) -> str:
        """Build the model `m`; what was written to stderr."""
        text = f"[models.m]\nhuggingface.repo = '{repo}'\n"
        text += f"huggingface.version = '{version}'\n" if version else ""
        (self.folder / "config.toml").write_text(text)
        command = [sys.executable, "-m", "lmtp_replicate", "build", "--wheel", str(self.wheel)]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        self.status = done.returncode
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr

    @property
    def work(self) -> Path:
        return self.folder / "work" / "m"


@pytest.fixture
def builder(tmp_path: Path, wheel: Path, hub: Hub) -> Builder:
    return Builder(tmp_path, wheel, hub)


def test_a_model_of_the_hub_is_downloaded_once_and_pinned(builder: Builder, hub: Hub) -> None:
    log = builder("me/sharded")
    assert builder.status == 0, log
    found = {path.name for path in (builder.work / "checkpoints").iterdir()}
    assert found == {name for name in SHARDED if "/" not in name and not name.endswith(".bin")}
    config = json.loads((builder.work / "config.json").read_text())
    assert config["source"] == {"repo": "me/sharded", "revision": MAIN}
    downloads = [line for line in hub.requests if line.startswith("GET") and "/resolve/" in line]
    assert len(downloads) == len(found)
    assert not any("pytorch_model" in line or "onnx" in line for line in downloads)
    branch = [line for line in hub.requests if "/api/models/" in line and MAIN not in line]
    assert len(branch) == 1  # it may move: what follows asks for the commit
    linked = builder.work / "checkpoints" / SHARDS[0]
    assert linked.stat().st_nlink == 2  # the Hub's cache holds the other name

    hub.requests.clear()
    assert "up to date" in builder("me/sharded")
    assert not any("/resolve/" in line for line in hub.requests if line.startswith("GET"))


def test_a_version_is_honoured_and_can_change(builder: Builder) -> None:
    builder("me/model", "v1")
    tokenizer = builder.work / "checkpoints" / "tokenizer.json"
    assert tokenizer.read_text() == '{"old": 1}'
    assert OLD in (builder.work / "config.json").read_text()
    log = builder("me/model", MAIN)
    assert "updated checkpoints/tokenizer.json, config.json" in log
    assert tokenizer.read_text() == "{}"


def test_all_files_come_from_one_commit_though_the_branch_moves(builder: Builder, hub: Hub) -> None:
    """Upstream listed a branch twice, and lost the weights when it moved in between."""
    builder("me/model")
    assert any(f"/resolve/{MAIN}/model.safetensors" in line for line in hub.requests)
    assert not any("/resolve/main/" in line for line in hub.requests)


def test_without_a_network_the_cache_is_enough(builder: Builder, hub: Hub) -> None:
    builder("me/model")
    hub.requests.clear()
    log = builder("me/model", HF_HUB_OFFLINE="1")
    assert (builder.status, hub.requests) == (0, [])
    assert "using its cache" in log
    assert "up to date" in log
    log = builder("me/model", HF_ENDPOINT="http://127.0.0.1:9")
    assert "up to date" in log


@pytest.mark.parametrize(
    ("repo", "version", "reason"),
    [
        ("me/nothing", None, "m: me/nothing: the Hub knows no such model"),
        ("me/model", "v9", "m: me/model: there is no revision 'v9'"),
        ("me/gated", None, "accept its terms at https://huggingface.co/me/gated"),
        ("me/a--b", None, "cannot be a Hugging Face id"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    builder: Builder, repo: str, version: str | None, reason: str
) -> None:
    log = builder(repo, version, HF_TOKEN="hf_SECRET")
    assert builder.status == 1
    assert reason in log
    assert "hf_SECRET" not in log
    assert not builder.work.exists()


def test_no_network_and_nothing_cached_is_explained(builder: Builder) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        log = builder("me/model", **environment)
        assert builder.status == 1
        assert "me/model: the Hub cannot be reached" in log
