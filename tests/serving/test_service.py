"""The hardened service: bounds, refusals, slow clients, several at once, stopping, logs and counts."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from anomaly_vae import Detector

from .conftest import NAME, free_port, running

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
MAX_BYTES, MAX_ROWS, PATIENCE = 200_000, 400, 1.5
BOUNDS = ["--max-bytes", MAX_BYTES, "--max-rows", MAX_ROWS, "--read-timeout-s", PATIENCE]
SECRET = "Ada Lovelace, born 1815"


def good_request(frame: pd.DataFrame) -> bytes:
    return json.dumps({"dataframe_records": json.loads(frame.to_json(orient="records", double_precision=15))}).encode()


Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Running:
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def ask(
        self,
        body: bytes | str,
        kind: str | None = "application/json",
        *,
        method: str = "POST",
        path: str = "/invocations",
        **headers: str,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            sent = {**({"Content-Type": kind} if kind else {}), **{k.replace("_", "-"): v for k, v in headers.items()}}
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask(b"", None, method="GET", path=path)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def metric(self, name: str) -> float:
        text = self.get("/metrics")[2].decode()
        found = re.search(rf"^anomaly_vae_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, f"{name} is not in:\n{text}"
        return float(found[1])


@pytest.fixture(scope="module")
def service(registered: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    port, log = free_port(), tmp_path_factory.mktemp("service") / "log.jsonl"
    words = ["anomaly_vae.cli", "serve", f"models:/{NAME}@champion", "--port", port, *BOUNDS]
    with running(list(map(str, words)), port, log=log) as process:
        yield Running(port, log, process)


@pytest.fixture(scope="module")
def good(rows: pd.DataFrame) -> bytes:
    return good_request(rows.iloc[:2])


@pytest.fixture(autouse=True, scope="module")
def _right(service: Running, detector: Detector, rows: pd.DataFrame, good: bytes) -> Iterator[None]:
    """After all that these tests do, the next good request is answered rightly, and no line of the log has a cell."""
    yield
    status, _, answer = service.ask(good)
    want = detector.score_frame(rows.iloc[:2])["anomaly_score"]
    assert status == 200
    assert json.loads(answer)["predictions"]["anomaly_score"] == pytest.approx(want.tolist(), abs=1e-6)
    log = service.log.read_text()
    assert service.lines()
    assert not any(word in log for word in ("Lovelace", "Traceback", "site-packages", str(Path.home()), "Oslo"))


def test_probes_answer(service: Running) -> None:
    import mlflow

    for path in ("/ping", "/health", "/ready"):
        assert service.get(path)[::2] == (200, b"\n")
    assert service.get("/version")[2].decode() == mlflow.__version__
    status, headers, text = service.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in text.decode().splitlines():
        assert re.fullmatch(
            r'# (HELP|TYPE) anomaly_vae_\w+ .+|anomaly_vae_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? \S+', line
        )


def _error(answer: Answer) -> tuple[int, str]:
    status, headers, body = answer
    said = json.loads(body)
    assert set(said) == {"error_code", "message", "request_id"}
    assert said["request_id"] == headers["x-request-id"]
    assert not re.search(r"Traceback|\.py|site-packages|/work|/tmp", said["message"])
    return status, said["message"]


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (None, "Content-Type must be"),
        ("text/plain", "text/plain"),
        ("application/json; charset=latin-1", "charset=utf-8"),
        ("application/json; boundary=x", "boundary"),
        ("application/octet-stream", "Content-Type must be"),
    ],
)
def test_other_content_types_are_415(kind: str | None, named: str, service: Running, good: bytes) -> None:
    status, message = _error(service.ask(good, kind))
    assert status == 415
    assert named in message
    assert service.ask(good, "Application/JSON; Charset=UTF-8")[0] == 200
    assert _error(service.ask(good, content_encoding="gzip"))[0] == 415


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"inputs": {"load": [NaN]}}', "no NaN"),
        (b'{"inputs": {"load": [-Infinity]}}', "no -Infinity"),
        (b'{"inputs": {"load": [1], "load": [2]}}', "'load' more than once"),
        (b'{"inputs": {"load": [1]}, "inputs": {"load": [2]}}', "'inputs' more than once"),
        (b'{"inputs": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "nested at most"),
        (b'{"a":' * 30_000 + b"1" + b"}" * 30_000, "nested at most"),
        (b"]" * 50_000, "JSON"),
        (b'{"inputs": {"load": [' + b"9" * 30 + b"]}}", "64 bits"),
        (b'{"inputs": {"load": [' + b"9" * 9_000 + b"]}}", "64 bits"),
        (b'{"inputs": {"load": [1]}', "character"),
        (b'{"inputs": {"load": ["\xff"]}}', "UTF-8"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"", "JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b"{}", "exactly one"),
        (b'{"inputs": {}, "instances": []}', "exactly one"),
        (b'{"inputs": {"load": [1]}, "parameters": {}}', "parameters"),
        (b'{"inputs": {"load": [1]}, "params": [1]}', "params"),
        (b'{"inputs": []}', "column names"),
        (b'{"inputs": [1, {"load": 1}]}', "column names"),
        (b'{"inputs": [{"load": 1}, 1]}', "list of objects"),
        (b'{"dataframe_records": {"load": 1}}', "list of objects"),
        (b'{"dataframe_records": []}', "must have rows"),
        (b'{"dataframe_records": [{"site": "\\ud800"}]}', "surrogate"),
        (b'{"dataframe_split": []}', "columns and data"),
        (b'{"dataframe_split": {"data": [], "columns": [], "rows": 1}}', "columns and data"),
        (b'{"dataframe_split": {"columns": ["load"], "data": [1]}}', "list of cells"),
        (b'{"dataframe_split": {"columns": ["load"], "data": [[1, 2]]}}', "cell for each"),
        (b'{"dataframe_split": {"columns": [["load"]], "data": [[1]]}}', "names"),
    ],
)
def test_what_is_not_strict_json_of_the_protocol_is_400(body: bytes, named: str, service: Running) -> None:
    status, message = _error(service.ask(body))
    assert (status, named in message) == (400, True), message
    assert "\n" not in message or "absent" in message


def test_a_bracket_in_text_is_not_nesting(service: Running, rows: pd.DataFrame) -> None:
    row = {**json.loads(rows.iloc[:1].to_json(orient="records"))[0], "site": '[{\\"' * 20}
    assert service.ask(json.dumps({"dataframe_records": [row]}))[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "named"),
    [
        (b"x" * (MAX_BYTES + 1), "application/json", "bytes"),
        (b"x" * (30 << 20), "text/csv", "bytes"),
        (b"load\n" + b"1\n" * (MAX_ROWS + 1), "text/csv", "rows"),
        (json.dumps({"inputs": {"load": [1] * (MAX_ROWS + 1)}}).encode(), "application/json", "rows"),
        (json.dumps({"dataframe_records": [{"load": 1}] * (MAX_ROWS + 1)}).encode(), "application/json", "rows"),
        (b"," * 150_000, "text/csv", "columns"),
    ],
)
def test_too_much_is_413(body: bytes, kind: str, named: str, service: Running) -> None:
    before = service.metric('rejected_total{reason="too_large"}')
    status, message = _error(service.ask(body, kind))
    assert (status, named in message) == (413, True), message
    assert service.metric('rejected_total{reason="too_large"}') == before + 1


def test_a_body_of_unknown_length_is_bounded_too(service: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(400):
            yield b"x" * 4096

    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.request("POST", "/invocations", endless(), {"Content-Type": "text/csv"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_keys_that_differ_in_every_row_do_not_become_columns(service: Running) -> None:
    body = json.dumps({"dataframe_records": [{f"c{i}_{j}": 1 for j in range(10)} for i in range(MAX_ROWS)]})
    started = time.monotonic()
    assert _error(service.ask(body))[0] == 400
    assert time.monotonic() - started < 2


def test_parquet_that_unpacks_to_gigabytes_is_refused(service: Running, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.DictionaryArray.from_arrays(pa.array([0] * 300), pa.array(["x" * (8 << 20)]))
    pq.write_table(pa.table({"site": text, "load": [1.0] * 300}), tmp_path / "bomb.parquet", compression="zstd")
    bomb = (tmp_path / "bomb.parquet").read_bytes()
    assert len(bomb) < MAX_BYTES
    status, message = _error(service.ask(bomb, "application/vnd.apache.parquet"))
    assert (status, "unpack" in message) == (413, True), message
    assert _error(service.ask(b"PAR1" + b"\0" * 100 + b"PAR1", "application/vnd.apache.parquet"))[0] == 400


def test_paths_and_methods(service: Running, good: bytes) -> None:
    assert _error(service.get("/etc/passwd"))[0] == 404
    assert _error(service.get("/docs"))[0] == 404
    status, headers, _ = service.get("/invocations")
    assert (status, headers["allow"]) == (405, "POST")
    status, headers, _ = service.ask(good, path="/metrics")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_a_request_has_an_id(service: Running, good: bytes) -> None:
    assert service.ask(good, x_request_id="night-7:a.b")[1]["x-request-id"] == "night-7:a.b"
    for strange in ("a b", "x" * 200, "\xe9", "<script>"):
        made = service.ask(good, x_request_id=strange)[1]["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)
    line = next(line for line in service.lines() if line.get("id") == "night-7:a.b")
    assert line["status"] == 200
    assert (line["rows"], line["path"], line["event"]) == (2, "/invocations", "request")


def test_logs_have_no_cells(service: Running, rows: pd.DataFrame) -> None:
    row = json.loads(rows.iloc[:1].to_json(orient="records"))[0]
    for cells in ({"load": SECRET}, {"heat": [SECRET]}, {SECRET: 1}, {"stops": -3}):
        service.ask(json.dumps({"dataframe_records": [{**row, **cells}]}), path=f"/invocations?who={SECRET[:3]}")
    service.ask(b"", path="/Lovelace")
    assert any(line.get("reason") == "schema" for line in service.lines())


def _raw(service: Running, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    connection.sendall(data)
    return connection


def _until_closed(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_slow_clients_are_cut_off(service: Running, good: bytes) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
    silent, slow_head, slow_body = _raw(service, b""), _raw(service, head[:40]), _raw(service, head + b"{")
    started = time.monotonic()
    assert service.ask(good)[0] == 200
    assert b" 408 " in _until_closed(slow_body)
    assert _until_closed(slow_head) == b""
    assert _until_closed(silent) == b""
    assert PATIENCE * 0.8 < time.monotonic() - started < PATIENCE + 6


def test_a_client_that_drips_is_cut_off(service: Running) -> None:
    connection, started = _raw(service, b"POST /invocations HTTP/1.1\r\n"), time.monotonic()

    def drip() -> None:
        while time.monotonic() - started < 20:
            connection.sendall(b"X-A: b\r\n")
            time.sleep(0.1)

    with pytest.raises(OSError):  # noqa: PT011 - a reset or a broken pipe, whichever comes first
        drip()
    assert time.monotonic() - started < PATIENCE + 6


def test_malformed_http_is_refused(service: Running) -> None:
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nA B: c\r\n\r\n",
    ):
        assert b" 400 " in _until_closed(_raw(service, data + b"\r\n\r\n"))
    assert b"200" in _until_closed(_raw(service, b"GET /ping HTTP/1.0\r\n\r\n"))
    assert b" 400 " in _until_closed(
        _raw(service, b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * (1 << 17) + b"\r\n\r\n")
    )


def test_many_at_once_get_their_own_rows(service: Running, detector: Detector, rows: pd.DataFrame) -> None:
    want = detector.score_frame(rows)["anomaly_score"].tolist()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: service.ask(good_request(rows.iloc[i : i + 1])), range(100)))
    assert {status for status, _, _ in answers} == {200}
    got = [json.loads(answer)["predictions"]["anomaly_score"][0] for _, _, answer in answers]
    assert got == pytest.approx(want[:100], abs=1e-6)


def test_counts(service: Running, good: bytes) -> None:
    names = ("rows_total", 'requests_total{code="200"}', "request_seconds_count", "schema_errors_total")
    before = [service.metric(name) for name in names]
    service.ask(good)
    service.ask('{"inputs": {"load": [1]}}')
    assert [service.metric(name) - b for name, b in zip(names, before, strict=True)] == [2, 1, 2, 1]
    assert service.metric("in_flight") == 0
    assert service.metric("ready") == 1
    assert service.metric("resident_bytes") > 1 << 26


def test_drift_is_felt(service: Running, rows: pd.DataFrame) -> None:
    hot = pd.concat([rows.assign(heat=rows["heat"] + 30)] * 2)
    for start in range(0, 600, 100):
        assert service.ask(good_request(hot.iloc[start : start + 100]))[0] == 200
    assert service.metric("drift_alarms_total") >= 1


def test_some_hundred_random_requests(service: Running, rows: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PIPELINES)
    fuzzing = importlib.import_module("fuzzing")
    result = fuzzing.Fuzzer(service.port, rows, seed=0, max_bytes=MAX_BYTES, slow=False).run(300, threads=4)
    assert result.unexpected == []
    assert result.wrong_answers == 0
    assert result.requests == 300
    assert len(result.statuses) >= 5, result.statuses


def test_a_full_queue_is_503_and_slow_scoring_504(registered: Any, rows: pd.DataFrame, tmp_path: Path) -> None:
    port = free_port()
    words = ["anomaly_vae.cli", "serve", registered.uri, "--port", str(port), "--concurrency", "1", "--queue", "1"]
    body = json.dumps({**json.loads(good_request(pd.concat([rows] * 3))), "params": {"mc_se": 1e-9}})
    with running([*words, "--timeout-s", "0.4"], port, log=tmp_path / "log") as process:
        service = Running(port, tmp_path / "log", process)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: service.ask(body), range(8)))
        found = {status: headers for status, headers, _ in answers}
        assert set(found) == {503, 504}
        assert found[503]["retry-after"] == "1"
        _eventually(lambda: service.ask(good_request(rows.iloc[:1]))[0] == 200)


def _eventually(holds: Any, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.whole
def test_stopping_finishes_what_is_in_flight(registered: Any, rows: pd.DataFrame, tmp_path: Path) -> None:
    port = free_port()
    words = [
        "anomaly_vae.cli",
        "serve",
        registered.uri,
        "--port",
        str(port),
        "--concurrency",
        "1",
        "--timeout-s",
        "600",
    ]
    body = json.dumps({**json.loads(good_request(pd.concat([rows] * 3))), "params": {"mc_se": 0.01}})
    with running(words, port, log=tmp_path / "log") as process:
        service = Running(port, tmp_path / "log", process)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(service.ask, body) for _ in range(3)]
            _eventually(lambda: service.metric("in_flight") == 3)
            process.send_signal(signal.SIGTERM)
            assert [answer.result()[0] for answer in asked] == [200] * 3
        process.wait(timeout=120)
        assert process.returncode in (0, -signal.SIGTERM)
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset
            service.get("/ping")


@pytest.mark.whole
def test_several_workers_share_counts_and_outlive_one(registered: Any, rows: pd.DataFrame, tmp_path: Path) -> None:
    port = free_port()
    words = ["anomaly_vae.cli", "serve", registered.uri, "--port", str(port), "--workers", "2"]
    with running(words, port, log=tmp_path / "log") as process:
        service = Running(port, tmp_path / "log", process)
        _eventually(lambda: service.metric("ready") == 2)
        first = good_request(rows.iloc[:1])
        assert [service.ask(first)[0] for _ in range(20)] == [200] * 20
        assert service.metric("rows_total") == 20
        workers = [line["pid"] for line in service.lines() if line["event"] == "ready"]
        assert len(set(workers)) == 2
        os.kill(workers[0], signal.SIGKILL)
        _eventually(lambda: len({line["pid"] for line in service.lines() if line["event"] == "ready"}) == 3)
        assert service.ask(first)[0] == 200
        assert service.metric("rows_total") == 21
        assert service.metric("ready") == 2
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        assert process.returncode == 0
