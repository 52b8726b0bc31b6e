"""Requests scored together get what each would have got alone."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from anomaly_vae import Detector
from anomaly_vae.errors import CalibrationError, SchemaError
from anomaly_vae.serving.flavor import columns_of
from anomaly_vae.serving.lane import Asked, Lane, answer_of


def test_each_gets_its_own_answer_and_its_own_error(detector: Detector, rows: pd.DataFrame) -> None:
    blocks: list[int] = []
    gate = threading.Event()

    class Watched(Detector):
        def verdicts(self, x, **options):  # type: ignore[no-untyped-def]
            blocks.append(len(x))
            return super().verdicts(x, **options)

    watched = Watched(**{name: getattr(detector, name) for name in detector.__dataclass_fields__})

    def asked(part: pd.DataFrame, alpha: float = 0.05) -> Asked:
        alone = lambda: answer_of(columns_of(detector.score_frame(part, alpha=alpha)))  # noqa: E731
        return Asked(alone, watched.encode(part), alpha)

    def fail() -> Asked:
        raise SchemaError("this one is wrong.")

    with ThreadPoolExecutor(1) as pool:
        lane = Lane(watched, pool)
        parts = [rows.iloc[i : i + 1 + i % 3] for i in range(0, 60, 3)]
        first = lane.submit(lambda: gate.wait() and asked(rows.iloc[:1]))  # type: ignore[arg-type, return-value]
        futures = [lane.submit(lambda part=part: asked(part)) for part in parts]  # type: ignore[misc]
        wrong, given_up = lane.submit(fail), lane.submit(lambda: asked(rows.iloc[:1]))
        other, greedy = lane.submit(lambda: asked(parts[0], 0.2)), lane.submit(lambda: asked(parts[1], 1e-9))
        alone = lane.submit(lambda: Asked(lambda: answer_of(columns_of(detector.score_frame(parts[2], explain=1)))))
        assert given_up.cancel()
        gate.set()
        for part, future in zip(parts, futures, strict=True):
            body, count, flags, p_values = future.result(timeout=30)
            want = detector.score_frame(part)
            assert p_values == want["p_value"].tolist()
            assert json.loads(body)["predictions"] == columns_of(want)
            assert (count, flags) == (len(part), want["is_anomaly"].sum())
        assert json.loads(other.result(30)[0])["predictions"] == columns_of(detector.score_frame(parts[0], alpha=0.2))
        assert "attributions" in json.loads(alone.result(30)[0])["predictions"]
        assert first.result(30)[1] == 1
        with pytest.raises(SchemaError, match="this one"):
            wrong.result(30)
        with pytest.raises(CalibrationError, match="alpha"):
            greedy.result(30)
        lane.stop()
    assert max(blocks) > 20, "those that waited must have been scored together"
