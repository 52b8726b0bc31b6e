"""Requests that nobody should send, made up by the thousand, and what a service made of them.

Every request is drawn from its own seed, so that a failure can be sent again. Allowed answers are 200, any 4xx, and the
documented 503 and 504; a connection may be closed without an answer only where what was sent is no whole request. Every
so often a good request is sent, whose answer must be the one it had before.
"""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
MEDIA = (JSON, CSV, PARQUET)
EVERY = 25
HANG_SECONDS = 120.0
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, -(2**63), 2**64, 10**400, 1.5, 1e308, -1e308, 5e-324, "", " ", "nan", "inf"),
    *("=1+1", "007", "\x00", "\ud800", "é" * 50, "x" * 5000, [], [1], {}, {"a": 1}, [[1]], "1e400", "0x10", "None"),
)
TOKENS = (
    b"NaN",
    b"-NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"01",
    b"+1",
    b".5",
    b"0x1",
    b"nan",
    b"9" * 400,
)
TYPES = (
    *("text/plain", "application/xml", "application/json; charset=utf-16", "multipart/form-data", "", "*/*", "json"),
    *("application/json;;;", "text/csv; header=present", "application/octet-stream", "\x01", "a" * 3000),
)


@dataclass
class Outcome:
    """What came of the requests.

    Attributes:
        statuses: How many had which answer; 0 = closed without one.
        kinds: How many of which kind were sent.
        unexpected: Those that had an answer that is not allowed, or none in time.
        wrong_answers: Good requests that were answered otherwise than before.
        slowest: Seconds of the slowest answer.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    wrong_answers: int = 0
    slowest: float = 0.0

    @property
    def requests(self) -> int:
        """How many were sent."""
        return self.kinds.total()


class Fuzzer:
    """Sends rubbish to a service on this machine.

    Args:
        port: Where it listens.
        rows: Rows that it can score.
        seed: Of all requests.
        max_bytes: The service's bound on bodies.
        huge: Bytes of the largest bodies.
        slow: Whether to play slow clients too, who are cut off only after the service's patience.
    """

    def __init__(
        self, port: int, rows: pd.DataFrame, *, seed: int, max_bytes: int, huge: int = 100 << 20, slow: bool = True
    ) -> None:
        self.port, self.seed, self.max_bytes, self.huge = port, seed, max_bytes, huge
        self.records: list[dict[str, Any]] = json.loads(rows.to_json(orient="records", double_precision=15))[:50]
        file = io.BytesIO()
        rows.iloc[:20].to_parquet(file, index=False)
        self.parquet, self.csv = file.getvalue(), rows.iloc[:20].to_csv(index=False).encode()
        self.good = json.dumps({"dataframe_records": self.records[:2]}).encode()
        self.makers: dict[str, tuple[float, Callable[[random.Random], int]]] = {
            "good": (2, lambda r: self._post(self._valid(r))),
            "cells": (6, lambda r: self._post(self._cells(r))),
            "protocol": (3, lambda r: self._post(self._protocol(r))),
            "bytes": (6, lambda r: self._post(_mutated(self._valid(r), r))),
            "tokens": (3, lambda r: self._post(self._tokens(r))),
            "deep": (2, lambda r: self._post(_deep(r))),
            "types": (3, lambda r: self._post(self._valid(r), r.choice(TYPES))),
            "swapped": (
                2,
                lambda r: self._post(r.choice((self.csv, self.parquet, self.good)), r.choice(MEDIA)),
            ),
            "csv": (4, lambda r: self._post(_mutated(self.csv, r), CSV)),
            "parquet": (4, lambda r: self._post(_mutated(self.parquet, r), PARQUET)),
            "noise": (2, lambda r: self._post(r.randbytes(r.randrange(2000)), r.choice(MEDIA))),
            "large": (0.3, lambda r: self._post(b" " * (self.max_bytes + r.randrange(1 << 20)), r.choice((JSON, CSV)))),
            "huge": (0.06, lambda r: self._stream(r)),
            "raw": (2, lambda r: self._raw(_mutated(self._head(len(self.good)) + self.good, r))),
            "gone": (1, lambda r: self._raw(self._head(5000) + self.good[: r.randrange(50)], leave=True)),
            "slow": (0.1 if slow else 0.0, lambda r: self._raw(self._head(5000)[: r.randrange(1, 200)])),
        }

    def run(self, count: int, *, threads: int, on_request: Callable[[], None] = lambda: None) -> Outcome:
        """Send `count` requests from some threads and say what came of them."""
        want = self._answer()
        outcome = Outcome()

        def one(i: int) -> tuple[str, int, float, str | None, bool]:
            source = random.Random(f"{self.seed}/{i}")
            kinds = list(self.makers)
            kind = source.choices(kinds, [self.makers[k][0] for k in kinds])[0]
            started, status, fault = time.monotonic(), 0, None
            try:
                status = self.makers[kind][1](source)
            except TimeoutError:
                fault = f"{kind} {i}: no answer within {HANG_SECONDS:g} s"
            except (OSError, http.client.HTTPException) as error:
                fault = f"{kind} {i}: {type(error).__name__}: {error}"
            seconds = time.monotonic() - started
            right = status == 200 or (400 <= status < 500) or status in (503, 504)
            if fault is None and not right and not (status == 0 and kind in ("raw", "gone", "slow")):
                fault = f"{kind} {i}: {status}"
            if kind == "good" and status not in (200, 503):
                fault = f"{kind} {i}: {status}"
            wrong = i % EVERY == 0 and self._answer() != want
            return kind, status, seconds, fault, wrong

        with ThreadPoolExecutor(threads) as pool:
            for kind, status, seconds, fault, wrong in pool.map(one, range(count)):
                outcome.kinds[kind] += 1
                outcome.statuses[status] += 1
                outcome.slowest = max(outcome.slowest, seconds)
                outcome.wrong_answers += wrong
                if fault:
                    outcome.unexpected.append(fault)
                on_request()
        outcome.wrong_answers += self._answer() != want
        return outcome

    def _answer(self) -> Any:
        for _ in range(100):  # a full queue is no wrong answer
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
            try:
                connection.request("POST", "/invocations", self.good, {"Content-Type": JSON})
                answer = connection.getresponse()
                body = answer.read()
            finally:
                connection.close()
            if answer.status != 503:
                return answer.status, json.loads(body).get("predictions")
            time.sleep(0.1)
        return 503, None

    def _post(self, body: bytes, kind: str = JSON) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        try:
            connection.putrequest("POST", "/invocations")
            connection.putheader("Content-Length", str(len(body)))
            if kind and kind.isprintable():
                connection.putheader("Content-Type", kind)
            connection.endheaders(body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def _stream(self, source: random.Random) -> int:
        size = source.randrange(self.huge // 2, self.huge + 1)
        told = b"Content-Length: %d\r\n" % size if source.random() < 0.5 else b"Transfer-Encoding: chunked\r\n"
        head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\n" + told + b"\r\n"
        part = b"1,2,3\n" * 43_690
        framed = part if b"Length" in told else b"%x\r\n" % len(part) + part + b"\r\n"
        return self._raw(head, more=(framed for _ in range(size // len(part))))

    def _raw(self, data: bytes, *, more: Iterator[bytes] = iter(()), leave: bool = False) -> int:  # noqa: B008
        with socket.create_connection(("127.0.0.1", self.port), timeout=HANG_SECONDS) as connection:
            try:
                connection.sendall(data)
                for part in more:
                    connection.sendall(part)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered already, or refuses to listen
            if leave:
                return 0
            try:
                line = connection.recv(64)
            except ConnectionResetError:
                return 0
        words = line.split(b" ", 2)
        return int(words[1]) if line.startswith(b"HTTP/1.1 ") and words[1].isdigit() else 0

    def _head(self, length: int) -> bytes:
        return (
            b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % length
        )

    def _valid(self, source: random.Random) -> bytes:
        rows = source.choices(self.records, k=source.choice((1, 1, 2, 10)))
        split = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        shapes: tuple[dict[str, Any], ...] = (
            {"dataframe_records": rows},
            {"dataframe_split": split},
            {"inputs": columns},
            {"instances": rows},
            {"inputs": rows, "params": {"k": 1}},
        )
        return json.dumps(source.choice(shapes)).encode()

    def _cells(self, source: random.Random) -> bytes:
        rows = [dict(row) for row in source.choices(self.records, k=source.choice((1, 3)))]
        for _ in range(source.choice((1, 1, 4))):
            row = source.choice(rows)
            row[source.choice([*row, "stranger"])] = source.choice(STRANGE)
        if source.random() < 0.2:
            del rows[0][next(iter(rows[0]))]
        params = {source.choice(("alpha", "k", "fdr", "explain", "mc_se", "x")): source.choice(STRANGE)}
        return json.dumps({"dataframe_records": rows, **({"params": params} if source.random() < 0.3 else {})}).encode()

    def _protocol(self, source: random.Random) -> bytes:
        keys = ("dataframe_split", "dataframe_records", "inputs", "instances", "params", "columns", "data", "")
        made: Any = source.choice((*STRANGE, self.records))
        for _ in range(source.randrange(4)):
            made = {source.choice(keys): made} if source.random() < 0.7 else [made, source.choice(STRANGE)]
        return json.dumps(made).encode()

    def _tokens(self, source: random.Random) -> bytes:
        return self._valid(source).replace(source.choice((b"1", b"2", b"0.", b"null")), source.choice(TOKENS), 1)


def _mutated(text: bytes, source: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(source.choice((1, 2, 8))):
        at = source.randrange(len(data) + 1)
        what = source.randrange(4)
        if what == 0:
            data[at : at + 1] = source.randbytes(1)
        elif what == 1:
            del data[at : at + source.randrange(1, 20)]
        elif what == 2:
            data[at:at] = source.choice((b'"', b"{", b"]", b",", b":", b"\\", b"\n", b"\x00", b"\xff", b"0" * 30))
        else:
            data[at:at] = data[at : at + 50]
    return bytes(data)


def _deep(source: random.Random) -> bytes:
    depth = source.choice((9, 30, 500, 999, 5_000, 100_000))
    opening, closing = source.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"inputs":', b"}]")))
    return b'{"inputs": ' + opening * depth + b"1" + closing * source.choice((0, depth)) + b"}"
