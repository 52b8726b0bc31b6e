"""The rooms, their doors, and what may not be in any of them."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "anomaly_vae").rglob("*.py"))
PIPELINES = sorted((ROOT / "pipelines").rglob("*.py"))

DOORS = {
    "uvicorn": ("anomaly_vae/serving/server.py",),
    "h11": ("anomaly_vae/serving/server.py",),
    "mlflow": ("anomaly_vae/serving/", "anomaly_vae/cli/", "pipelines/"),
    "matplotlib": ("anomaly_vae/reporting/",),
    "jinja2": ("anomaly_vae/reporting/",),
    "click": ("anomaly_vae/cli/", "pipelines/"),
    "zuko": ("anomaly_vae/models/flow.py",),
    "pyspark": ("anomaly_vae/serving/spark.py",),
}
"""Which rooms may import a library; elsewhere it is not to be found, lazily or not."""

UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "skops",
}
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("torch.load", "torch.save", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle"),
}
GLOBAL_STATE = {
    *(
        "torch.manual_seed",
        "torch.set_num_threads",
        "torch.set_default_dtype",
        "np.random.seed",
        "numpy.random.seed",
    ),
    *("random.seed", "os.putenv", "os.environ.update", "os.environ.setdefault", "os.environ.pop", "os.chdir"),
    *(
        "logging.basicConfig",
        "logging.disable",
        "matplotlib.use",
        "warnings.resetwarnings",
    ),
}


RESTORED = {"anomaly_vae/models/threads.py": {"torch.set_num_threads"}}
"""Changes that a context manager takes back."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Top-level names of all absolute imports, at any depth of the code, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def in_fresh_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_walk_finds_the_project() -> None:
    """A check over files that finds no file passes for nothing."""
    assert len(PACKAGE) > 20
    assert len(PIPELINES) >= 2
    assert any("torch" in dict(imports(p)) for p in PACKAGE)


def test_layers_hold() -> None:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
    assert "0 kept" not in done.stdout


@pytest.mark.parametrize("library", DOORS)
def test_a_library_stays_behind_its_door(library: str) -> None:
    strays = [
        f"{name_of(path)}:{line}"
        for path in PACKAGE + PIPELINES
        for name, line in imports(path)
        if name == library and not name_of(path).startswith(DOORS[library])
    ]
    assert not strays, f"{library} is imported outside {DOORS[library]}: {strays}"


def test_nothing_can_run_code_out_of_a_file() -> None:
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in PACKAGE + PIPELINES
        for name, line in imports(path)
        if name in UNSAFE_MODULES
    ]
    for path in PACKAGE + PIPELINES:
        for name, call in calls(path):
            options = {k.arg: ast.unparse(k.value) for k in call.keywords}
            unsafe = name in UNSAFE_CALLS or options.get("shell") == "True" or options.get("allow_pickle") == "True"
            if unsafe:
                found.append(f"{name_of(path)}:{call.lineno} {name}")
    assert not found


def test_nothing_changes_the_state_of_the_whole_process() -> None:
    found = []
    for path in PACKAGE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        forks = [n for n in ast.walk(tree) if isinstance(n, ast.With) and "fork_rng" in ast.unparse(n.items[0])]
        restored = {id(inner) for fork in forks for inner in ast.walk(fork)}  # a seed that is taken back
        for node in ast.walk(tree):
            changes = GLOBAL_STATE - RESTORED.get(name_of(path), set())
            if isinstance(node, ast.Call) and ast.unparse(node.func) in changes and id(node) not in restored:
                found.append(f"{name_of(path)}:{node.lineno} {ast.unparse(node.func)}")
            targets = node.targets if isinstance(node, (ast.Assign, ast.Delete)) else []
            found += [f"{name_of(path)}:{t.lineno}" for t in targets if ast.unparse(t).startswith("os.environ")]
    assert not found


def test_modules_stay_readable() -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE + PIPELINES}
    assert {name: n for name, n in lengths.items() if n > 450} == {}


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, json, anomaly_vae; anomaly_vae.TrainConfig(); print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(in_fresh_process(program)))
    heavy = {"mlflow", "matplotlib", "click", "torch", "pandas", "numpy", "sklearn", "scipy", "pyarrow"}
    assert not loaded & heavy
    assert "anomaly_vae.options" in loaded


def test_scoring_from_the_registry_loads_nothing_that_only_training_or_reports_need() -> None:
    """Every call at the shell pays for what it imports: a second for scikit-learn, another for sympy."""
    program = """
import json, sys
import torch
from anomaly_vae.models.likelihoods import Categories
from anomaly_vae.serving import tracking
logits, unseen = torch.zeros(2, 3), torch.full((1,), 0.1)
Categories(logits, (3,), unseen).log_prob(torch.zeros(2, 1))
print(json.dumps(sorted(sys.modules)))
"""
    loaded = set(json.loads(in_fresh_process(program)))
    assert "anomaly_vae.detection.detector" in loaded
    assert not loaded & {"sklearn", "scipy.stats", "matplotlib", "sympy"}


def test_help_of_every_verb_loads_nothing_heavy() -> None:
    program = """
import json, sys
from click.testing import CliRunner
from anomaly_vae.cli import main
verbs = sorted(main.commands)
codes = [CliRunner().invoke(main, [*verb, "--help"]).exit_code for verb in [[], *([v] for v in verbs)]]
print(json.dumps([verbs, codes, sorted(sys.modules)]))
"""
    verbs, codes, loaded = json.loads(in_fresh_process(program).splitlines()[-1])
    assert {"train", "score", "explain", "serve", "schema", "evaluate", "calibrate", "info"} <= set(verbs)
    assert codes == [0] * (len(verbs) + 1)
    assert not set(loaded) & {"torch", "mlflow", "pandas", "sklearn", "scipy", "pyarrow", "matplotlib"}
