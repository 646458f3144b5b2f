"""The Slurm script and the Kubernetes manifest of docs/cluster, and the commands of the pages on several ranks.

No cluster is at hand: the script runs with stand-ins for Slurm's commands, which print what they are given; the
manifest is held to Kubeflow's published models, which take more than it may say, and to the stricter schema of
tests/docs/kubernetes.py; and what torchrun gets is read by its own parser.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kubeflow_trainer_api import models
from pydantic import ValidationError
from torch.distributed.run import get_args_parser

from anchorite.errors import InputError
from anchorite.plain_yaml import yaml_value
from anchorite.train import load_recipe
from tests.docs.kubernetes import TrainingRuntime, TrainJob

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "docs" / "cluster"
SCRIPT, MANIFEST = CLUSTER / "train.sbatch", CLUSTER / "trainjob.yaml"
PAGES = [ROOT / "docs" / "how-to" / "several-gpus.md", ROOT / "docs" / "how-to" / "clusters.md"]
SLURM = {"SLURM_JOB_NODELIST": "n[7-8]", "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2"}
PRINT_WORDS = '#!/bin/bash\nprintf "%s\\n" "$@"\n'


def stand_ins(folder: Path, **programs: str) -> str:
    """A PATH that begins with programs of these texts."""
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def flags_of_train() -> set[str]:
    """All that `anchorite train` takes, by its page, which a test of its own keeps equal to the command."""
    _, _, rest = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8").partition("\n## train\n")
    return set(re.findall(r"^\| `(--[\w-]+)`", rest.partition("\n## ")[0], re.MULTILINE))


def train_words(words: list[str]) -> list[str]:
    """What follows `train` in the words that torchrun is to start; all its flags exist."""
    launched = get_args_parser().parse_args(words)
    assert (launched.module, launched.training_script) == (True, "anchorite")
    assert launched.training_script_args[0] == "train"
    rest: list[str] = launched.training_script_args[1:]
    assert {word for word in rest if word.startswith("--")} <= flags_of_train()
    return rest


def submitted(folder: Path, **more: str) -> list[str]:
    """The words that srun gets when Slurm runs the script, beginning with its own."""
    path = stand_ins(folder / "bin", srun=PRINT_WORDS, scontrol="#!/bin/bash\nseq -f n%.0f 7 20000\n")
    done = subprocess.run(
        ["bash", str(SCRIPT)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": path, "RUN": str(folder / "a run"), "DATA": "/data/my photos", "PYTHON": "py", **SLURM, **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_shell_accepts_the_script() -> None:
    checked = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert SCRIPT.read_text().startswith("#!/bin/bash\n")
    assert "set -euo pipefail" in SCRIPT.read_text()


def test_what_slurm_is_asked_for_is_one_task_a_node() -> None:
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    asked = {line.split()[1] for line in lines if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--signal=TERM@120"} <= asked
    first_command = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:]), "Slurm would not read it"


def test_the_script_starts_a_run_and_then_goes_on_with_it(tmp_path: Path) -> None:
    run = str(tmp_path / "a run")
    own, node_cores, python, dash_m, launcher, *words = submitted(
        tmp_path, SLURM_GPUS_ON_NODE="8", SLURM_CPUS_PER_TASK="112", WORKERS="13"
    )
    assert (own, node_cores) == ("--kill-on-bad-exit=1", "--cpus-per-task=112")
    assert (python, dash_m, launcher) == ("py", "-m", "torch.distributed.run")
    launched = get_args_parser().parse_args(words)
    assert (launched.nnodes, launched.nproc_per_node, launched.max_restarts) == ("2", "8", 3)
    assert (launched.rdzv_backend, launched.rdzv_id, launched.rdzv_endpoint) == ("c10d", "123456", "n7:23456")
    rest = train_words(words)
    assert rest == ["/data/my photos", "--out", run, *["--recipe", "from-scratch", "--batch", "256", "--workers", "13"]]
    load_recipe("from-scratch", {"batch": 256, "workers": 13})

    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "run.json").write_text("{}")
    assert train_words(submitted(tmp_path)[5:]) == ["--resume", run]
    assert submitted(tmp_path)[1] == "--cpus-per-task=1"


def test_the_script_ends_as_the_run_does(tmp_path: Path) -> None:
    path = stand_ins(tmp_path, srun="#!/bin/bash\nexit 6\n", scontrol="#!/bin/bash\necho n7\n")
    done = subprocess.run(["bash", str(SCRIPT)], env={"PATH": path, **SLURM}, capture_output=True, check=False)
    assert done.returncode == 6
    path = stand_ins(tmp_path, scontrol="#!/bin/bash\nexit 1\n")
    done = subprocess.run(["bash", str(SCRIPT)], env={"PATH": path, **SLURM}, capture_output=True, check=False)
    assert done.returncode == 1, "a list of nodes that cannot be read starts nothing"


def documents() -> list[dict[str, Any]]:
    """The parts of the manifest; plain YAML refuses a key that stands twice."""
    parts = MANIFEST.read_text(encoding="utf-8").split("\n---\n")
    return [yaml_value(part, f"part {number}") for number, part in enumerate(parts)]


def test_the_manifest_has_what_the_api_has_and_fits_together() -> None:
    runtime_part, job_part = documents()
    runtime, job = TrainingRuntime.model_validate(runtime_part), TrainJob.model_validate(job_part)
    reference = job.spec.runtimeRef
    assert (reference.kind, reference.name) == (runtime.kind, runtime.metadata.name)
    (replicated,) = runtime.spec.template.spec.replicatedJobs
    assert replicated.name == "node", "what Kubeflow looks for"
    assert replicated.template.metadata is not None
    assert replicated.template.metadata.labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = replicated.template.spec.template.spec
    (container,) = pod.containers
    assert container.name == "node"
    assert {mount.name for mount in container.volumeMounts} == {volume.name for volume in pod.volumes}
    assert all((one.persistentVolumeClaim is None) != (one.emptyDir is None) for one in pod.volumes)
    assert (pod.restartPolicy, replicated.template.spec.backoffLimit) == ("Never", 0), (
        "JobSet starts all again, or none"
    )
    trainer = job.spec.trainer
    assert trainer is not None
    assert trainer.resourcesPerNode is not None
    assert trainer.numNodes == runtime.spec.mlPolicy.numNodes == 2
    assert str(trainer.numProcPerNode) == trainer.resourcesPerNode.limits["nvidia.com/gpu"] == "8"
    variables = {one.name: one.value for one in trainer.env}
    assert not any(name.startswith("PET_") for name in variables), "these are Kubeflow's own, which refuses the job"
    workers, world = int(variables["WORKERS"]), trainer.numProcPerNode or 0
    assert (workers + 1) * world <= int(trainer.resourcesPerNode.requests["cpu"]), "a core for each process"
    shared = next(mount.mountPath for mount in container.volumeMounts if mount.name == "shared")
    assert all(variables[name].startswith(f"{shared}/") for name in ("DATA", "RUN"))


def lost(given: Any, kept: Any, place: str) -> list[str]:
    """The places of a part of YAML that are not in another, or otherwise."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [one for key in given for one in lost(given[key], kept.get(key), f"{place}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [one for i, pair in enumerate(zip(given, kept, strict=True)) for one in lost(*pair, f"{place}[{i}]")]
    return [] if given == kept else [place]


def test_kubeflows_own_models_take_all_of_the_manifest() -> None:
    runtime_part, job_part = documents()
    runtime = models.TrainerV1alpha1TrainingRuntime.from_dict(runtime_part)
    job = models.TrainerV1alpha1TrainJob.from_dict(job_part)
    assert runtime is not None
    assert job is not None
    assert lost(runtime_part, runtime.to_dict(), "runtime") == []
    assert lost(job_part, job.to_dict(), "job") == []
    job_part["spec"]["trainer"]["numProcPerNod"] = job_part["spec"]["trainer"].pop("numProcPerNode")
    misspelt = models.TrainerV1alpha1TrainJob.from_dict(job_part)
    assert misspelt is not None
    assert lost(job_part, misspelt.to_dict(), "job") == ["job.spec.trainer.numProcPerNod"]
    with pytest.raises(ValidationError, match="numNodes"):
        models.TrainerV1alpha1TrainJob.from_dict(
            {**job_part, "spec": {**job_part["spec"], "trainer": {"numNodes": "two"}}}
        )


def test_the_command_of_the_manifest_starts_a_run_and_then_goes_on_with_it(tmp_path: Path) -> None:
    trainer = TrainJob.model_validate(documents()[1]).spec.trainer
    assert trainer is not None
    path = stand_ins(tmp_path / "bin", torchrun=PRINT_WORDS)
    variables = {**{one.name: one.value for one in trainer.env}, "RUN": str(tmp_path), "PATH": path}

    def started() -> list[str]:
        done = subprocess.run(trainer.command, env=variables, capture_output=True, text=True, check=True)
        return train_words(done.stdout.splitlines())

    more = ["--recipe", "from-scratch", "--batch", "256", "--workers", "12"]
    assert started() == ["/shared/photos", "--out", str(tmp_path), *more]
    (tmp_path / "run.json").write_text("{}")
    assert started() == ["--resume", str(tmp_path)]


def test_torchrun_takes_from_kubeflow_what_the_command_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "NNODES": "2",
        "NPROC_PER_NODE": "8",
        "NODE_RANK": "1",
        "MASTER_ADDR": "a-node-0-0.a",
        "MASTER_PORT": "29500",
    }
    for name, value in told.items():
        monkeypatch.setenv(f"PET_{name}", value)
    launched = get_args_parser().parse_args(["-m", "anchorite", "train"])
    assert (launched.nnodes, launched.nproc_per_node, launched.master_addr) == ("2", "8", "a-node-0-0.a")
    assert (int(launched.node_rank), int(launched.master_port)) == (1, 29500)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("numProcPerNode: 8", 'numProcPerNode: "8"', "valid integer"),
        ("    torch: {}", "    torch: {numProcPerNode: auto}", "Extra inputs"),
        ("restartPolicy: Never", "restartPolicy: Always", "Input should be"),
        ("kind: TrainJob\n", "kind: PyTorchJob\n", "Input should be"),
        ("memory: 512Gi\n      limits", "memory: 512 GB\n      limits", "pattern"),
        ('cpu: "104"', "cpu: 104", "valid string"),
        ("backoffLimit: 0", "backofLimit: 0", "Extra inputs"),
        ("    numNodes: 2\n    numProc", "    numNodes: 2\n    numNodes: 3\n    numProc", "numNodes"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    old: str, new: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MANIFEST.read_text(encoding="utf-8")
    assert text.count(old) == 1
    changed = tmp_path / "trainjob.yaml"
    changed.write_text(text.replace(old, new))
    monkeypatch.setattr(sys.modules[__name__], "MANIFEST", changed)
    with pytest.raises((ValidationError, InputError), match=complaint):
        test_the_manifest_has_what_the_api_has_and_fits_together()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_pages_are_ones_that_torchrun_and_train_take(page: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    launched = [shlex.split(line.partition("torchrun ")[2]) for line in lines if "torchrun " in line]
    assert len(launched) >= 2
    for words in launched:
        rest = train_words(words)
        settings = [rest[place + 1] for place, word in enumerate(rest) if word == "--set"]
        load_recipe("small-data", {one.partition("=")[0]: yaml_value(one.partition("=")[2], one) for one in settings})


def test_the_pages_and_the_files_know_each_other() -> None:
    clusters = PAGES[1].read_text(encoding="utf-8")
    assert "(../cluster/train.sbatch)" in clusters
    assert "(../cluster/trainjob.yaml)" in clusters
    assert "tests/docs/test_cluster_files.py" in clusters
    for name in ("DATA", "RUN", "PYTHON"):
        assert f"{name}=${{{name}:-/SHARED/" in SCRIPT.read_text(encoding="utf-8")
        assert f"{name}=/shared/" in clusters
