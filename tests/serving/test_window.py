"""A worker compares the latest rows' columns with the training rows', off the requests' path."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anomaly_vae import Detector
from anomaly_vae.data.profile import Profile
from anomaly_vae.data.schema import Schema
from anomaly_vae.evaluation.drift import stability_indices
from anomaly_vae.options import ServeConfig
from anomaly_vae.serving.pulse import AT_ONCE, BLOCKS, MOST_OF_ONE, Window
from anomaly_vae.serving.service import Service
from anomaly_vae.serving.tally import MOST_COLUMNS, Tally

from .conftest import make_rows


def fed(window: Window, x: np.ndarray, *, at_once: int = 1) -> tuple[int, np.ndarray]:
    """Give rows as requests of so many and count whenever it is time; return the last count."""
    last = 0, np.zeros(x.shape[1])
    for start in range(0, len(x), at_once):
        window.take(x[start : start + at_once])
        if claimed := window.claim():
            last = window.count(claimed)
    return last


def test_a_window_forgets(detector: Detector) -> None:
    assert detector.profile is not None
    window, heat = Window(detector.profile), list(detector.schema.names).index("heat")
    quiet = detector.schema.encode(make_rows(AT_ONCE * BLOCKS, seed=31))
    rows, indices = fed(window, quiet)
    assert rows == AT_ONCE * BLOCKS
    assert indices.max() < 0.1
    hot = make_rows(AT_ONCE * BLOCKS, seed=32)
    hot["heat"] += 5.0
    _, indices = fed(window, detector.schema.encode(hot), at_once=16)
    assert indices[heat] > 0.25
    assert indices.argmax() == heat
    assert np.delete(indices, heat).max() < 0.1
    rows, indices = fed(window, quiet, at_once=16)
    assert rows == AT_ONCE * BLOCKS
    assert indices.max() < 0.1


def test_cells_that_go_missing_are_a_change(detector: Detector) -> None:
    assert detector.profile is not None
    lacking = make_rows(AT_ONCE, seed=33)
    lacking.loc[lacking.index[::2], "age"] = np.nan
    _, indices = fed(Window(detector.profile), detector.schema.encode(lacking))
    assert indices.argmax() == list(detector.schema.names).index("age")
    assert indices.max() > 0.25


def test_undisturbed_columns_of_many_categories_stay_quiet() -> None:
    """With a bin for each of 300 categories, a block of rows has an index of about 1 without any change."""
    rng = np.random.default_rng(0)

    def rows(n: int) -> pd.DataFrame:
        return pd.DataFrame({"x": rng.normal(size=n), "site": [f"s{i}" for i in rng.integers(0, 300, n)]})

    trained = rows(20_000)
    schema = Schema.fit(trained, kinds={"site": "categorical"})
    profile = Profile.fit(schema, schema.encode(trained))
    largest = [stability_indices(profile, profile.of(schema.encode(rows(AT_ONCE)))).max() for _ in range(50)]
    assert np.quantile(largest, 0.9) < 0.1
    other = rows(AT_ONCE).assign(site="s7")
    assert stability_indices(profile, profile.of(schema.encode(other)))[1] > 0.25


def test_a_large_request_counts_as_some_rows(detector: Detector) -> None:
    assert detector.profile is not None
    window = Window(detector.profile)
    x = detector.schema.encode(make_rows(1000, seed=34))
    for size in (1000, 999, MOST_OF_ONE + 1):
        window.take(x[:size])
    kept = [len(part) for part in window._waiting]
    assert all(MOST_OF_ONE // 2 <= n <= MOST_OF_ONE for n in kept)
    assert window.claim() == []
    assert all(part.base is None for part in window._waiting), "the request's own rows are let go"


async def answer(service: Service, path: str, body: bytes = b"", media: str = "application/json") -> tuple[int, bytes]:
    """One request to the application, without a server."""
    sent: list[MutableMapping[str, Any]] = []
    arrived = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> MutableMapping[str, Any]:
        return next(arrived)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", media.encode()), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": "POST" if body else "GET", "path": path, "headers": headers}
    await service(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


def test_metrics_tell_the_largest_and_each_by_its_position(detector: Detector) -> None:
    hot = make_rows(600, seed=35)
    hot["heat"] += 20.0
    heat = list(detector.schema.names).index("heat")
    asked = [json.loads(hot.iloc[i : i + 50].to_json(orient="records")) for i in range(0, 600, 50)]
    asked.append(json.loads(hot.to_json(orient="records")))  # through the pool, not the lane

    async def session() -> tuple[str, str]:
        service = Service(lambda: (detector, "models:/pumps/1"), ServeConfig(), Tally())
        await service.start()
        before = (await answer(service, "/metrics"))[1].decode()
        for records in asked:
            status, body = await answer(service, "/invocations", json.dumps({"dataframe_records": records}).encode())
            assert status == 200, body
        for _ in range(100):
            text = (await answer(service, "/metrics"))[1].decode()
            if "anomaly_vae_drift_window_rows 600" in text:
                break
            await asyncio.sleep(0.05)
        service.stop()
        return before, text

    before, text = asyncio.run(session())
    assert "anomaly_vae_drift_window_rows 0\n" in before
    assert "anomaly_vae_drift_largest_psi 0\n" in before
    found = {int(i): float(v) for i, v in re.findall(r'_drift_column_psi\{column="(\d+)"\} (\S+)', text)}
    assert sorted(found) == list(range(len(detector.schema.names)))
    largest = re.search(r"^anomaly_vae_drift_largest_psi (\S+)$", text, re.MULTILINE)
    assert largest
    assert float(largest[1]) == found[heat] == max(found.values()) > 0.25
    assert not any(f'"{name}"' in text for name in detector.schema.names)


def test_more_columns_than_are_told_count_for_the_largest() -> None:
    tally = Tally()
    indices = np.zeros(MOST_COLUMNS + 5)
    indices[-1] = 0.7
    tally.compared(300, indices)
    text = tally.text({})
    assert "anomaly_vae_drift_largest_psi 0.7\n" in text
    assert text.count("drift_column_psi{") == MOST_COLUMNS


@pytest.mark.parametrize("rows", [1, 16])
def test_rows_that_were_claimed_are_not_claimed_again(detector: Detector, rows: int) -> None:
    assert detector.profile is not None
    window = Window(detector.profile)
    x = detector.schema.encode(make_rows(AT_ONCE, seed=36))
    for start in range(0, AT_ONCE, rows):
        assert window.claim() == []
        window.take(x[start : start + rows])
    assert sum(map(len, window.claim())) == AT_ONCE
    assert window.claim() == []
