"""The models that the gateway offers, as Replicate describes models, versions and deployments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from lmtp_replicate.gateway.dispatcher import Dispatcher
from lmtp_replicate.gateway.input_schema import InputSchema
from lmtp_replicate.gateway.prediction import timestamp
from lmtp_replicate.gateway.work_directory import WorkDirectory


@cache
def cog_version() -> str:
    """Of the Cog runtime that we start."""
    return version("cog")


@dataclass
class Model:
    """One work directory on offer: one version, one deployment of the same name."""

    owner: str
    work: WorkDirectory
    schema: InputSchema
    dispatcher: Dispatcher
    run_count: int = 0

    def show(self) -> dict[str, Any]:
        """The API's model object."""
        return {
            "url": f"https://replicate.com/{self.owner}/{self.work.name}",
            "owner": self.owner,
            "name": self.work.name,
            "description": None,
            "visibility": "private",
            "is_official": False,
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": self.run_count,
            "cover_image_url": None,
            "created_at": timestamp(self.work.created_at),
            "default_example": None,
            "latest_version": self.show_version(),
        }

    def show_version(self) -> dict[str, Any]:
        """The API's version object."""
        return {
            "id": self.work.version,
            "created_at": timestamp(self.work.created_at),
            "cog_version": cog_version(),
            "openapi_schema": self.work.schema,
        }

    def show_deployment(self) -> dict[str, Any]:
        """The API's deployment object."""
        return {
            "owner": self.owner,
            "name": self.work.name,
            "current_release": {
                "number": 1,
                "model": f"{self.owner}/{self.work.name}",
                "version": self.work.version,
                "created_at": timestamp(self.work.created_at),
                "created_by": show_account(self.owner),
                "configuration": {"hardware": "local", "min_instances": 0, "max_instances": 1},
            },
        }


class Catalog:
    """Models by name and by version."""

    def __init__(self, owner: str, models: Sequence[Model]) -> None:
        self.owner = owner
        self._by_name = {model.work.name: model for model in models}
        self._by_version = {model.work.version: model for model in models}

    def __iter__(self) -> Iterator[Model]:
        return iter(self._by_name.values())

    def find(self, names: Mapping[str, str]) -> Model | None:
        """The model that a request's path names by `owner` and `name`."""
        return self._by_name.get(names["name"]) if names["owner"] == self.owner else None

    def find_version(self, reference: str) -> Model | None:
        """The model of a create's `version`: an id, or `owner/name:id`."""
        name, _, version_id = reference.rpartition(":")
        model = self._by_version.get(version_id)
        if model is None or name not in ("", f"{self.owner}/{model.work.name}"):
            return None
        return model


def show_account(owner: str) -> dict[str, Any]:
    """The API's account object."""
    return {"type": "user", "username": owner, "name": owner, "github_url": None}
