"""A detector, or a resampler, behind HTTP: MLflow's formats, with bounds on all that a request can cost.

=============  =======================================================================================
/invocations   POST rows, get scores; see `payload` for the formats
/ping /health  200 once the model answers
/ready         200 once the model has also scored its golden rows, as a request; 503 while stopping
/version       the version of MLflow
/metrics       counts for Prometheus
=============  =======================================================================================

Requests share the detector, which nothing changes, a thread for small ones (see `lane`) and a bounded pool for others.
Counts and admission are kept by the event loop alone. Every body that is being read or waits is counted against one
budget of bytes, so that many slow senders cost no more memory than a few fast ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.version import VERSION

from ..detection.detector import Detector
from ..errors import AnomalyVaeError, CalibrationError, ConfigError, SchemaError
from ..models.tried import WORTH_TRYING
from ..options import ImageConfig, ServeConfig
from . import journal, payload, weights
from .flavor import CALLER_FAULTS, arguments, columns_of
from .lane import SMALL_BODY, Answer, Asked, Lane, answer_of
from .payload import RefusedError
from .pulse import Pulse, Window
from .tally import Tally
from .weights import Served

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODIES = 8
"""Bodies of the largest size that may be in memory at once; smaller ones as many as fit into the same bytes."""
MOST_REFINED_ROWS, MOST_REFINED_IMAGES = 1000, 20
"""Rows of a request that asks for a bound on the error of log p(x): one may take thousands of samples."""
LINGER_SECONDS = 2.0
RETRY_SECONDS = "1"
JSON_TYPE, TEXT_TYPE = "application/json", "text/plain; version=0.0.4; charset=utf-8"
PROBES = ("/ping", "/health", "/ready", "/version", "/metrics")
ERROR_CODES: Mapping[int, str] = {
    400: "BAD_REQUEST",
    404: "ENDPOINT_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass
class _Exchange:
    """One request and what becomes of it."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    id: str
    started: float
    status: int = 0
    seen: int = 0
    read: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


class Service:
    """An ASGI application that answers with one detector or resampler.

    Args:
        load: Gives the model and the URI to name it by; called once, in a thread, before the first request.
        config: Bounds.
        tally: Where to count.
    """

    def __init__(self, load: Callable[[], tuple[Served, str]], config: ServeConfig, tally: Tally) -> None:
        self.config, self.tally = config, tally
        self._load = load
        self._model: Served | None = None
        self._facts: dict[str, str] = {}
        self._ready = False
        self._lane: Lane | None = None
        self._pulse: Pulse | None = None
        self._window: Window | None = None
        places = config.concurrency or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(places, thread_name_prefix="score")
        self._most_waiting = places + config.queue
        self._waiting = 0
        self._free_bytes = BODIES * config.max_bytes

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request, or start and stop."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, receive, send)
        else:
            raise ValueError(f"a connection must be HTTP, got {scope['type']!r}.")

    async def start(self) -> None:
        """Load the model and have it answer a request with its golden rows.

        Raises:
            AnomalyVaeError: It cannot be loaded, or does not answer.
        """
        await asyncio.get_running_loop().run_in_executor(self._pool, self._prepare)
        self._ready = True
        if isinstance(self._model, Detector):
            self._pulse = Pulse(self._model)
            if (profile := self._model.profile) is not None:
                self._window = Window(profile)
                self.tally.compared(0, np.zeros(len(profile.columns)))
        self.tally.add("ready")
        journal.write("info", "ready", **self._facts, pid=os.getpid())

    def stop(self) -> None:
        """Say that no further requests are wanted; what is being answered is."""
        if self._ready:
            self._ready = False
            self.tally.add("ready", -1)
        if self._lane is not None:
            self._lane.stop()
        self._pool.shutdown(wait=False)

    def _prepare(self) -> None:
        model, uri = self._load()
        self._facts = {"digest": model.digest}
        if uri.startswith(("models:", "runs:")):  # a path would tell about this machine
            self._facts["uri"] = uri
        self._model, self._lane = model, Lane(model if isinstance(model, Detector) else model.detector, self._pool)
        example = json.dumps({"dataframe_records": weights.example_records(model)}).encode()
        with contextlib.suppress(CalibrationError):  # such a model answers, if asked for an alpha that it can promise
            for _ in range(WORTH_TRYING):
                self._score(example, payload.JSON)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            event = (await receive())["type"]
            if event == "lifespan.shutdown":
                self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return
            try:
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            except Exception as error:
                reason = str(error).splitlines()[0] if isinstance(error, AnomalyVaeError) else None
                journal.write("error", "the model could not be loaded", reason=reason, **journal.place_of(error))
                await send({"type": "lifespan.startup.failed", "message": "the model could not be loaded"})
                return

    async def _respond(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[\w.:-]{1,128}", given, re.ASCII) else uuid.uuid4().hex
        exchange = _Exchange(scope["method"], scope["path"], headers, request_id, time.perf_counter())
        try:
            if exchange.path == "/invocations":
                await self._invocations(exchange, receive, send)
            else:
                await self._probe(exchange, receive, send)
        except (ConnectionError, OSError):
            exchange.facts["reason"] = "disconnected"
        finally:
            self._log(exchange)

    async def _probe(self, exchange: _Exchange, receive: Receive, send: Send) -> None:
        exchange.read = True  # whatever body a probe has is not waited for
        answers: dict[str, Callable[[], tuple[int, str, str]]] = {
            "/ping": lambda: (200 if self._model else 503, "\n", JSON_TYPE),
            "/health": lambda: (200 if self._model else 503, "\n", JSON_TYPE),
            "/ready": lambda: (200 if self._ready else 503, "\n", JSON_TYPE),
            "/version": lambda: (200, VERSION, JSON_TYPE),
            "/metrics": self._metrics,
        }
        if exchange.path not in answers:
            refused = RefusedError(
                f"the path must be /invocations or one of {', '.join(PROBES)}. Check it.", status=404
            )
            await self._refuse(exchange, refused, receive, send)
        elif exchange.method not in ("GET", "HEAD"):
            refused = RefusedError("the method must be GET here, got another. Change it.", status=405)
            await self._refuse(exchange, refused, receive, send, allow="GET, HEAD")
        else:
            status, text, kind = answers[exchange.path]()
            await self._send(exchange, send, status, text.encode(), kind)

    async def _invocations(self, exchange: _Exchange, receive: Receive, send: Send) -> None:
        self.tally.add("in_flight")
        held: list[int] = []
        try:
            body = await self._body(exchange, receive, held)
            answer = await self._scored(body, exchange)
            await self._send(exchange, send, 200, answer, JSON_TYPE)
        except RefusedError as refused:
            self.tally.add(f"rejected_total/{refused.reason}")
            exchange.facts["reason"] = refused.reason
            if refused.reason == "schema":
                self.tally.add("schema_errors_total")
            allow = "POST" if refused.status == 405 else None
            await self._refuse(exchange, refused, receive, send, allow=allow)
        finally:
            self._free_bytes += sum(held)
            self.tally.add("in_flight", -1)
            if exchange.status:
                self.tally.answered(exchange.status, time.perf_counter() - exchange.started)

    async def _body(self, exchange: _Exchange, receive: Receive, held: list[int]) -> bytes:
        """Return the body; `held` says at all times how much of the budget it has taken."""
        if exchange.method != "POST":
            exchange.read = True
            raise RefusedError("the method must be POST here, got another. Change it.", status=405)
        if not self._ready:
            raise _busy("the service must be ready, got a request before or after that. Try again.")
        exchange.facts["media"] = payload.media_type(
            _text(exchange.headers.get(b"content-type")), _text(exchange.headers.get(b"content-encoding"))
        )
        most = self.config.max_bytes
        if int(exchange.headers.get(b"content-length", b"0")) > most:
            raise _too_long(most)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.config.read_timeout_s):
                while not exchange.read:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    part = message.get("body", b"")
                    parts.append(part)
                    held.append(len(part))
                    self._free_bytes -= len(part)
                    exchange.read = not message.get("more_body", False)
                    if sum(held) > most:
                        raise _too_long(most)
                    if self._free_bytes < 0:
                        raise _busy("the service must have room for the body, got too many others. Try again.")
        except TimeoutError:
            raise RefusedError(
                f"a request must arrive within {self.config.read_timeout_s:g} s, got part of it. Send it faster.",
                status=408,
                reason="slow_client",
            ) from None
        exchange.seen = sum(held)
        self.tally.add("received_bytes_total", exchange.seen)
        return b"".join(parts)

    async def _scored(self, body: bytes, exchange: _Exchange) -> bytes:
        if self._waiting >= self._most_waiting:
            raise _busy(f"at most {self._most_waiting} requests must wait at once, got one more. Try again.")
        loop = asyncio.get_running_loop()
        media = exchange.facts["media"]
        if len(body) <= SMALL_BODY and self._lane is not None:
            future = self._lane.submit(lambda: self._read(body, media, small=True))
        else:
            future = self._pool.submit(self._score, body, media)
        self._waiting += 1
        future.add_done_callback(lambda _: _call(loop, self._leave))  # a place is free when its thread is
        try:
            answer, rows, flagged, p_values = await asyncio.wait_for(asyncio.wrap_future(future), self.config.timeout_s)
        except TimeoutError:
            raise self._late(future) from None
        except RefusedError:
            raise
        except RecursionError:
            raise RefusedError("cells must be single values, got brackets beyond all bounds. Flatten them.") from None
        except CALLER_FAULTS as error:
            reason = "schema" if isinstance(error, SchemaError) else "parameter"
            raise RefusedError(str(error), reason=reason) from None
        except Exception as error:
            journal.write("error", "scoring failed", id=exchange.id, **journal.place_of(error))
            raise RefusedError(
                "The model failed on this request. The server's log says where.", status=500, reason="internal"
            ) from None
        exchange.facts |= {"rows": rows, "flagged": flagged}
        self.tally.add("rows_total", rows)
        self.tally.add("flagged_rows_total", flagged)
        if self._pulse is not None and self._pulse.add(p_values):
            self._feel(self._pulse)
        if self._window is not None and (claimed := self._window.claim()):
            with contextlib.suppress(RuntimeError):  # the pool is closed: nobody will ask any more
                counted = self._pool.submit(self._window.count, claimed)  # nobody waits for it
                counted.add_done_callback(lambda done: _call(loop, lambda: self.tally.compared(*done.result())))
        return answer

    def _feel(self, pulse: Pulse) -> None:
        log_capital, alarms = pulse.read()
        self.tally.set("drift_log_capital", log_capital)
        self.tally.set("drift_alarms_total", alarms)

    def _metrics(self) -> tuple[int, str, str]:
        if self._pulse is not None:
            self._feel(self._pulse)
        return 200, self.tally.text(self._facts), TEXT_TYPE

    def _score(self, body: bytes, media: str) -> Answer:
        """Return the answer to a request; runs in a thread."""
        return self._read(body, media).alone()

    def _read(self, body: bytes, media: str, *, small: bool = False) -> Asked:
        """Return what a request asks for; runs in a thread."""
        detector = self._model
        assert detector is not None
        if not isinstance(detector, Detector):
            return weights.asked(detector, body, media, max_rows=self.config.max_rows)
        frame, params = payload.read(body, media, detector.schema, max_rows=self.config.max_rows)
        wanted = arguments(params)
        most = MOST_REFINED_IMAGES if isinstance(detector.config, ImageConfig) else MOST_REFINED_ROWS
        if wanted["mc_se"] is not None and len(frame) > most:
            raise ConfigError(f"mc_se must be asked for at most {most:,} rows, got {len(frame):,}. Send fewer.")
        alpha, k = wanted["alpha"], wanted["k"]
        watched = k in (None, detector.config.k)
        if wanted["explain"] or wanted["fdr"] is not None or wanted["mc_se"] is not None:
            return Asked(lambda: answer_of(columns_of(detector.score_frame(frame, **wanted)), watched=watched))
        x = detector.encode(frame, allow_missing=wanted["allow_missing"])
        if self._window is not None:
            self._window.take(x.numpy())
        alone = lambda: answer_of(detector.verdicts(x, alpha=alpha, k=k).lists(), watched=watched)  # noqa: E731
        return Asked(alone, x, alpha, k) if small else Asked(alone)

    def _late(self, future: Future[Any]) -> RefusedError:
        if future.cancelled():  # it never began
            return _busy("the service must have a place within its time limit, got none. Try again.")
        return RefusedError(
            f"scoring must take at most {self.config.timeout_s:g} s, got more. Send fewer rows, or a smaller k.",
            status=504,
            reason="timeout",
        )

    def _leave(self) -> None:
        self._waiting -= 1

    async def _refuse(
        self, exchange: _Exchange, refused: RefusedError, receive: Receive, send: Send, *, allow: str | None = None
    ) -> None:
        said = {"error_code": ERROR_CODES[refused.status], "message": str(refused), "request_id": exchange.id}
        extra = {"retry-after": RETRY_SECONDS} if refused.status == 503 else {}
        if allow:
            extra["allow"] = allow
        whole = exchange.read
        if not whole:
            extra["connection"] = "close"
        body = json.dumps(said).encode()
        await self._send(exchange, send, refused.status, body, JSON_TYPE, extra=extra, more=not whole)
        if not whole:
            # A connection that is closed on a client that is still sending loses the answer.
            await _drain(receive, 0.0 if refused.status == 408 else LINGER_SECONDS)
            await send({"type": "http.response.body", "body": b""})

    async def _send(
        self,
        exchange: _Exchange,
        send: Send,
        status: int,
        body: bytes,
        kind: str,
        *,
        extra: Mapping[str, str] | None = None,
        more: bool = False,
    ) -> None:
        exchange.status = status
        fixed = {"content-type": kind, "content-length": str(len(body)), "x-request-id": exchange.id}
        named = {**fixed, "x-content-type-options": "nosniff", **(extra or {})}
        headers = [(key.encode("latin-1"), text.encode("latin-1")) for key, text in named.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})

    def _log(self, exchange: _Exchange) -> None:
        if exchange.path in PROBES and exchange.status < 400:
            return
        known = exchange.path if exchange.path in ("/invocations", *PROBES) else None
        seconds = round(time.perf_counter() - exchange.started, 6)
        level = "info" if exchange.status < 400 else "warning"
        facts = {"method": exchange.method, "path": known, "status": exchange.status, "seconds": seconds}
        journal.write(level, "request", id=exchange.id, **facts, bytes=exchange.seen or None, **exchange.facts)


async def _drain(receive: Receive, seconds: float) -> None:
    """Read on and throw away, for a while."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _call(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(action)


def _busy(message: str) -> RefusedError:
    return RefusedError(message, status=503, reason="busy")


def _too_long(most: int) -> RefusedError:
    return RefusedError(
        f"a body must be at most {most:,} bytes, got more. Send the rows in parts, or as Parquet.",
        status=413,
        reason="too_large",
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def registered(uri: str, tracking_uri: str) -> tuple[Served, str]:
    """Load a model in a worker; the alias in its URI has been resolved, so that all workers load the same."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    return weights.load(uri)


def make(uri: str, tracking_uri: str, config: ServeConfig, folder: str) -> Service:
    """Make the application of one worker process."""
    return Service(lambda: registered(uri, tracking_uri), config, Tally(Path(folder)))
