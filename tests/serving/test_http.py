"""A real server process: the same numbers as the library, and every bad request a 400 that names the column."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Detector

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"


def ask(server: str, body: bytes | str | dict[str, Any], kind: str = JSON) -> tuple[int, dict[str, Any]]:
    data = json.dumps(body) if isinstance(body, dict) else body
    data = data.encode() if isinstance(data, str) else data
    request = urllib.request.Request(f"{server}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read(), parse_constant=_refuse)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _refuse(word: str) -> None:
    raise AssertionError(f"the answer is not JSON: {word}")


def split(frame: pd.DataFrame) -> dict[str, Any]:
    return json.loads(frame.to_json(orient="split", index=False, double_precision=15))


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(frame.to_json(orient="records", double_precision=15))


def columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {name: [row[name] for row in records(frame)] for name in frame.columns}


def parquet(frame: pd.DataFrame) -> bytes:
    file = BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lambda f: {"dataframe_split": split(f)}, JSON),
        (lambda f: {"dataframe_records": records(f)}, JSON),
        (lambda f: {"inputs": columns(f)}, JSON),
        (lambda f: {"inputs": records(f)}, JSON),
        (lambda f: {"instances": records(f)}, JSON),
        (lambda f: f.to_csv(index=False), CSV),
        (parquet, PARQUET),
    ],
    ids=["split", "records", "inputs by column", "inputs by row", "instances", "csv", "parquet"],
)
def test_http_equals_the_library_and_mlflows_own_server(
    body: Callable[[pd.DataFrame], Any],
    kind: str,
    server: str,
    plain_server: str,
    detector: Detector,
    rows: pd.DataFrame,
) -> None:
    status, answer = ask(server, body(rows), kind)
    assert ask(plain_server, body(rows), kind) == (status, answer)
    assert status == 200, answer
    want, got = detector.score_frame(rows), answer["predictions"]
    for name in ("anomaly_score", "p_value", "threshold", "mc_se", "ess"):
        np.testing.assert_allclose(np.array(got[name], float), want[name], rtol=0, atol=1e-6, err_msg=name)
    assert got["is_anomaly"] == want["is_anomaly"].tolist()
    assert got["reliable"] == want["reliable"].tolist()


def test_parameters_over_http(server: str, detector: Detector, rows: pd.DataFrame) -> None:
    body = {"dataframe_split": split(rows), "params": {"alpha": 0.2, "k": 1, "explain": 2}}
    status, answer = ask(server, body)
    want = detector.score_frame(rows, alpha=0.2, k=1, explain=2)
    assert status == 200
    assert answer["predictions"]["is_anomaly"] == want["is_anomaly"].tolist()
    assert answer["predictions"]["mc_se"] == [None] * len(rows)
    for text, score in zip(answer["predictions"]["attributions"], want["anomaly_score"], strict=True):
        assert sum(part["nats"] for part in json.loads(text)) == pytest.approx(score, abs=1e-4)


def test_one_row_and_a_row_of_nulls(server: str, rows: pd.DataFrame) -> None:
    for row in (records(rows.iloc[:1]), [dict.fromkeys(rows.columns)]):
        status, answer = ask(server, {"dataframe_records": row})
        assert status == 200, answer
        assert len(answer["predictions"]["anomaly_score"]) == 1


def _with(row: dict[str, Any], **cells: Any) -> dict[str, Any]:
    return {"dataframe_records": [{**row, **cells}]}


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (lambda r: {"dataframe_records": [{k: v for k, v in r.items() if k != "heat"}]}, "heat"),
        (lambda r: {"inputs": {k: [v] for k, v in r.items() if k != "site"}}, "site"),
        (lambda r: {"dataframe_split": {"columns": ["load"], "data": [[1.0]]}}, "heat"),
        (lambda r: _with(r, load="heavy"), "load"),
        (lambda r: _with(r, heat=[1, 2]), "heat"),
        (lambda r: _with(r, stops="many"), "stops"),
        (lambda r: _with(r, load={"a": 1}), "load"),
        (lambda r: json.dumps(_with(r, load=1.0)).replace("1.0", "1e999"), "load"),
        (lambda r: json.dumps(_with(r, load=1.0)).replace("1.0", "-Infinity"), "-Infinity"),
        (lambda r: {"inputs": {**{k: [v] for k, v in r.items()}, "age": [1, 2]}}, "age"),
        (lambda r: {"inputs": [[1.0, 2.0]]}, "column names"),
        (lambda r: {**_with(r), "params": {"alpha": 7}}, "alpha"),
        (lambda r: {**_with(r), "params": {"alpha": "much"}}, "alpha"),
        (lambda r: {**_with(r), "params": {"k": 5}}, "k must"),
        (lambda r: {"dataframe_split": {"columns": [*r, "load"], "data": [[*r.values(), 1.0]]}}, "load"),
        (lambda r: {**_with(r), "params": {"alpah": 0.1}}, "'alpha'"),
        (lambda r: {"rows": [r]}, "dataframe_split"),
        (lambda r: "{not json", "JSON"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_column(fault: Any, named: str, server: str, rows: pd.DataFrame) -> None:
    row = records(rows.iloc[:1])[0]
    status, answer = ask(server, fault(row))
    assert status == 400, answer
    assert named in answer["message"]
    assert "stack_trace" not in answer
    assert ask(server, {"dataframe_records": [row]})[0] == 200


@pytest.mark.parametrize("text", ["", "load\n", "load,heat\n1,2\n", "load,load\n1,2\n"])
def test_bad_csv_is_a_400(text: str, server: str, rows: pd.DataFrame) -> None:
    status, answer = ask(server, text, CSV)
    assert status == 400, answer
    assert ask(server, rows.to_csv(index=False), CSV)[0] == 200


def test_extreme_and_unseen_values_score_finitely(server: str, rows: pd.DataFrame) -> None:
    row = records(rows.iloc[:1])[0]
    plain = ask(server, _with(row))[1]["predictions"]["anomaly_score"][0]
    for cells in ({"load": 1e300}, {"site": "Atlantis"}, {"stops": 10**12}, {"stops": -1}, {"stops": 1.5}):
        status, answer = ask(server, _with(row, **cells))
        assert status == 200, answer
        assert answer["predictions"]["anomaly_score"][0] > plain + 1


def test_concurrent_requests_get_their_own_rows(server: str, detector: Detector, rows: pd.DataFrame) -> None:
    want = detector.score_frame(rows)["anomaly_score"].to_numpy()
    parts = [slice(i, i + 10) for i in range(0, 300, 10)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda s: ask(server, {"dataframe_split": split(rows.iloc[s])}), parts))
    for part, (status, answer) in zip(parts, answers, strict=True):
        assert status == 200
        np.testing.assert_allclose(answer["predictions"]["anomaly_score"], want[part], atol=1e-6, rtol=0)
