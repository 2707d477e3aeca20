"""tools/launch/kubernetes.yaml: the fields of a JobSet, and values that agree with one another."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from gigpo_mega.config.load import load_config

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "tools" / "launch"


def record(required: str, **properties: Any) -> dict[str, Any]:
    """A schema of an object with these fields and no others."""
    fields = {"properties": properties, "required": required.split(), "additionalProperties": False}
    return {"type": "object", **fields}


TEXT, COUNT = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 1}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
ENTRY = {"oneOf": [
    record("name value", name=TEXT, value=TEXT),
    record("name valueFrom", name=TEXT,
           valueFrom=record("fieldRef", fieldRef=record("fieldPath", fieldPath=TEXT))),
]}  # fmt: skip
VOLUME = {"oneOf": [
    record("name emptyDir", name=TEXT, emptyDir=record("", medium={"const": "Memory"})),
    record("name persistentVolumeClaim", name=TEXT,
           persistentVolumeClaim=record("claimName", claimName=TEXT)),
]}  # fmt: skip
CONTAINER = record(
    "name image command", name=TEXT, image=TEXT, workingDir=TEXT, command=TEXTS, args=TEXTS,
    env={"type": "array", "items": ENTRY},
    resources=record("limits", limits=record("nvidia.com/gpu", **{"nvidia.com/gpu": COUNT})),
    volumeMounts={"type": "array", "items": record("name mountPath", name=TEXT, mountPath=TEXT)},
)  # fmt: skip
POD = record(
    "containers restartPolicy", restartPolicy={"enum": ["Never", "OnFailure"]},
    terminationGracePeriodSeconds=COUNT, securityContext=record("fsGroup", fsGroup=COUNT),
    containers={"type": "array", "items": CONTAINER, "minItems": 1},
    volumes={"type": "array", "items": VOLUME},
)  # fmt: skip
JOB = record(
    "template", parallelism=COUNT, completions=COUNT, completionMode={"const": "Indexed"},
    backoffLimit={"type": "integer", "minimum": 0}, template=record("spec", spec=POD),
)  # fmt: skip
# The part of the JobSet v1alpha2 and batch/v1 interfaces that the manifest uses.
JOBSET = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=record("name", name=TEXT),
    spec=record(
        "replicatedJobs",
        network=record("", enableDNSHostnames={"type": "boolean"}),
        failurePolicy=record("", maxRestarts={"type": "integer", "minimum": 0}),
        replicatedJobs={
            "type": "array", "minItems": 1,
            "items": record("name template", name=TEXT, replicas=COUNT, template=record("spec", spec=JOB)),
        },
    ),
)  # fmt: skip


@pytest.fixture
def manifest() -> Any:
    return yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())


def test_the_manifest_has_the_fields_of_a_jobset(manifest: Any) -> None:
    jsonschema.validate(manifest, JOBSET)


@pytest.mark.parametrize(
    "path",
    ["spec.replicatedJobs.0.name", "spec.replicatedJobs.0.template.spec.template", "metadata.name", "kind"],
)
def test_a_missing_field_and_a_mistyped_one_are_noticed(path: str, manifest: Any) -> None:
    *parents, name = [int(part) if part.isdigit() else part for part in path.split(".")]
    for wrong in ({}, {f"{name}s": "x"}):
        broken = copy.deepcopy(manifest)
        inner = broken
        for part in parents:
            inner = inner[part]
        inner.pop(name)
        inner.update(wrong)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, JOBSET)


def test_nodes_names_and_times_agree(manifest: Any) -> None:
    [replicated] = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    given = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}
    assert job["parallelism"] == job["completions"] == int(given["NODES"]) == 2
    name = manifest["metadata"]["name"]
    assert given["HEAD"] == f"{name}-{replicated['name']}-0-0.{name}"  # JobSet, job, its index, the pod's
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert given["NODE"] == {"fieldRef": {"fieldPath": index}}
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    script = LAUNCH / "torchrun.sh"
    assert [ROOT / word for word in container["command"]] == [script]
    assert all(re.search(rf"\b{variable}\b", script.read_text()) for variable in given)
    patience = re.search(r"SHUTDOWN_TIMEOUT:-(\d+)", script.read_text())
    assert patience
    assert pod["terminationGracePeriodSeconds"] > int(patience[1])


def test_the_pods_are_those_of_the_image(manifest: Any) -> None:
    """Its interpreter is in the .venv of the working directory, and its user may write to the claim."""
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    image = (ROOT / "Dockerfile").read_text()
    assert f"\nWORKDIR {pod['containers'][0]['workingDir']}\n" in image
    assert f"\nARG UID={pod['securityContext']['fsGroup']}\n" in image


def test_the_recipe_fits_the_nodes(manifest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    cfg = load_config(container["args"], "gigpo-mega train")
    world = job["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert cfg.resume == "auto"
    assert cfg.parallel.data(world) * cfg.parallel.tensor * cfg.parallel.pipeline == world
    assert str(cfg.output).startswith("/shared/")
