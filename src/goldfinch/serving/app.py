"""The application: what a server answers to, route by route."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from goldfinch import __version__
from goldfinch.devices import dtype_name
from goldfinch.serving.answers import add_answer_routes
from goldfinch.serving.contexts import add_context_routes
from goldfinch.serving.errors import ERROR_RESPONSES, ApiError, answer_errors
from goldfinch.serving.metrics import Metrics, add_metrics_route
from goldfinch.serving.middleware import HttpLimits, add_middleware
from goldfinch.serving.page import mount_page
from goldfinch.serving.responses import add_response_routes
from goldfinch.serving.schemas import DetokenizeRequest, TokenizeRequest
from goldfinch.serving.server import Server


def create_app(server: Server, limits: HttpLimits | None = None) -> FastAPI:
    """The application around an engine that runs, for clients: its API, its page, and what it takes from whom."""
    app = create_api(server)
    engine = server.engine
    metrics = Metrics(lambda: {"": engine.status()}, server.contexts)
    add_middleware(app, limits or HttpLimits(), lambda owner: engine.statistics.tokens_by_owner[owner], metrics)
    add_metrics_route(app, metrics)
    mount_page(app)
    return app


def create_api(server: Server) -> FastAPI:
    """The API alone, for those who have been let in: `scope["state"]["owner"]` says whose a request is."""
    # Without FastAPI's pages about the API, which load scripts from elsewhere.
    app = FastAPI(title="GoldFinch", version=__version__, docs_url=None, redoc_url=None, responses=ERROR_RESPONSES)
    answer_errors(app)
    _add_model_routes(app, server)
    add_answer_routes(app, server)
    add_response_routes(app, server)
    add_context_routes(app, server)
    return app


def _add_model_routes(app: FastAPI, server: Server) -> None:
    """What the server is, and its tokenizer."""
    engine = server.engine
    model = _model(server)

    @app.get("/health")
    async def health() -> JSONResponse:
        status = "draining" if engine.is_stopping else "ok"
        body = {"status": status, "running": engine.num_running, "waiting": engine.num_waiting}
        return JSONResponse(body, 503 if engine.is_stopping else 200)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def model_info(name: str) -> dict[str, Any]:
        if name != model["id"]:
            raise ApiError(404, f"model {name!r} is not served here, only {model['id']!r}")
        return model

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        ids = (await server.encode(body.text)).tolist() if body.text else []
        return {"tokens": ids, "count": len(ids)}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        return {"text": await asyncio.to_thread(engine.lm.decode, body.tokens)}


def _model(server: Server) -> dict[str, Any]:
    lm = server.engine.lm
    return {
        "id": server.model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "goldfinch",
        "goldfinch": {
            "num_parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
            "dtype": dtype_name(lm.model.dtype),
            "num_layers": lm.config.num_layers,
            "width": lm.config.width,
            "bytes_per_token": server.engine.bytes_per_token,
            "state_bytes": server.engine.costs.state_bytes,
            "transformer_bytes_per_token": server.engine.costs.transformer_bytes_per_token,
        },
    }
