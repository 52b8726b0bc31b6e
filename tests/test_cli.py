"""The command line as its users meet it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from anomaly_vae.cli import main
from tests.shell import run

VERBS = [
    *("train", "score", "explain", "serve", "schema", "evaluate", "calibrate", "info"),
    *("audit", "resample", "weigh", "report", "monitor"),
]
VERBS += ["compare", "scorecard", "generate", "latent"]
FAST = ["--set", "steps=100", "--set", "hidden=[16]", "--set", "latent=2"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def process(*words: object) -> list[str]:
    return [sys.executable, "-m", "anomaly_vae.cli", *map(str, words)]


def make_rows(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    load = rng.normal(100, 20, n)
    frame = pd.DataFrame({"serial": [f"{i:06d}" for i in range(n)], "load": load, "heat": 0.3 * load})
    frame["heat"] += rng.normal(0, 1, n)
    frame["site"] = rng.choice(["Oslo", "Rome", "Bern"], n)
    frame["failed"] = 0
    frame.loc[frame.index[-n // 20 :], ["heat", "failed"]] = [90.0, 1]
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and one registered model, made by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    make_rows(400, 0).to_csv(folder / "train.csv", index=False)
    make_rows(200, 1).to_csv(folder / "fresh.csv", index=False)
    make_rows(200, 2).query("failed == 0").drop(columns="failed").to_parquet(folder / "normal.parquet", index=False)
    words = ["train", "train.csv", "--name", "pumps", "--label", "failed", "--drop", "serial", "--seed", 1, *FAST]
    done = run(folder, *words)
    assert done.stdout.splitlines()[-1] == "models:/pumps/1"
    assert "AUROC" in done.stdout
    assert done.stderr == ""
    return folder


def test_training_leaves_model_and_no_checkpoint(folder: Path) -> None:
    assert (folder / "mlruns" / "mlflow.db").is_file()
    assert list((folder / "mlruns" / "checkpoints").glob("*")) == []


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS)], ids=["(none)", *VERBS])
def test_help_has_an_example(words: list[str], tmp_path: Path) -> None:
    text = run(tmp_path, *words, "--help").stdout
    assert f"anomaly-vae {' '.join(words) or 'train'}" in text
    assert "Example:" in text
    if words and words != ["serve"]:
        assert "--json" in text


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom anomaly_vae.cli import main\n"
        "try:\n    main(['score', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'mlflow', 'sklearn', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_score_writes_a_file_and_says_so(folder: Path) -> None:
    words = ["score", "models:/pumps@champion", "fresh.csv", "scored.parquet", "--key", "serial"]
    done = run(folder, *words)
    assert "200 rows scored" in done.stdout
    got = pd.read_parquet(folder / "scored.parquet")
    assert got["serial"].tolist() == make_rows(200, 1)["serial"].tolist()
    assert set(got["model_version"]) == {"models:/pumps/1"}
    refused = run(folder, *words, code=2)
    assert "--overwrite" in refused.stderr
    facts = json.loads(run(folder, *words, "--overwrite", "--json", "--fdr", 0.2).stdout)
    assert facts["rows"] == 200
    assert facts["flagged"] == pd.read_parquet(folder / "scored.parquet")["is_anomaly"].sum()
    said = run(folder, *words, "--overwrite", "--mc-se", 1e-6).stdout
    assert "200 log likelihoods did not reach a standard error of 1e-06." in said
    assert not pd.read_parquet(folder / "scored.parquet")["log_likelihood_reached"].any()


def test_a_folder_is_scored_into_a_folder_and_again_from_where_it_stood(folder: Path) -> None:
    (folder / "days").mkdir()
    for day in (1, 2):
        make_rows(100, day).to_parquet(folder / "days" / f"{day}.parquet", index=False)
    words = ["score", "models:/pumps@champion", "days", "scored_days", "--key", "serial"]
    done = run(folder, *words)
    assert "200 rows of 2 parts scored by models:/pumps/1, 200 of them now" in done.stdout
    got = pd.read_parquet(folder / "scored_days")
    assert got["serial"].tolist() == [*make_rows(100, 1)["serial"], *make_rows(100, 2)["serial"]]
    again = run(folder, *words)
    assert "2 of 2 parts were finished before." in again.stderr
    assert "0 of them now" in again.stdout
    refused = run(folder, *words, "--alpha", 0.1, code=2)
    assert "setting alpha: 0.05 before, 0.1 now" in refused.stderr
    assert "--overwrite" in refused.stderr
    facts = json.loads(run(folder, *words, "--alpha", 0.1, "--overwrite", "--json").stdout)
    assert (facts["rows"], facts["resumed"], facts["errors"], facts["listed"]) == (200, 0, 0, None)
    lines = (folder / "days" / "2.parquet", folder / "days" / "3.csv")
    spoilt = pd.read_parquet(lines[0]).astype({"load": object})
    spoilt.loc[4, "load"] = "much"
    spoilt.to_csv(lines[1], index=False)
    lines[0].unlink()
    assert "in '3.csv': column 'load'" in run(folder, *words, "--overwrite", code=2).stderr
    said = run(folder, *words, "--on-error", "quarantine")
    assert "1 rows or files could not be scored; scored_days/_errors.parquet says why." in said.stderr
    assert pd.read_parquet(folder / "scored_days" / "_errors.parquet")["row"].tolist() == [4]


@pytest.mark.parametrize("output", ["many.parquet", "many"])
def test_more_flags_than_allowed_are_exit_code_3(output: str, folder: Path) -> None:
    words = ["score", "models:/pumps/1", "fresh.csv", output, "--alpha", 0.1, "--overwrite"]
    for most, code in ((0.9, 0), (200, 0), (0.001, 3), (2, 3)):
        done = run(folder, *words, "--max-flagged", most, code=code)
        assert ("More rows are flagged" in done.stderr) == (code == 3)
        assert len(pd.read_parquet(folder / output)) == 200  # whole all the same


def test_absent_columns_are_scored_on_demand(folder: Path) -> None:
    make_rows(50, 3).drop(columns="site").to_csv(folder / "less.csv", index=False)
    make_rows(50, 3).assign(site=None).to_csv(folder / "empty.csv", index=False)
    refused = run(folder, "score", "models:/pumps/1", "less.csv", "less.parquet", code=2)
    assert "column 'site' absent" in refused.stderr
    assert "--allow-missing" in refused.stderr
    done = run(folder, "score", "models:/pumps/1", "less.csv", "less.parquet", "--allow-missing")
    assert "absent columns count as missing cells: 'site'" in done.stderr
    run(folder, "score", "models:/pumps/1", "empty.csv", "empty.parquet")
    got, want = (pd.read_parquet(folder / f"{name}.parquet") for name in ("less", "empty"))
    pd.testing.assert_frame_equal(got, want)


def test_explain_is_readable_and_adds_up(folder: Path) -> None:
    text = run(folder, "explain", "models:/pumps@champion", "fresh.csv", "--top", 2).stdout
    assert text.count("nats, p = ") == 2
    assert "heat" in text
    assert "expected" in text
    explained = json.loads(run(folder, "explain", "models:/pumps/1", "fresh.csv", "--top", 3, "--json").stdout)
    assert len(explained) == 3
    for row in explained:
        assert row["row"] >= 190  # the rows whose heat does not fit their load
        assert row["attributions"][0]["column"] == "heat"
        assert sum(part["nats"] for part in row["attributions"]) == pytest.approx(row["anomaly_score"], abs=1e-4)


def test_evaluate(folder: Path) -> None:
    words = ["evaluate", "models:/pumps/1", "fresh.csv", "--label", "failed"]
    text = run(folder, *words).stdout
    assert all(word in text for word in ("AUROC", "average precision", "false alarms", "found"))
    facts = json.loads(run(folder, *words, "--json").stdout)
    assert facts["ranking"]["auroc"] > 0.9
    assert facts["false_alarms"]["n"] == 190
    apart = json.loads(run(folder, *words, "--group-by", "serial", "--json").stdout)
    assert apart["ranking"]["n_groups"] == apart["false_alarms"]["n"] + apart["detections"]["n"] == 200
    assert apart["false_alarms"]["rate"] == facts["false_alarms"]["rate"]
    assert "by 3 groups of 'site'" in run(folder, *words, "--group-by", "site").stdout
    assert "'nowhere'" in run(folder, *words, "--group-by", "nowhere", code=2).stderr


def test_calibrate_adds_a_version(folder: Path) -> None:
    done = run(folder, "calibrate", "models:/pumps/1", "normal.parquet")
    uri = done.stdout.splitlines()[-1]
    assert uri.startswith("models:/pumps/")
    assert uri != "models:/pumps/1"
    assert json.loads(run(folder, "info", uri, "--json").stdout)["calibration"]["rows"] == 190
    assert "champion stays" in done.stdout


def test_info(folder: Path) -> None:
    text = run(folder, "info", "models:/pumps@champion").stdout
    assert "models:/pumps/1" in text
    assert "heat" in text
    assert "steps=100" in text


def test_schema_goes_back_into_training(folder: Path) -> None:
    toml = run(folder, "schema", "train.csv").stdout
    assert '"heat" = "continuous"' in toml
    (folder / "pumps.toml").write_text(toml.replace('"site" = "categorical"', '"site" = "ignored"'))
    words = ["--name", "edited", "--label", "failed", "--config", "pumps.toml", "--json"]
    uri = json.loads(run(folder, "train", "train.csv", *words, *FAST).stdout)["uri"]
    kinds = {c["name"]: c["kind"] for c in json.loads(run(folder, "info", uri, "--json").stdout)["columns"]}
    assert kinds["site"] == "ignored"
    assert "failed" not in kinds


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "absent.csv", "--name", "x"], "absent.csv"),
        (["train", "train.csv", "--name", "a/b"], "a/b"),
        (["train", "train.csv", "--name", "x", "--set", "lattent=3"], "Did you mean 'latent'?"),
        (["train", "train.csv", "--name", "x", "--set", "latent"], "key=value"),
        (["train", "train.csv", "--name", "x", "--seed", "-1"], "seed"),
        (["train", "train.csv", "--name", "x", "--label", "faild"], "Did you mean 'failed'?"),
        (["train", "train.csv", "--name", "x", "--drop", "none"], "none"),
        (["train", "train.csv", "--name", "x", "--config", "no.toml"], "no.toml"),
        (["train", "train.csv"], "--name"),
        (["train", "empty.csv", "--name", "x"], "empty"),
        (["train", "header.csv", "--name", "x"], "header"),
        (["train", "one.csv", "--name", "x"], "at least"),
        (["train", "words.csv", "--name", "x"], "'heat'"),
        (["score", "models:/pumps/1", "words.csv", "o.csv"], "'heat'"),
        (["score", "models:/pumps/1", "infinite.csv", "o.csv"], "infinity"),
        (["score", "models:/pumps/1", "one.csv", "o.csv", "--alpha", "0.1", "--fdr", "0.1"], "both"),
        (["score", "models:/pumps/1", "one.csv", "o.csv", "--alpha", "2"], "alpha"),
        (["score", "models:/pumps/1", "one.csv", "o.csv", "--k", "5"], "k must"),
        (["score", "models:/pumps/1", "fresh.csv", "o.xls"], "o.xls"),
        (["score", "models:/pumps/1", "fresh.csv", "o.csv", "--key", "nokey"], "'nokey'"),
        (["score", "models:/nobody/1", "fresh.csv", "o.csv"], "models:/nobody/1"),
        (["serve", "models:/nobody/1"], "models:/nobody/1"),
        (["evaluate", "models:/pumps/1", "fresh.csv", "--label", "serial"], "label"),
        (["explain", "models:/pumps/1", "fresh.csv", "--top", "0"], "top"),
        (
            ["score", "models:/pumps/1", "fresh.csv", "o.csv", "--processes", "2"],
            "--processes must go with an output folder",
        ),
        (["score", "models:/pumps/1", "fresh.csv", "o.csv", "--engine", "spark"], "--engine spark must go with"),
        (["score", "models:/pumps/1", "fresh.csv", "o", "--master", "local"], "--master must go with --engine spark"),
        (["score", "models:/pumps/1", "fresh.csv", "o", "--max-flagged", "-1"], "max_flagged must be"),
        (
            ["score", "models:/pumps/1", "fresh.csv", "o", "--processes", "2", "--workers", "2"],
            "workers must be left out",
        ),
        (["flub"], "flub"),
    ],
)
def test_a_callers_mistake_is_one_message_and_exit_2(words: list[str], said: str, folder: Path) -> None:
    (folder / "empty.csv").write_text("")
    (folder / "header.csv").write_text("load,heat,site\n")
    (folder / "one.csv").write_text("load,heat,site\n100,30,Oslo\n")
    lines = ["load,heat,site", *["100,30,Oslo", "100,hot,Oslo"] * 2, *["100,30,Oslo"] * 60]
    (folder / "words.csv").write_text("\n".join(lines) + "\n")
    (folder / "infinite.csv").write_text("load,heat,site\n100,inf,Oslo\n")
    done = run(folder, *words, code=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert not (folder / "o.csv").exists()


def test_a_missing_column_is_shown_as_a_diff(folder: Path) -> None:
    (folder / "renamed.csv").write_text("load,heats,site\n100,30,Oslo\n")
    text = run(folder, "score", "models:/pumps/1", "renamed.csv", "o.csv", code=2).stderr
    assert "- heat" in text
    assert "+ heats" in text


def test_warnings_are_one_tidy_line_each(folder: Path) -> None:
    done = run(folder, "score", "models:/pumps/1", "fresh.csv", "warned.csv")
    assert done.stderr.splitlines() == ["Warning: columns unknown to the model were ignored: 'serial', 'failed'"]


def test_an_unexpected_error_is_one_line_and_exit_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_vae.serving import tracking

    monkeypatch.setattr(tracking, "load", lambda uri: 1 / 0)
    said = run(folder, "info", "models:/pumps/1", code=1).stderr
    assert said.startswith("Unexpected ZeroDivisionError: division by zero (`anomaly-vae --traceback")
    assert len(said.splitlines()) == 1
    with_stack = CliRunner().invoke(main, ["--traceback", "info", "models:/pumps/1"])
    assert with_stack.exit_code == 1
    assert "Traceback" in with_stack.stderr
    assert with_stack.stderr.splitlines()[-1] == "Unexpected ZeroDivisionError: division by zero"


def test_a_model_outside_its_folder_is_explained(tmp_path: Path) -> None:
    command = process("info", "models:/pumps/1")
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "MLFLOW_TRACKING_URI" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_refused_before_anything_starts(folder: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in run(folder, "serve", "models:/pumps/1", "--port", port, code=2).stderr


def heard() -> None:
    """For a child: Ctrl-C is heard there even where the parent was started in the background, deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped_in_training(at: Path, words: list[object], sign: signal.Signals, *, after: float = 0) -> tuple[int, str]:
    """Start a training, send a signal some seconds after its first checkpoint, and return exit code and messages."""
    with subprocess.Popen(
        process(*words), cwd=at, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as training:
        deadline = time.monotonic() + 300
        while not list(at.glob("mlruns/checkpoints/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(after)
        training.send_signal(sign)
        assert training.stderr is not None
        said = training.stderr.read()
    return training.returncode, said


def scores_of_long(at: Path, fresh: Path) -> pd.Series:
    run(at, "score", "models:/long/1", fresh, at / "out.parquet")
    return pd.read_parquet(at / "out.parquet")["anomaly_score"]


def long_training(folder: Path, steps: int) -> list[object]:
    words = ["train", folder / "train.csv", "--name", "long", "--drop", "serial", "--drop", "failed"]
    return [*words, "--set", f"steps={steps}", "--set", "patience=1000", "--set", "hidden=[64]"]


@pytest.mark.whole
def test_interrupted_training_goes_on_to_the_same_model(folder: Path, tmp_path: Path) -> None:
    words = long_training(folder, 4000)
    code, said = stopped_in_training(tmp_path, words, signal.SIGINT)
    assert code == 130, said
    assert "checkpoint stands at mlruns/checkpoints/long-" in said
    resumed = run(tmp_path, *words)
    assert "Resuming" in resumed.stderr
    assert list(tmp_path.glob("mlruns/checkpoints/*")) == []
    whole = tmp_path / "whole"
    whole.mkdir()
    run(whole, *words)
    scores = [scores_of_long(at, folder / "fresh.csv") for at in (tmp_path, whole)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)  # the processes may use different thread counts


@pytest.mark.slow
def test_kill_9_in_training_goes_on_to_the_same_model_five_times(folder: Path, tmp_path: Path) -> None:
    """Killed by SIGKILL once or twice at random moments, and started again with the same command."""
    words = long_training(folder, 24_000)
    rng, killed = np.random.default_rng(0), 0
    for name in ("whole", *"12345"):
        (tmp_path / name).mkdir()
        for _ in range(0 if name == "whole" else 1 + int(name) % 2):
            code, _ = stopped_in_training(tmp_path / name, words, signal.SIGKILL, after=rng.uniform(0, 8))
            killed += code == -signal.SIGKILL
        run(tmp_path / name, *words)
        assert list(tmp_path.glob(f"{name}/mlruns/checkpoints/*")) == []
    assert killed == 8, "a training ended before it was killed"
    want = scores_of_long(tmp_path / "whole", folder / "fresh.csv")
    for name in "12345":
        np.testing.assert_allclose(scores_of_long(tmp_path / name, folder / "fresh.csv"), want, rtol=1e-5)


@pytest.mark.slow
def test_project_entry_points_run(folder: Path) -> None:
    """`mlflow run` gives the verb its run: parameters, metrics and the model belong to it."""
    project = Path(__file__).parents[1] / "pipelines"
    environment = ENVIRONMENT | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    command = [sys.executable, "-m", "mlflow", "run", str(project), "--env-manager", "local", "-e"]
    train = [
        "train",
        "-P",
        f"data={folder / 'train.csv'}",
        "-P",
        "name=project",
        "-P",
        "label=failed",
        "-P",
        "drop=serial",
    ]
    score = ["score", "-P", "model=models:/project@champion", "-P", f"input={folder / 'fresh.csv'}"]
    score += ["-P", f"output={folder / 'project.parquet'}", "-P", "alpha=0.1"]
    for words in (train, score):
        subprocess.run([*command, *words], cwd=folder, env=environment, check=True)
    assert len(pd.read_parquet(folder / "project.parquet")) == 200
