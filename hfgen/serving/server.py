"""The HTTP server of `hfgen studio`: its page, and the endpoints that the page and other programs use."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import sys
import time
import traceback
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from torch import Tensor

from hfgen.config.commands import EditOptions, SampleConfig, StudioConfig
from hfgen.config.fields import fields_of
from hfgen.config.recipes import read_recipes
from hfgen.families import families
from hfgen.figures.grids import sample_grid, to_pil
from hfgen.runs.folder import RunFolder
from hfgen.serving import requests
from hfgen.serving.library import Library, LoadedModel
from hfgen.serving.quality import RealImages, evaluation_of
from hfgen.serving.requests import Answer, Body
from hfgen.serving.trainings import Trainings, form_of
from hfgen.serving.watching import picture_of, record_of, summary_of
from hfgen.serving.worker import BusyError, ClosedError, Job, Worker
from hfgen.utils.errors import UserError
from hfgen.utils.markdown import TEMPLATES, render

LARGEST_BODY = 8 * 2**20  # bytes of a request
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
FORMATS = ("json", "png", "stream")
RETRY_SECONDS = "2"
# The page loads nothing from elsewhere, and no other page may show it or ask it for anything.
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
        "form-action 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Studio:
    """The models, the thread that computes, the trainings, and the answers to requests."""

    def __init__(self, config: StudioConfig):
        train_dir = Path(config.train_dir)
        self.config = config
        self.library = Library(config.runs, train_dir, device=config.device, dtype=config.dtype)
        self.worker = Worker(config.max_waiting)
        self.trainings = Trainings(train_dir)
        self.judges = requests.Judges()
        self.real = RealImages()
        self.slow = asyncio.Semaphore(1)  # for what takes long on the data, apart from the thread of the models

    def app(self) -> Starlette:
        """Return the web application."""
        routes = [
            Route("/", self.page),
            Route("/api", self.describe),
            Route("/api/health", self.health),
            Route("/api/models", self.models),
            Route("/api/model", self.model),
            *[
                Route(f"/api/{name}", self._computing(function), methods=["POST"])
                for name, function in {
                    "draw": requests.draw,
                    "decode": requests.decode,
                    "reconstruct": requests.reconstruct,
                    "edit": requests.edit,
                    "translate": requests.translate,
                }.items()
            ],
            *[
                Route(f"/api/{name}", self._answering(function), methods=["POST"])
                for name, function in {
                    "latents": requests.draw_latents,
                    "encode": requests.encode,
                    "judge": self._judge,
                }.items()
            ],
            Route("/api/picture", self.picture, methods=["POST"]),
            Route("/api/neighbours", self.neighbours, methods=["POST"]),
            Route("/api/encodings", self.encodings),
            Route("/api/evaluation", self.evaluation),
            Route("/api/recipes", self.recipes),
            Route("/api/form", self.form),
            Route("/api/runs", self.runs),
            Route("/api/run", self.run),
            Route("/api/file", self.file),
            Route("/api/train", self.train, methods=["POST"]),
            Route("/api/stop", self.stop, methods=["POST"]),
            Route("/api/resume", self.resume, methods=["POST"]),
            Mount("/static", StaticFiles(directory=TEMPLATES / "studio")),
            Route("/widgets.js", lambda request: FileResponse(TEMPLATES / "widgets.js")),
            Route("/charts.js", lambda request: FileResponse(TEMPLATES / "charts.js")),
        ]
        own_host = [] if self.config.host in (*LOOPBACK, "0.0.0.0", "::") else [self.config.host]
        hosts = ["*"] if self.config.host in ("0.0.0.0", "::") else [*LOOPBACK, *own_host]
        middleware = [
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
            Middleware(BaseHTTPMiddleware, dispatch=_guard),
        ]
        handlers = {
            UserError: _say(400),
            BusyError: _say(503),
            ClosedError: _say(503),
            HTTPException: _say_http,
            Exception: _say_unexpected,
        }
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    def close(self) -> list[Path]:
        """End the thread and the trainings; return the runs that were being trained, whose state is saved."""
        self.worker.close()
        return self.trainings.close()

    # The page and what it asks for first.

    async def page(self, request: Request) -> Response:
        """Return the page."""
        page = render("studio/page.html", mark="", terms=_terms())
        return HTMLResponse(page)

    async def describe(self, request: Request) -> Response:
        """List the endpoints that take a model, with the help of their fields."""
        draw = {name: fields_of(SampleConfig)[name].help for name in sorted(requests.DRAW_FIELDS)}
        edit = {name: fields_of(EditOptions)[name].help for name in sorted(requests.EDIT_FIELDS)}
        return JSONResponse({"version": version("hfgen"), "formats": FORMATS, "draw": draw, "edit": edit})

    async def health(self, request: Request) -> Response:
        """Tell that the server answers, its version and its load."""
        loaded = list(self.library.loaded)
        return JSONResponse({"status": "ok", "version": version("hfgen"), "loaded": loaded} | self.worker.load())

    async def models(self, request: Request) -> Response:
        """List the models."""
        return JSONResponse({"models": await run_in_threadpool(self.library.models)})

    async def model(self, request: Request) -> Response:
        """Load a model, and return what is known of it."""
        model = await self._load(request.query_params.get("name"))
        return JSONResponse(await self.worker.call(lambda: model.facts))

    # Drawing and editing.

    async def _load(self, name: Any) -> LoadedModel:
        if not isinstance(name, str) or not name:
            raise UserError("the request names no model")
        held = await run_in_threadpool(self.library.held, name)
        return held or await self.worker.call(self.library.load, name)

    def _computing(self, function: Callable[[LoadedModel, Body], Answer]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint whose answer is images, in the wanted format."""

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            if (kind := body.get("format", "json")) not in FORMATS:
                raise UserError(f"format must be {', '.join(FORMATS)}, not {kind}")
            model = await self._load(body.get("model"))
            answer = await run_in_threadpool(function, model, body)
            if kind == "stream":
                states = self.worker.states(answer.job)
                first = await anext(states)  # so that a refusal has its status
                return StreamingResponse(_lines(first, states, answer), media_type="application/x-ndjson")
            since = time.monotonic()
            images = (await self.worker.result(answer.job))["images"]
            if kind == "png":
                return Response(_png(sample_grid(images, answer.labels, answer.label_names)), media_type="image/png")
            names = None if answer.labels is None else [answer.label_names[label] for label in answer.labels]
            pictures = [base64.b64encode(_png(to_pil(image))).decode() for image in images]
            seconds = round(time.monotonic() - since, 4)
            return JSONResponse({"images": pictures, "class_labels": names, "seconds": seconds})

        return endpoint

    def _answering(self, function: Callable[[LoadedModel, Body], Job]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint whose answer is numbers."""

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            model = await self._load(body.get("model"))
            job = await run_in_threadpool(function, model, body)
            return JSONResponse(await self.worker.result(job))

        return endpoint

    def _judge(self, model: LoadedModel, body: Body) -> Job:
        return requests.judge(model, body, self.judges)

    async def picture(self, request: Request) -> Response:
        """Decode an uploaded picture for the canvas of a model."""
        body = await _body(request)
        model = await self._load(body.get("model"))
        return JSONResponse(_raw(await run_in_threadpool(requests.open_upload, model, body)))

    async def neighbours(self, request: Request) -> Response:
        """Draw an image, and find the training images nearest to it."""
        body = await _body(request)
        model = await self._load(body.get("model"))
        answer = await run_in_threadpool(requests.draw, model, body | {"num_images": 1})
        image = (await self.worker.result(answer.job))["images"][0]
        async with self.slow:
            found = await run_in_threadpool(self.real.neighbours, model, image)
        return JSONResponse(_raw(found) | {"sample": _encoded(image[None])})

    async def encodings(self, request: Request) -> Response:
        """Encode test images with a VAE."""
        model = await self._load(request.query_params.get("model"))
        async with self.slow:
            return JSONResponse(await run_in_threadpool(self.real.encodings, model))

    async def evaluation(self, request: Request) -> Response:
        """Return the evaluation of a model."""
        folder = self.library.folder(request.query_params.get("model", ""))
        return JSONResponse(await run_in_threadpool(evaluation_of, folder))

    # Trainings.

    async def recipes(self, request: Request) -> Response:
        """List the recipes, those to start with first."""
        recipes = sorted(read_recipes().values(), key=lambda recipe: (not recipe.is_first, not recipe.is_trained))
        names = ("name", "about", "family", "dataset", "summary", "is_first")
        listed = [{name: getattr(recipe, name) for name in names} for recipe in recipes]
        return JSONResponse({"recipes": listed, "families": list(families())})

    async def form(self, request: Request) -> Response:
        """Return the fields of a family."""
        family = families().get(request.query_params.get("family", ""))
        if family is None:
            raise UserError(f"family must be {', '.join(families())}")
        return JSONResponse({"fields": form_of(family)})

    async def runs(self, request: Request) -> Response:
        """List the runs."""

        def found() -> list[dict[str, Any]]:
            entries = [entry for entry in self.library.entries().values() if entry.is_run]
            listed = [summary_of(entry.name, RunFolder(entry.folder), self.trainings) for entry in entries]
            known = {entry.folder for entry in entries}
            begun = [run for run in self.trainings.started() if run not in known]  # which have no folder yet
            return [summary_of(str(run), RunFolder(run), self.trainings) for run in begun] + listed

        return JSONResponse({"runs": await run_in_threadpool(found), "train_dir": self.config.train_dir})

    async def run(self, request: Request) -> Response:
        """Return the record of a run."""
        name = request.query_params.get("name", "")
        run = RunFolder(self._run(name))
        return JSONResponse(await run_in_threadpool(record_of, name, run, self.trainings))

    async def file(self, request: Request) -> Response:
        """Return a picture from the folder of a run or model."""
        folder = self._run(request.query_params.get("run", ""))
        return FileResponse(picture_of(folder, request.query_params.get("file", "")))

    async def train(self, request: Request) -> Response:
        """Start a training."""
        body = await _body(request)
        fields = body.get("fields", {})
        if not isinstance(fields, dict):
            raise UserError("fields must be an object of configuration fields and values")
        family, name = body.get("family"), body.get("name")
        run = await run_in_threadpool(self.trainings.start, family, name, fields)
        return JSONResponse({"run": str(run)})

    async def stop(self, request: Request) -> Response:
        """Ask a training to save its state and end."""
        body = await _body(request)
        await run_in_threadpool(self.trainings.stop, self._run(body.get("run")))
        return JSONResponse({})

    async def resume(self, request: Request) -> Response:
        """Go on with a training that was stopped."""
        body = await _body(request)
        run = self._run(body.get("run"))
        family = (await run_in_threadpool(summary_of, "", RunFolder(run), self.trainings))["family"]
        await run_in_threadpool(self.trainings.resume, run, family)
        return JSONResponse({})

    def _run(self, name: Any) -> Path:
        """Return the folder of a run by its name, also of one that has none yet."""
        begun = next((run for run in self.trainings.started() if str(run) == name), None)
        return begun or self.library.folder(str(name))


def serve(config: StudioConfig, ready: Callable[[str], None] | None = None) -> None:
    """Serve a studio until the process is asked to end.

    Args:
        config: What to show, and where.
        ready: Called with the address once requests are answered; by default it is printed, and opened in a browser
            if the configuration says so.

    Raises:
        UserError: if there is nothing to show, or the port is taken.
    """
    with contextlib.closing(_bound(config)) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{'localhost' if host in LOOPBACK else host}:{port}"
        studio = Studio(config)
        options = {"log_level": "warning", "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 2}
        server = uvicorn.Server(uvicorn.Config(studio.app(), **options))

        async def run() -> None:
            serving = asyncio.ensure_future(server.serve([listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            (ready or _announcer(config))(address)
            await serving

        try:
            asyncio.run(run())
        finally:
            for run_folder in studio.close():
                print(f"The training in {run_folder} is saved; it can go on from the page or by hfgen train")


def _bound(config: StudioConfig) -> socket.socket:
    """Return a socket on the host and port.

    Raises:
        UserError: if the port is taken or the host is not this machine's.
    """
    is_v6 = ":" in config.host
    listener = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"the studio cannot listen on {config.host}, port {config.port}: {error.strerror}; choose another --port, "
            "or 0 for any that is free"
        ) from error
    return listener


def _announcer(config: StudioConfig) -> Callable[[str], None]:
    def announce(address: str) -> None:
        print(f"The studio is open at {address}; Ctrl-C ends it", flush=True)
        if config.host not in LOOPBACK:
            print(
                f"hfgen: warning: everyone who reaches {config.host} can draw with these models and start trainings "
                "here; there is no password",
                file=sys.stderr,
            )
        if config.open_browser:
            webbrowser.open(address)

    return announce


async def _guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Refuse requests that other pages make, and add headers that keep the page to itself."""
    origin = request.headers.get("origin")
    if request.method == "POST" and origin and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"error": f"requests from pages of {origin} are not answered"}, status_code=403)
    response = await call_next(request)
    response.headers.update(SECURITY)
    return response


async def _body(request: Request) -> dict[str, Any]:
    """Read the JSON object of a request.

    Raises:
        HTTPException: if it is too large.
        UserError: if it is none.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_BODY:
            raise HTTPException(413, f"a request has at most {LARGEST_BODY:,} bytes")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError('the request must be a JSON object, such as {"model": "NAME"}') from error
    if not isinstance(body, dict):
        raise UserError('the request must be a JSON object, such as {"model": "NAME"}')
    return body


async def _lines(first: dict[str, Any], states: AsyncIterator[dict[str, Any]], answer: Answer) -> AsyncIterator[str]:
    """Yield the states of a job as lines of JSON, and at last `{"is_done": true}` or an error."""
    try:
        yield json.dumps(_raw(first) | {"class_labels": answer.labels}) + "\n"
        async for state in states:
            yield json.dumps(_raw(state)) + "\n"
        yield json.dumps({"is_done": True}) + "\n"
    except UserError as error:
        yield json.dumps({"error": str(error)}) + "\n"
    finally:
        await states.aclose()


def _raw(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state for JSON, with the pixels of its images as base64."""
    return {name: _encoded(value) if isinstance(value, Tensor) else value for name, value in state.items()}


def _encoded(images: Tensor) -> dict[str, Any]:
    """Return uint8 images (B, C, H, W) for JSON."""
    return {"shape": list(images.shape), "pixels": base64.b64encode(images.contiguous().numpy().tobytes()).decode()}


def _png(picture: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, "png")
    return written.getvalue()


def _terms() -> dict[str, str]:
    """Return the help of the options that the page shows, by their names."""
    return {name: field.help for each in (EditOptions, SampleConfig) for name, field in fields_of(each).items()}


def _say(status: int) -> Callable[[Request, Exception], Response]:
    def handler(request: Request, error: Exception) -> Response:
        headers = {"Retry-After": RETRY_SECONDS} if status == 503 else {}
        return JSONResponse({"error": str(error)}, status_code=status, headers=headers)

    return handler


def _say_http(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


def _say_unexpected(request: Request, error: Exception) -> Response:
    """Print an error that nobody foresaw, and answer without its details."""
    traceback.print_exception(error)
    return JSONResponse({"error": "this failed in the studio; its terminal says why"}, status_code=500)
