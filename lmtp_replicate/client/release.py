"""What stands behind a Replicate endpoint: where predictions are created, and which dialect its
server speaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from lmtp_replicate.client.api import Api
from lmtp_replicate.client.endpoint import ReplicateEndpoint
from lmtp_replicate.errors import AuthenticationError, EndpointError
from lmtp_replicate.protocol.messages import Dialect

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Release:
    """path: where predictions are created. version: what the body must name, if anything."""

    path: str
    version: str | None
    dialect: Dialect


class LookUp:
    """An endpoint's release, looked up when first needed and shared from then on. `find` is
    `find_release` for the endpoint."""

    def __init__(self, find: Callable[[], Coroutine[Any, Any, Release]]) -> None:
        self._find = find
        self._task: asyncio.Task[Release] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the release is known."""
        return self._task is not None and self._task.done()

    async def release(self) -> Release:
        """The release; errors as of `find_release`. May be cancelled, which leaves the look-up to
        those who wait for it too."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._find())
            self._task.add_done_callback(self._forget_failure)
        looking = self._task
        await asyncio.wait({looking})
        return looking.result()

    def _forget_failure(self, task: asyncio.Task[Release]) -> None:
        """The next op looks again: what was wrong may have been put right."""
        if self._task is task and (task.cancelled() or task.exception() is not None):
            self._task = None

    def forget(self, release: Release) -> None:
        """Look again, should `release` still be what is known."""
        if self._task is not None and self.is_done and self._task.result() is release:
            self._task = None

    async def close(self) -> None:
        """Give up looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})


async def find_release(api: Api, endpoint: ReplicateEndpoint) -> Release:
    """Look `endpoint` up. Raises `EndpointError` when there is no such thing."""
    owner, name = endpoint.owner, endpoint.name
    if endpoint.is_deployment:
        deployment = await _known(api, f"/deployments/{owner}/{name}", endpoint)
        return Release(
            f"/deployments/{owner}/{name}/predictions", None, await _deployed(api, deployment)
        )
    if endpoint.version is not None:
        path = f"/models/{owner}/{name}/versions/{endpoint.version}"
        version = await _known(api, path, endpoint)
        return Release("/predictions", endpoint.version, dialect_of(version))
    model = await _known(api, f"/models/{owner}/{name}", endpoint)
    newest = model.get("latest_version")
    if not isinstance(newest, Mapping) or not newest.get("id"):
        # An official model, which is called by its name. Others without a version answer 404 there.
        return Release(f"/models/{owner}/{name}/predictions", None, Dialect.UPSTREAM)
    return Release("/predictions", str(newest["id"]), dialect_of(newest))


async def _known(api: Api, path: str, endpoint: ReplicateEndpoint) -> Mapping[str, Any]:
    try:
        return await api.get(path, is_first_call=True)
    except AuthenticationError:
        raise
    except EndpointError as error:
        what = "deployment" if endpoint.is_deployment else "model"
        version = f" with version {endpoint.version}" if endpoint.version else ""
        raise EndpointError(
            f"Replicate knows no {what} {endpoint.owner}/{endpoint.name}{version}, or "
            f"REPLICATE_API_TOKEN may not see it; check the spelling and the account. ({error})"
        ) from error


async def _deployed(api: Api, deployment: Mapping[str, Any]) -> Dialect:
    release = deployment.get("current_release")
    if not isinstance(release, Mapping):
        return Dialect.UPSTREAM
    try:
        return dialect_of(
            await api.get(f"/models/{release['model']}/versions/{release['version']}")
        )
    except (EndpointError, KeyError) as error:
        log.info(
            "the deployment's version cannot be read, so upstream's dialect is used: %s", error
        )
        return Dialect.UPSTREAM


def dialect_of(version: Mapping[str, Any]) -> Dialect:
    """The best dialect that the version's input `encoding` offers. Models built by upstream have no
    such input, and speak upstream's."""
    try:
        schemas = version["openapi_schema"]["components"]["schemas"]
        encoding = schemas["Input"]["properties"]["encoding"]
        choices = list(encoding.get("enum", ()))
        for reference in encoding.get("allOf", ()):
            choices += schemas[reference["$ref"].rpartition("/")[2]].get("enum", ())
    except (KeyError, TypeError, AttributeError):
        return Dialect.UPSTREAM
    return Dialect.EXTENDED if Dialect.EXTENDED in choices else Dialect.UPSTREAM
