"""What a manifest for Kubeflow Trainer may say, written down from its public API and those that it is built on.

TrainJob and TrainingRuntime as of trainer.kubeflow.org/v1alpha1 in release 2.2 (pkg/apis/trainer/v1alpha1), JobSet
v1alpha2, and of Job and Pod the fields that a training job may want. What is not listed is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Name = Annotated[StrictStr, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[StrictStr, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?$")]
Labels = dict[StrictStr, StrictStr]


class Strict(BaseModel):
    """Nothing but the fields listed."""

    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: Labels = {}
    annotations: Labels = {}


class TemplateMetadata(Strict):
    labels: Labels = {}
    annotations: Labels = {}


class Variable(Strict):
    name: Annotated[StrictStr, Field(pattern=r"^[^=]+$")]
    value: StrictStr = ""
    valueFrom: dict[str, Any] | None = None


class Resources(Strict):
    requests: dict[StrictStr, Quantity] = {}
    limits: dict[StrictStr, Quantity] = {}


class Mount(Strict):
    name: Name
    mountPath: Annotated[StrictStr, Field(pattern="^/[^:]*$")]
    readOnly: StrictBool = False
    subPath: StrictStr = ""


class Capabilities(Strict):
    add: list[StrictStr] = []
    drop: list[StrictStr] = []


class ContainerSecurity(Strict):
    allowPrivilegeEscalation: StrictBool | None = None
    readOnlyRootFilesystem: StrictBool | None = None
    capabilities: Capabilities | None = None


class Container(Strict):
    name: Name
    image: StrictStr
    command: list[StrictStr] = []
    args: list[StrictStr] = []
    env: list[Variable] = []
    resources: Resources | None = None
    securityContext: ContainerSecurity | None = None
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: StrictStr
    readOnly: StrictBool = False


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class PodSecurity(Strict):
    runAsNonRoot: StrictBool | None = None
    runAsUser: StrictInt | None = None
    runAsGroup: StrictInt | None = None
    fsGroup: StrictInt | None = None


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    restartPolicy: Literal["Never", "OnFailure"] | None = None  # the third kind is refused in a Job
    terminationGracePeriodSeconds: Annotated[StrictInt, Field(ge=0)] = 30
    securityContext: PodSecurity | None = None
    volumes: list[Volume] = []
    nodeSelector: Labels = {}


class PodTemplate(Strict):
    metadata: TemplateMetadata | None = None
    spec: PodSpec


class JobSpec(Strict):
    backoffLimit: Annotated[StrictInt, Field(ge=0)] = 6
    completions: StrictInt | None = None
    parallelism: StrictInt | None = None
    template: PodTemplate


class JobTemplate(Strict):
    metadata: TemplateMetadata | None = None
    spec: JobSpec


class ReplicatedJob(Strict):
    name: Name
    replicas: Annotated[StrictInt, Field(ge=0)] = 1
    template: JobTemplate


class FailurePolicy(Strict):
    maxRestarts: Annotated[StrictInt, Field(ge=0)] = 0
    restartStrategy: Literal["Recreate", "BlockingRecreate", "InPlaceRestart"] = "Recreate"
    rules: list[dict[str, Any]] = []


class JobSetSpec(Strict):
    replicatedJobs: list[ReplicatedJob]
    failurePolicy: FailurePolicy | None = None
    successPolicy: dict[str, Any] | None = None
    network: dict[str, Any] | None = None


class JobSetTemplate(Strict):
    metadata: TemplateMetadata | None = None
    spec: JobSetSpec


class Torch(Strict):
    """Empty since release 2.2, which took `numProcPerNode` out of it."""


class MLPolicy(Strict):
    numNodes: Annotated[StrictInt, Field(ge=1)] = 1
    torch: Torch


class TrainingRuntimeSpec(Strict):
    mlPolicy: MLPolicy
    template: JobSetTemplate


class TrainingRuntime(Strict):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"]
    metadata: Metadata
    spec: TrainingRuntimeSpec


class RuntimeRef(Strict):
    name: Name
    apiGroup: Literal["trainer.kubeflow.org"] = "trainer.kubeflow.org"
    kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = "ClusterTrainingRuntime"


class Trainer(Strict):
    image: StrictStr | None = None
    command: list[StrictStr] = []
    args: list[StrictStr] = []
    env: list[Variable] = []
    numNodes: Annotated[StrictInt, Field(ge=1)] | None = None
    numProcPerNode: Annotated[StrictInt, Field(ge=1)] | None = None
    resourcesPerNode: Resources | None = None


class TrainJobSpec(Strict):
    runtimeRef: RuntimeRef
    trainer: Trainer | None = None
    suspend: StrictBool = False
    activeDeadlineSeconds: Annotated[StrictInt, Field(ge=1)] | None = None


class TrainJob(Strict):
    apiVersion: Literal["trainer.kubeflow.org/v1alpha1"]
    kind: Literal["TrainJob"]
    metadata: Metadata
    spec: TrainJobSpec
