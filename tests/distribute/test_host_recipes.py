"""The recipes for clusters, as far as they can be tried without one."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jgraph as jg

ROOT = Path(jg.__file__).parents[1]
SCRIPTS = ROOT / "scripts"
SLURM, JOBSET, KUBEFLOW = (SCRIPTS / n for n in ("slurm.sbatch", "jobset.yaml", "kubeflow.yaml"))

# Stands for srun: starts two tasks with the variables that SLURM gives each, and returns the
# highest of their exit codes.
SRUN = """\
import os, subprocess, sys
tasks = [
    subprocess.Popen(
        sys.argv[2:],
        env={**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
             "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"},
    )
    for i in range(2)
]
raise SystemExit(max(task.wait() for task in tasks))
"""
SCRIPT = """\
import jgraph as jg
jg.distribute.initialize()
import sys
import jax
print(f"process {jax.process_index()} of {jax.process_count()}", flush=True)
jg.distribute.wait_for_all("the end")
sys.exit(int(sys.argv[1]))
"""


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(command: list[str], place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **flags, **variables}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=place, check=False
    )


def test_the_batch_script_is_bash_and_short() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    assert all(len(p.read_text().splitlines()) <= 60 for p in (SLURM, JOBSET, KUBEFLOW))


def test_the_batch_script_must_be_started_by_sbatch(tmp_path: Path) -> None:
    found = run(["bash", str(SLURM), "train.py"], tmp_path)
    assert found.returncode != 0
    assert "must be started by sbatch" in found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("code", "requeued"), [(0, False), (42, True), (3, False)])
def test_the_batch_script_with_the_variables_of_slurm(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    executable(tmp_path / "srun", f"#!{sys.executable}\n{SRUN}")
    executable(tmp_path / "scontrol", f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    (tmp_path / "train.py").write_text(SCRIPT)
    found = run(
        ["bash", str(SLURM), "train.py", str(code)],
        tmp_path,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        PYTHON=sys.executable,
        SLURM_JOB_ID=str(os.getpid()),  # JAX makes the port of it
        SLURM_NTASKS="2",
    )
    assert found.returncode == code, found.stderr
    assert sorted(re.findall(r"process \d of \d", found.stdout)) == [
        "process 0 of 2",
        "process 1 of 2",
    ]
    assert (tmp_path / "requeued").exists() == requeued


def test_the_shell_of_kubeflow_hands_over_what_the_operator_sets(tmp_path: Path) -> None:
    block = (
        KUBEFLOW.read_text().split("                - |\n")[1].split("              resources")[0]
    )
    executable(
        tmp_path / "python",
        '#!/bin/sh\necho "$JGRAPH_COORDINATOR $JGRAPH_NUM_PROCESSES $JGRAPH_PROCESS_ID $@"\n',
    )
    found = run(
        ["sh", "-c", block],
        tmp_path,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        COORDINATOR_ADDRESS="worker-0",
        COORDINATOR_PORT="6666",
        NUM_PROCESSES="2",
        PROCESS_ID="1",
    )
    assert found.stdout.strip() == "worker-0:6666 2 1 train.py"


def test_the_job_set_starts_as_many_hosts_as_it_asserts() -> None:
    text = JOBSET.read_text()
    (asserted,) = re.findall(r'name: JGRAPH_NUM_PROCESSES.*\n\s+value: "(\d+)"', text)
    counts = re.findall(r"(?:parallelism|completions): (\d+)", text)
    rows, columns = map(int, re.findall(r"topology: (\d+)x(\d+)", text)[0])
    (chips,) = map(int, re.findall(r"google.com/tpu: (\d+)", text))
    assert {asserted, str(rows * columns // chips)} == set(counts) == {asserted}


@pytest.mark.parametrize("path", [JOBSET, KUBEFLOW], ids=lambda path: path.stem)
@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="no parser of YAML here")
def test_the_manifests_are_yaml(path: Path) -> None:
    import yaml

    found = yaml.safe_load(path.read_text())
    assert {"apiVersion", "kind", "metadata", "spec"} == found.keys()
