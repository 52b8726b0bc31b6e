"""Reports on models, data and scored files: what is asked for is there, in time, small, and nothing is scored twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae import Detector, ReportConfig, ScoreConfig
from anomaly_vae.errors import ConfigError, SchemaError, UnreadableDataError
from anomaly_vae.scorecard import Scorecard
from anomaly_vae.serving import tracking
from anomaly_vae.serving.batch import score_file
from anomaly_vae.serving.gathered import rows_at
from anomaly_vae.serving.made import read_scorecard
from anomaly_vae.serving.provenance import recorded
from anomaly_vae.serving.report import write_data_report
from tests.reporting import reports

from .conftest import NAME, make_rows

MODEL = f"models:/{NAME}/1"


@pytest.fixture(scope="module")
def folder(registered: tracking.Registered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled data and what the model scored of them."""
    folder = tmp_path_factory.mktemp("reports")
    rows = make_rows(400, seed=8, strange=12).assign(broken=np.arange(400) >= 388)
    rows.to_parquet(folder / "data.parquet", index=False)
    rows.drop(columns="broken").to_parquet(folder / "bare.parquet", index=False)
    config = ScoreConfig(explain=3, batch_rows=150)
    score_file(registered.detector, folder / "bare.parquet", folder / "scored.parquet", config, model_version=MODEL)
    return folder


def report(detector: Detector, path: Path, **given: Any) -> dict[str, Any]:
    """Write a report and return its JSON by section."""
    made = write_data_report(detector, path, model=MODEL, recorded=recorded(MODEL), **given)
    assert path.stat().st_size < 2_000_000
    twin = json.loads(made.twin.read_text())
    return {**{one["key"]: one for one in twin["sections"]}, "tiles": {t["name"]: t["value"] for t in twin["tiles"]}}


def test_a_training_leaves_its_report(registered: tracking.Registered, tmp_path: Path) -> None:
    client = mlflow.MlflowClient()
    assert {"report.html", "report.json"} <= {f.path for f in client.list_artifacts(registered.run_id)}
    twin = json.loads(Path(client.download_artifacts(registered.run_id, "report.json", str(tmp_path))).read_text())
    found = {one["key"]: one for one in twin["sections"]}
    assert list(found) == ["data", "training", "calibration", "scores", "strangest", "latent", "provenance"]
    assert not [one for one in found.values() if "absent" in one]
    assert registered.fit is not None
    curve = found["training"]["figures"][0]["data"]["series"][1]
    np.testing.assert_allclose(curve["y"], [e.validation_elbo for e in registered.fit.history], rtol=1e-5)
    normal, anomalous = found["scores"]["figures"][0]["data"]["series"]
    assert sum(normal["heights"]) == pytest.approx(1, abs=1e-4)
    assert sum(anomalous["heights"]) == pytest.approx(1, abs=1e-4)
    facts = {f["name"]: f["value"] for f in found["provenance"]["facts"]}
    assert facts["model"] == MODEL
    assert facts["model digest (SHA-256)"] == registered.detector.digest
    assert facts["run"] == registered.run_id


def test_data_are_scored_and_every_section_is_there(
    registered: tracking.Registered, folder: Path, tmp_path: Path
) -> None:
    detector = registered.detector
    asked: dict[str, Any] = {"label": "broken", "groups": ["site"], "card": Scorecard.from_dict(reports.card())}
    found = report(detector, tmp_path / "r.html", data=folder / "data.parquet", **asked)
    assert not [key for key, one in found.items() if "absent" in one]
    assert len(found["training"]["figures"][0]["data"]["series"][0]["x"]) == len(registered.fit.history)  # type: ignore[union-attr]
    rows = pd.read_parquet(folder / "data.parquet")
    scores = detector.score_frame(rows.drop(columns="broken"))
    assert found["tiles"]["rows scored"] == 400
    assert found["tiles"]["threshold, nats"] == pytest.approx(detector.threshold(0.05), rel=1e-5)
    alarms = scores["is_anomaly"][~rows["broken"]].mean()
    assert found["tiles"]["false alarms"] == f"{alarms:.1%}"
    strangest = scores["anomaly_score"].nlargest(6)
    assert [card["title"] for card in found["strangest"]["cards"]] == [f"row {i:,}" for i in strangest.index]
    for card, score in zip(found["strangest"]["cards"], strangest, strict=True):
        data = card["figures"][0]["data"]
        assert data["total"] == pytest.approx(score, rel=1e-5)
        assert sum(part["nats"] for part in data["parts"]) == pytest.approx(score, abs=1e-3)
    missing = {row[0]: row[2]["share"] for row in found["data"]["tables"][0]["rows"]}
    assert missing["heat"] == pytest.approx(rows["heat"].isna().mean(), rel=1e-5)
    assert {f["title"] for f in found["latent"]["figures"]} == {"By p-value", "By label", "By site"}
    assert "site: flagged" in {f["title"] for f in found["audit"]["figures"]}


def test_a_scored_file_is_not_scored_again(
    registered: tracking.Registered, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"data": folder / "data.parquet", "label": "broken"}
    anew = report(registered.detector, tmp_path / "a.html", **given)
    asked: list[int] = []
    score = Detector.score_frame

    def counted(self: Detector, frame: pd.DataFrame, **settings: Any) -> pd.DataFrame:
        asked.append(len(frame))
        return score(self, frame, **settings)

    monkeypatch.setattr(Detector, "score_frame", counted)
    stored = report(registered.detector, tmp_path / "b.html", scored=folder / "scored.parquet", **given)
    assert asked == [6]  # the rows whose reasons are shown
    for key in ("data", "calibration", "scores", "strangest", "latent"):
        assert stored[key] == anew[key], key


def test_scores_alone_give_what_they_can(registered: tracking.Registered, folder: Path, tmp_path: Path) -> None:
    found = report(registered.detector, tmp_path / "r.html", scored=folder / "scored.parquet")
    assert {key for key, one in found.items() if "absent" in one} == {"latent", "audit", "scorecard"}
    scored = pd.read_parquet(folder / "scored.parquet").nlargest(6, "anomaly_score")
    cards = found["strangest"]["cards"]
    assert [card["title"] for card in cards] == [f"row {row:,}" for row in scored["row"]]
    first = json.loads(scored["attributions"].iloc[0])
    assert [p["nats"] for p in cards[0]["figures"][0]["data"]["parts"]] == pytest.approx(
        [p["nats"] for p in first], rel=1e-4
    )
    assert "It is not known which" in " ".join(found["calibration"]["sentences"])


def test_a_model_alone_is_described(registered: tracking.Registered, tmp_path: Path) -> None:
    found = report(registered.detector, tmp_path / "r.html")
    assert {key for key, one in found.items() if "absent" in one} == {"scores", "strangest", "latent", "scorecard"}
    assert found["training"]["figures"]
    assert [row[0] for row in found["data"]["tables"][0]["rows"]] == list(registered.detector.schema.names)


def test_scores_of_other_rows_or_another_model_are_refused(
    registered: tracking.Registered, folder: Path, tmp_path: Path
) -> None:
    detector, scored, data = registered.detector, folder / "scored.parquet", folder / "bare.parquet"
    table = pq.read_table(scored)
    pq.write_table(table.slice(0, 390), tmp_path / "short.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 5)]), tmp_path / "long.parquet")
    for name in ("short", "long"):
        with pytest.raises(SchemaError, match="a row for each of the data's"):
            report(detector, tmp_path / "r.html", data=data, scored=tmp_path / f"{name}.parquet")
    pq.write_table(table.take(np.arange(400)[::-1]), tmp_path / "turned.parquet")
    with pytest.raises(SchemaError, match="of these data by this model"):
        report(detector, tmp_path / "r.html", data=data, scored=tmp_path / "turned.parquet")
    with pytest.raises(SchemaError, match="columns that `anomaly-vae score` writes"):
        report(detector, tmp_path / "r.html", scored=data)
    other = table.to_pandas().assign(model_version="models:/another/3")
    other.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(SchemaError, match="one of 'models:/another/3'"):
        report(detector, tmp_path / "r.html", scored=tmp_path / "other.parquet")
    assert not (tmp_path / "r.html").exists()


def test_columns_that_are_not_there_are_named(registered: tracking.Registered, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must come with --data"):
        report(registered.detector, tmp_path / "r.html", label="broken")
    with pytest.raises(SchemaError, match="got 'sex'"):
        report(registered.detector, tmp_path / "r.html", data=folder / "data.parquet", groups=["sex"])
    pd.DataFrame({"other": [1, 2], "heat": [1.0, 2.0]}).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(SchemaError, match="column 'load'"):
        report(registered.detector, tmp_path / "r.html", data=tmp_path / "other.csv")


def test_labels_of_one_kind_and_two_rows_are_said(
    registered: tracking.Registered, folder: Path, tmp_path: Path
) -> None:
    two = pd.read_parquet(folder / "data.parquet").head(2)
    two.to_parquet(tmp_path / "two.parquet")
    given = {"data": tmp_path / "two.parquet", "label": "broken", "groups": ["site"]}
    found = report(registered.detector, tmp_path / "r.html", **given)
    assert "The labels are all of one kind, so there is no AUROC." in found["scores"]["sentences"]
    assert found["latent"]["absent"].startswith("Fewer than three rows")
    assert len(found["strangest"]["cards"]) == 2


def test_a_csv_of_scores_is_as_good(registered: tracking.Registered, folder: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(folder / "scored.parquet")
    table.to_csv(tmp_path / "scored.csv", index=False)
    given = {"data": folder / "bare.parquet"}
    of_csv = report(registered.detector, tmp_path / "a.html", scored=tmp_path / "scored.csv", **given)
    of_parquet = report(registered.detector, tmp_path / "b.html", scored=folder / "scored.parquet", **given)
    assert of_csv["scores"] == of_parquet["scores"]
    assert of_csv["strangest"] == of_parquet["strangest"]
    places = np.array([399, 0, 151, 150])
    for file in (tmp_path / "scored.csv", folder / "scored.parquet"):
        assert rows_at(file, places)["row"].tolist() == places.tolist()


def test_two_hundred_thousand_scored_rows_take_seconds_and_no_more_room(
    registered: tracking.Registered, tmp_path: Path
) -> None:
    n, calibration = 200_000, registered.detector.calibration
    rng = np.random.default_rng(0)
    scores = rng.gamma(3, 4, n)
    held = calibration.scores[registered.detector.config.k]
    table = pd.DataFrame(
        {
            "row": np.arange(n),
            "anomaly_score": scores,
            "p_value": calibration.p_values(scores, k=registered.detector.config.k),
            "is_anomaly": scores > held[-1],
            "threshold": held[-1],
            "attributions": json.dumps([{"column": "load", "nats": 1.0, "value": 2.0, "expected": 3.0}]),
            "model_version": MODEL,
        }
    )
    table.to_parquet(tmp_path / "scored.parquet", row_group_size=65_536)
    started = time.perf_counter()
    found = report(registered.detector, tmp_path / "r.html", scored=tmp_path / "scored.parquet")
    assert time.perf_counter() - started < 15
    assert (tmp_path / "r.html").stat().st_size < 300_000
    assert found["tiles"]["rows scored"] == n
    heights = found["scores"]["figures"][0]["data"]["series"][0]["heights"]
    assert sum(heights) == n
    assert found["strangest"]["cards"][0]["title"] == f"row {scores.argmax():,}"


def test_images_come_with_reconstructions_and_heat_maps(image_detector: Detector, tmp_path: Path) -> None:
    from tests.conftest import digit_images

    images, digit = digit_images()
    some = np.concatenate([np.flatnonzero(digit != 3)[:80], np.flatnonzero(digit == 3)[:20]])
    np.savez(tmp_path / "some.npz", X=images[some], y=(digit[some] == 3).astype(int))
    made = write_data_report(
        image_detector, tmp_path / "r.html", model="", recorded=recorded(""), data=tmp_path / "some.npz", label="y",
        config=ReportConfig(top=3),
    )  # fmt: skip
    twin = json.loads(made.twin.read_text())
    found = {one["key"]: one for one in twin["sections"]}
    assert len(found["data"]["figures"][0]["data"]["images"]) == 12
    cards = found["strangest"]["cards"]
    assert len(cards) == 3
    for card in cards:
        assert [i["caption"] for i in card["figures"][0]["data"]["images"]] == [
            "image",
            "reconstruction",
            "nats per pixel",
        ]
        assert len({i["source"] for i in card["figures"][0]["data"]["images"]}) == 3
    assert (tmp_path / "r.html").stat().st_size < 400_000


def test_a_scorecard_has_a_section_of_its_own(registered: tracking.Registered, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from anomaly_vae.cli import main

    make_rows(120, seed=9).to_parquet(tmp_path / "rows.parquet", index=False)
    small = ["--rows", "40", "--k", "4", "--likelihood-rows", "10", "--paths", "4", "--factor", "site"]
    file, page = str(tmp_path / "card.json"), str(tmp_path / "page.html")
    words = ["scorecard", MODEL, str(tmp_path / "rows.parquet"), *small, "--out", file]
    assert CliRunner().invoke(main, words).exit_code == 0
    done = CliRunner().invoke(main, ["report", MODEL, "--scorecard", file, "--out", page])
    assert done.exit_code == 0, done.output
    told = json.loads(Path(file).read_text())
    section = next(s for s in json.loads((tmp_path / "page.json").read_text())["sections"] if s["key"] == "scorecard")
    rows = section["tables"][0]["rows"]
    assert [row[0] for row in rows] == ["model", "data", "independent columns", "Gaussian"]
    assert [row[4] for row in rows] == pytest.approx(
        [s["neighbourhoods"]["density"] for s in told["samples"]], rel=1e-5
    )
    assert ">Scorecard</h2>" in Path(page).read_text()
    assert read_scorecard(Path(file), model=MODEL).to_dict() == {k: v for k, v in told.items() if k != "model"}
    with pytest.raises(SchemaError, match="must be this model's, 'models:/other/2', got one of 'models:/"):
        read_scorecard(Path(file), model="models:/other/2")
    without = report(registered.detector, tmp_path / "without.html")
    assert "--scorecard" in without["scorecard"]["absent"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("not json", "cannot be read as JSON"),
        ("\x00\xff", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "the whole must be"),
        ('{"data": "x"}', "rows must be .* got nothing"),
    ],
)
def test_a_file_that_is_no_scorecard_is_one_clear_line(
    registered: tracking.Registered, tmp_path: Path, text: str | None, said: str
) -> None:
    from click.testing import CliRunner

    from anomaly_vae.cli import main

    file, page = tmp_path / "card.json", tmp_path / "page.html"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    error = UnreadableDataError if text is None or "JSON" in said else SchemaError
    with pytest.raises(error, match=said):
        read_scorecard(file)
    done = CliRunner().invoke(main, ["report", MODEL, "--scorecard", str(file), "--out", str(page)])
    assert done.exit_code == 2
    assert "a scorecard must be JSON that" in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not page.exists()


def test_the_command_writes_page_and_json(registered: tracking.Registered, folder: Path) -> None:
    """In the store of the session: the command finds it by the tracking URI that is set."""
    from click.testing import CliRunner

    from anomaly_vae.cli import main

    out = folder / "out.html"
    words = ["report", f"models:/{NAME}@champion", "--data", str(folder / "bare.parquet"), "--out", str(out), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["path"], told["rows"], told["model"]) == (str(out), 400, MODEL)
    assert told["bytes"] == out.stat().st_size
    again = CliRunner().invoke(main, words)
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    assert CliRunner().invoke(main, [*words, "--overwrite"]).exit_code == 0
