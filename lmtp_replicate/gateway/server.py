"""The routes of Replicate's HTTP API (docs: replicate.com/docs/reference/http)."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from lmtp_replicate.gateway.catalog import Catalog, Model, show_account
from lmtp_replicate.gateway.create_request import CreateRequest
from lmtp_replicate.gateway.dispatcher import QueueFullError
from lmtp_replicate.gateway.faults import Faults
from lmtp_replicate.gateway.prediction import Prediction, Status
from lmtp_replicate.gateway.prediction_store import PredictionStore
from lmtp_replicate.gateway.problems import (
    Handler,
    ProblemError,
    invalid_input,
    not_found,
    problems,
    throttled,
    unauthenticated,
    unknown_version,
)
from lmtp_replicate.gateway.streams import serve_stream

LARGEST_BODY = 64 << 20
"""Bytes of a request's body; Replicate's own limit is not documented."""
_STREAMS = "/v1/streams/"
_QUEUE_PATIENCE = 5
"""Seconds that a client is told to stay away when the queue is full."""


class Server:
    """Answers requests from the catalog and the store; `application` is what aiohttp serves."""

    def __init__(
        self, catalog: Catalog, store: PredictionStore, *, token: str, faults: Faults
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._token = token.encode()
        self._faults = faults
        self.application = web.Application(
            middlewares=[problems, self._authenticate], client_max_size=LARGEST_BODY
        )
        self.application.add_routes(self._routes())

    def _routes(self) -> list[web.RouteDef]:
        model, deployment = "/v1/models/{owner}/{name}", "/v1/deployments/{owner}/{name}"
        prediction = "/v1/predictions/{id}"
        return [
            web.get("/v1/account", self._account),
            web.get("/v1/models", self._models),
            web.get(model, self._model),
            web.get(f"{model}/versions", self._versions),
            web.get(f"{model}/versions/{{version}}", self._version),
            web.post(f"{model}/predictions", self._create_official),
            web.get("/v1/deployments", self._deployments),
            web.get(deployment, self._deployment),
            web.post(f"{deployment}/predictions", self._create_on_deployment),
            web.get("/v1/predictions", self._list),
            web.post("/v1/predictions", self._create),
            web.get(prediction, self._get),
            web.post(f"{prediction}/cancel", self._cancel),
            web.get(_STREAMS + "{key}", self._stream, allow_head=False),
        ]

    @web.middleware
    async def _authenticate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        # A stream's URL is its own permission: JavaScript clients send no token to it.
        if not request.path.startswith(_STREAMS):
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.strip().encode("utf-8", "surrogateescape")
            known = hmac.compare_digest(given, self._token)
            if scheme.lower() not in ("bearer", "token") or not known:
                raise unauthenticated()
        return await handler(request)

    async def _account(self, _: web.Request) -> web.Response:
        return web.json_response(show_account(self._catalog.owner))

    async def _models(self, _: web.Request) -> web.Response:
        return _only_page([model.show() for model in self._catalog])

    async def _model(self, request: web.Request) -> web.Response:
        return web.json_response(self._named(request).show())

    async def _versions(self, request: web.Request) -> web.Response:
        return _only_page([self._named(request).show_version()])

    async def _version(self, request: web.Request) -> web.Response:
        model = self._named(request)
        if request.match_info["version"] != model.work.version:
            raise not_found()
        return web.json_response(model.show_version())

    async def _deployments(self, _: web.Request) -> web.Response:
        return _only_page([model.show_deployment() for model in self._catalog])

    async def _deployment(self, request: web.Request) -> web.Response:
        return web.json_response(self._named(request).show_deployment())

    async def _create(self, request: web.Request) -> web.Response:
        asked = await CreateRequest.read(request, takes_version=True)
        model = self._catalog.find_version(asked.version or "")
        if model is None:
            raise unknown_version()
        return await self._start(request, asked, model)

    async def _create_on_deployment(self, request: web.Request) -> web.Response:
        model = self._named(request)
        asked = await CreateRequest.read(request, takes_version=False)
        return await self._start(request, asked, model, deployment=model.work.name)

    async def _create_official(self, _: web.Request) -> web.Response:
        """For official models only, on Replicate as here; and none of ours is official."""
        raise not_found()

    async def _start(
        self,
        request: web.Request,
        asked: CreateRequest,
        model: Model,
        deployment: str | None = None,
    ) -> web.Response:
        await self._faults.before_create()
        invalid = model.schema.invalid_fields(asked.input)
        if invalid:
            raise invalid_input(invalid)
        prediction = Prediction(
            owner=model.owner,
            model=model.work.name,
            version=model.work.version,
            input=asked.input,
            deployment=deployment,
            deadline=asked.deadline,
        )
        try:
            model.dispatcher.submit(prediction)
        except QueueFullError as error:
            detail = f"Request was throttled: {error}. Try again in ~{_QUEUE_PATIENCE}s."
            raise throttled(detail, _QUEUE_PATIENCE) from error
        self._store.add(prediction)
        model.run_count += 1
        return await self._created(request, prediction, asked.wait)

    async def _created(
        self, request: web.Request, prediction: Prediction, wait: int | None
    ) -> web.Response:
        shown = prediction.show(_base(request))
        headers = {"Location": shown["urls"]["get"], **self._faults.limit_headers()}
        if wait is not None:
            headers["Preference-Applied"] = f"wait={wait}"
            try:
                async with asyncio.timeout(wait):
                    await prediction.ended.wait()
                shown = prediction.show(_base(request))
            except TimeoutError:
                # Clients take any status but "starting" for the end of the wait's success.
                shown = prediction.show(_base(request)) | {"status": str(Status.STARTING)}
        return web.json_response(shown, status=201, headers=headers)

    async def _list(self, request: web.Request) -> web.Response:
        after, before = _moment(request, "created_after"), _moment(request, "created_before")

        def wanted(prediction: Prediction) -> bool:
            made = prediction.created_at
            return (after is None or made >= after) and (before is None or made < before)

        try:
            page = self._store.page(request.query.get("cursor"), wanted)
        except KeyError as error:
            raise ProblemError(400, "cursor: no such page") from error

        def link(cursor: str | None) -> str | None:
            if cursor is None:
                return None
            query = dict(request.query) | {"cursor": cursor}
            return str(request.url.with_query(query))

        base = _base(request)
        results = [prediction.show(base) for prediction in page.predictions]
        return web.json_response(
            {"previous": link(page.previous), "next": link(page.next), "results": results}
        )

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._prediction(request).show(_base(request)))

    async def _cancel(self, request: web.Request) -> web.Response:
        prediction = self._prediction(request)
        model = self._catalog.find({"owner": prediction.owner, "name": prediction.model})
        assert model is not None
        model.dispatcher.cancel(prediction)
        return web.json_response(prediction.show(_base(request)))

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        prediction = self._store.by_stream(request.match_info["key"])
        if prediction is None:
            raise not_found()
        return await serve_stream(request, prediction, self._faults)

    def _named(self, request: web.Request) -> Model:
        model = self._catalog.find(request.match_info)
        if model is None:
            raise not_found()
        return model

    def _prediction(self, request: web.Request) -> Prediction:
        prediction = self._store.get(request.match_info["id"])
        if prediction is None:
            raise not_found()
        return prediction


def _base(request: web.Request) -> str:
    """Of the URLs in answers: the host under which this client reaches us."""
    return f"{request.scheme}://{request.host}/v1"


def _only_page(results: Sequence[Any]) -> web.Response:
    return web.json_response({"previous": None, "next": None, "results": results})


def _moment(request: web.Request, name: str) -> datetime | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ProblemError(400, f"{name}: {text[:40]!r} is not an RFC 3339 time") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
