"""The HTTP server of `hfgen studio`: its page, and the endpoints that the page and other programs use."""

import asyncio
import base64
import contextlib
import io
import ipaddress
import json
import signal
import socket
import sys
import threading
import time
import traceback
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import Tensor

from hfgen.config.commands import EditOptions, SampleConfig, StudioConfig
from hfgen.config.fields import fields_of
from hfgen.config.recipes import RECIPES, read_recipes
from hfgen.config.training import read_fields
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
from hfgen.utils.files import local_path
from hfgen.utils.markdown import TEMPLATES, render

LARGEST_BODY = 8 * 2**20  # bytes of a request
LOOPBACK = ("127.0.0.1", "::1")
DECODED_AT_ONCE = 4  # requests whose pictures are decoded
LISTENING_SECONDS = 0.5  # between looks whether a client still waits
FORMATS = ("json", "png", "stream")
RETRY_SECONDS = "2"
CLIENT_LEFT = 499  # a status for nobody, as nginx has it
UNEXPECTED = "this failed in the studio; its terminal says why"
# The page loads nothing from elsewhere, and no other page may show it or ask it for anything.
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; "
        "form-action 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Studio:
    """The models, the thread that computes, the trainings, and the answers to requests."""

    def __init__(self, config: StudioConfig):
        train_dir = local_path(config.train_dir)
        self.config = config
        self.library = Library(config.runs, train_dir, device=config.device, dtype=config.dtype)
        self.worker = Worker(config.max_requests)
        self.trainings = Trainings(train_dir)
        self.begun: dict[str, Path] = {}  # the runs of the trainings that were started on the page, by name
        self.judges = requests.Judges()
        self.real = RealImages(config.device)
        self.slow = asyncio.Semaphore(1)  # for what takes long on the data, apart from the thread that computes
        self.decoding = asyncio.Semaphore(DECODED_AT_ONCE)

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
        handlers = {
            UserError: _say(400),
            BusyError: _say(503),
            ClosedError: _say(503),
            HTTPException: _say_http,
            Exception: _say_unexpected,
        }
        middleware = [Middleware(Guard, host=self.config.host)]
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    def close(self) -> dict[Path, bool]:
        """End the thread and the trainings; return of each run that was being trained whether its state is saved."""
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
        return JSONResponse(await run_in_threadpool(lambda: model.facts))

    # Drawing and editing.

    async def _load(self, name: Any) -> LoadedModel:
        if not isinstance(name, str) or not name:
            raise UserError("the request names no model")
        return await run_in_threadpool(self.library.load, name)

    async def _checked(self, function: Callable[[LoadedModel, Body], Any], model: LoadedModel, body: Body) -> Any:
        """Check a request and decode its pictures, of a few requests at once."""
        async with self.decoding:
            return await run_in_threadpool(function, model, body)

    async def _result(self, request: Request, job: Job) -> dict[str, Any]:
        """Compute a job, or give it up if nobody waits for it any more."""
        task = asyncio.ensure_future(self.worker.result(job))
        while not task.done():
            await asyncio.wait({task}, timeout=LISTENING_SECONDS)
            if not task.done() and await request.is_disconnected():
                task.cancel()
                raise HTTPException(CLIENT_LEFT, "nobody waits for this answer")
        return await task

    def _computing(self, function: Callable[[LoadedModel, Body], Answer]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint whose answer is images, in the wanted format."""

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            if (kind := body.get("format", "json")) not in FORMATS:
                raise UserError(f"format must be {', '.join(FORMATS)}, not {kind}")
            model = await self._load(body.get("model"))
            answer = await self._checked(function, model, body)
            if kind == "stream":
                states = self.worker.states(answer.job)
                first = await anext(states)  # so that a refusal has its status
                return StreamingResponse(_lines(first, states, answer), media_type="application/x-ndjson")
            since = time.monotonic()
            images = (await self._result(request, answer.job))["images"]
            seconds = round(time.monotonic() - since, 4)
            return await run_in_threadpool(_pictures, images, answer, kind, seconds)

        return endpoint

    def _answering(self, function: Callable[[LoadedModel, Body], Job]) -> Callable[[Request], Awaitable[Response]]:
        """Return an endpoint whose answer is numbers."""

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            model = await self._load(body.get("model"))
            job = await self._checked(function, model, body)
            return JSONResponse(await self._result(request, job))

        return endpoint

    def _judge(self, model: LoadedModel, body: Body) -> Job:
        return requests.judge(model, body, self.judges)

    async def picture(self, request: Request) -> Response:
        """Decode an uploaded picture for the canvas of a model."""
        body = await _body(request)
        model = await self._load(body.get("model"))
        return JSONResponse(_raw(await self._checked(requests.open_upload, model, body)))

    async def neighbours(self, request: Request) -> Response:
        """Draw an image, and find the training images nearest to it."""
        body = await _body(request)
        model = await self._load(body.get("model"))
        answer = await self._checked(requests.draw, model, body | {"num_images": 1})
        image = (await self._result(request, answer.job))["images"][0]
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
        listed = [
            {name: getattr(recipe, name) for name in names} | {"fields": read_fields(RECIPES / f"{recipe.name}.yaml")}
            for recipe in recipes
        ]
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
            known = {entry.name for entry in entries}
            begun = [name for name in self.begun if name not in known]  # which have no folder yet
            return [summary_of(name, RunFolder(self.begun[name]), self.trainings) for name in begun] + listed

        return JSONResponse({"runs": await run_in_threadpool(found), "train_dir": str(self.trainings.folder)})

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
        shown = f"{self.trainings.folder}/{name}"
        self.begun[shown] = run
        return JSONResponse({"run": shown})

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
        return self.begun.get(str(name)) or self.library.folder(str(name))


class Guard:
    """Refuses what other web pages ask for, and adds headers that keep the page to itself.

    Args:
        app: The application.
        host: The address that the server listens on.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app = app
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if refusal := self._refusal(Headers(scope=scope), scope["path"]):
            await refusal(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY)
            await send(message)

        with contextlib.suppress(asyncio.CancelledError):  # the server ends, and this answer with it
            await self.app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers, path: str) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = (urlsplit(f"//{host}").hostname or "").lower()
        # A name of another site may be made to mean this machine; an address may not.
        if name not in self.names and not _is_address(name):
            return JSONResponse({"error": f"this is not the server of {name}"}, status_code=400)
        is_other = origin is not None and urlsplit(origin).netloc != host
        if path != "/" and (is_other or headers.get("sec-fetch-site") == "cross-site"):
            return JSONResponse({"error": "requests from other web pages are not answered"}, status_code=403)
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def serve(config: StudioConfig) -> None:
    """Serve a studio until the process is asked to end, and print its address once it answers.

    Args:
        config: What to show, and where.

    Raises:
        UserError: if there is no such model, or the port is taken.
    """
    with contextlib.closing(_bound(config)) as listener:
        studio = Studio(config)
        # The lifespan protocol is for applications that begin and end things; here `Studio` does.
        options = {"log_level": "warning", "access_log": False, "lifespan": "off", "timeout_graceful_shutdown": 2}
        server = uvicorn.Server(uvicorn.Config(studio.app(), **options))

        async def run() -> None:
            serving = asyncio.ensure_future(server.serve([listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                _announce(config, listener)
            await serving

        try:
            with _ended_by_signals():
                asyncio.run(run())
        finally:
            for folder, is_saved in studio.close().items():
                if is_saved:
                    print(f"The training in {folder} is saved; it can go on from the page or by hfgen train")
                else:
                    print(f"hfgen: the training in {folder} has ended without saving its state", file=sys.stderr)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let signals that ask the process to end raise KeyboardInterrupt, as Ctrl-C does."""

    def end(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # only there signals can be handled
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if is_main and hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    heard = [number for number in numbers if before[number] is not signal.SIG_IGN]  # nohup ignores SIGHUP
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


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


def _announce(config: StudioConfig, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    name = "localhost" if host in LOOPBACK else f"[{host}]" if ":" in host else host
    address = f"http://{name}:{port}"
    print(f"The studio is open at {address}; Ctrl-C ends it", flush=True)
    if host not in LOOPBACK:
        print(
            f"hfgen: warning: everyone who reaches {host} can draw with these models and start trainings here; there "
            "is no password",
            file=sys.stderr,
        )
    if config.open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()  # it may block


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
    except (UserError, ClosedError) as error:
        yield json.dumps({"error": str(error)}) + "\n"
    except Exception as error:
        traceback.print_exception(error)
        yield json.dumps({"error": UNEXPECTED}) + "\n"
    finally:
        await states.aclose()


def _pictures(images: Tensor, answer: Answer, kind: str, seconds: float) -> Response:
    """Return images, uint8 (B, C, H, W), as one picture or as JSON."""
    if kind == "png":
        return Response(_png(sample_grid(images, answer.labels, answer.label_names)), media_type="image/png")
    names = None if answer.labels is None else [answer.label_names[label] for label in answer.labels]
    pictures = [base64.b64encode(_png(to_pil(image))).decode() for image in images]
    return JSONResponse({"images": pictures, "class_labels": names, "seconds": seconds})


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
    """Answer without the details of an error that nobody foresaw; the server prints them."""
    return JSONResponse({"error": UNEXPECTED}, status_code=500)
