"""The configuration of a run: one tree of pydantic models."""

from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from multas_ray.storage import StoragePath

Task = Literal["det", "seg"]
TASKS: tuple[Task, ...] = ("det", "seg")
Protocol = Literal["coco", "voc2007", "voc2012"]
DistilledOn = Literal["missing", "annotated", "all"]
"""Rows to distil a task on: those without its annotation, those with it, or all."""


class Section(BaseModel):
    """A part of the configuration. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_cpus(cls, tree: Any) -> Any:
        """Resources that are given without `cpu` have the CPUs of their place, such as a teacher's 0.5."""
        given = tree.get("resources") if isinstance(tree, dict) else None
        if not isinstance(given, dict) or "resources" not in cls.model_fields:
            return tree
        return tree | {"resources": {"cpu": cls.model_fields["resources"].default.cpu} | given}


class Resources(Section):
    """What one Ray actor or task reserves, and where. CPUs are admission tokens: threads are set apart from them."""

    cpu: float = Field(1.0, ge=0)
    """Logical CPUs."""
    gpu: float = Field(0.0, ge=0)
    """GPUs, or a share of one."""
    custom: dict[str, float] = {}
    """Custom resources, e.g. {teacher_node: 0.01}."""
    labels: dict[str, str] = {}
    """Labels that the node must have, e.g. {role: teacher} or {ray.io/accelerator-type: "in(A100,H100)"}; Ray's
    conditions are `a`, `!a`, `in(a,b)` and `!in(a,b)`."""

    def options(self) -> dict[str, Any]:
        """As Ray's actors and tasks take them."""
        selector = {"label_selector": self.labels} if self.labels else {}
        return {"num_cpus": self.cpu, "num_gpus": self.gpu, "resources": self.custom, **selector}


class AugmentConfig(Section):
    """Training augmentation, applied alike to pixels, boxes and masks."""

    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""
    zoom_out: float = Field(0.3, ge=0, le=1)
    """Probability to paste the image on a canvas up to twice its sides."""
    crop: float = Field(0.5, ge=0, le=1)
    """Probability of a crop that keeps a minimum IoU with some box (SSD); a random resized crop without boxes."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""


class DataConfig(Section):
    """The data set and how it is streamed."""

    path: str
    """Data set folder: local, or any URI that pyarrow reads."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to evaluate on."""
    size: int | list[int] = 320
    """Side of the square network input in pixels, a multiple of 32; a list trains multi-scale, one size a batch
    (evaluation uses the last one)."""
    multi_scale_until: float = Field(1.0, ge=0, le=1)
    """Part of the training after which a list of sizes gives way to its last one."""
    mixing: Literal["natural"] | dict[Literal["det", "seg", "both", "none"], int] = "natural"
    """`natural`: rows in the proportions of the data set. A mapping fixes how many rows of each task mask are in every
    batch, e.g. {det: 8, seg: 8}; each group then has epochs of its own."""
    augment: AugmentConfig = AugmentConfig()
    """Evaluation has none."""
    workers: int | None = Field(None, ge=1)
    """Parallel Ray Data tasks of the training stream. Default: half the cores of the cluster, or of a local machine."""
    resources: Resources = Resources(cpu=0.25)
    """Of each task of the training stream. An evaluation's tasks go to the same places and reserve no CPU: the others
    have nothing to do meanwhile."""
    shuffle_window: int = Field(16, ge=1)
    """Row groups that are shuffled together, after the row groups of the split have been shuffled."""

    @field_validator("size")
    @classmethod
    def _sizes(cls, value: int | list[int]) -> int | list[int]:
        sizes = value if isinstance(value, list) else [value]
        if not sizes or any(size < 32 or size % 32 for size in sizes):
            raise ValueError("a multiple of 32, or a list of them")
        return value

    @field_validator("resources")
    @classmethod
    def _no_gpu(cls, value: Resources) -> Resources:
        if value.gpu:
            raise ValueError("data tasks have no use for a GPU")
        return value

    @property
    def sizes(self) -> list[int]:
        """Training sizes in pixels."""
        return self.size if isinstance(self.size, list) else [self.size]

    @property
    def eval_size(self) -> int:
        """Side of the square evaluation input in pixels."""
        return self.sizes[-1]


class ModelConfig(Section):
    """The shared-backbone network."""

    preset: Literal["default", "paper"] = "default"
    """`paper`: the published network, to the number: ResNets without the stem's max-pool, a context-enhancing neck,
    heads of their own on every level, segmentation refined at full resolution. `default`: the same family at a fraction
    of the cost: stem with max-pool, plain pyramid, one detection head for all levels, segmentation refined at
    stride 4."""
    backbone: str = "resnet18"
    """Name of the backbone (`model.backbones.FAMILIES`): torchvision's resnet18, resnet34, resnet50, resnet101, swin_t,
    swin_s and swin_b, and efficientnet_lite0, which is its efficientnet_b0 without squeeze-excitation, with ReLU6."""
    pretrained: bool = True
    """Start from ImageNet weights: through torchvision's downloads; for efficientnet_lite0, from the package of the
    optional extra `pretrained`."""
    tasks: list[Task] = ["det", "seg"]
    """Tasks with a head. One task makes a single-task network, such as a teacher."""
    neck: Literal["fpn", "pafpn"] = "fpn"
    """Feature pyramid of the paper preset: top-down, or top-down and bottom-up. The default preset has its own."""
    width: int = Field(128, ge=16)
    """Channels of the neck and the heads, a multiple of 16. Default: 128; in the paper preset 256."""
    levels: Literal[4, 5] | None = None
    """Pyramid levels, the finest of stride 8. Default: 4; 5 where the evaluation input has 512 pixels or more."""
    norm: Literal["batch", "sync", "frozen", "group"] = "batch"
    """Normalisation of the backbone: batch statistics a worker, over all workers (GPU only), frozen, or GroupNorm.
    Neck and heads of the paper preset follow it (frozen: GroupNorm, since nothing was trained that could be frozen);
    those of the default preset have GroupNorm in any case."""
    anchor_base: float = Field(24.0, gt=0)
    """Side in pixels of the smallest anchor at the finest level; it doubles from level to level."""
    adapter: int | None = Field(None, ge=1)
    """Channels of the detection teacher's features. Where it is set, a 1x1 convolution a level brings the network's
    features to them, for distillation; the run sets it where a feature loss has a weight."""

    @property
    def pyramid_levels(self) -> int:
        """Number of pyramid levels."""
        return self.levels or 4

    @model_validator(mode="before")
    @classmethod
    def _default_width(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("width") is None:
            return values | {"width": 256 if values.get("preset") == "paper" else 128}
        return values

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, value: list[Task]) -> list[Task]:
        if not value or len(set(value)) != len(value):
            raise ValueError("one or both of det, seg, once each")
        return sorted(value)

    @field_validator("width")
    @classmethod
    def _width(cls, value: int) -> int:
        if value % 16:
            raise ValueError("a multiple of 16")
        return value


class LossConfig(Section):
    """Supervised losses (annotated rows only)."""

    det: float = Field(1.0, ge=0)
    """Task weight of detection."""
    seg: float = Field(1.0, ge=0)
    """Task weight of segmentation."""
    matching: Literal["iou", "mutual_guidance"] = "iou"
    """Which anchors answer for a box: those that overlap it, or Mutual Guidance (Zhang et al., ACCV 2020)."""
    classification: Literal["focal", "generalized_focal"] = "focal"
    """Of anchors: focal loss (Lin et al., ICCV 2017), or its form for soft targets (Li et al., NeurIPS 2020)."""
    focal_alpha: float = Field(0.25, gt=0, lt=1)
    """Weight of positives in the focal loss; negatives have the rest."""
    focal_gamma: float = Field(1.0, ge=0)
    """How much the focal loss turns to what is hard; 0: not at all."""
    weak_det: float = Field(0.0, ge=0)
    """Weight, within `det`, of detection on rows with masks only: their connected components' boxes are the targets,
    split and joined as the network's own surest boxes suggest (BoMBo, Le et al., BMVC 2024)."""
    weak_seg: float = Field(0.0, ge=0)
    """Weight, within `seg`, of segmentation on rows with boxes only: what no box covers is background (BoMBo)."""
    weak_inside: Literal["fill", "ignore"] = "fill"
    """What `weak_seg` takes the pixels of a box for: all of its class (the smallest box over a pixel counts), or not
    known."""

    def weak(self, task: Task) -> float:
        """Weight of a task's weak loss."""
        return self.weak_det if task == "det" else self.weak_seg


class DistillTaskConfig(Section):
    """Distillation of one task."""

    weight: float = Field(1.0, ge=0)
    """Weight of the task's distillation; 0 turns it off. The weights of its losses count within it."""
    on: DistilledOn = "missing"
    """Rows to distil on: those without the task's annotation, those with it, or all."""


class DetectionDistillConfig(DistillTaskConfig):
    """Losses between two detectors; of a published one, weight 1 is the published strength."""

    guided: float = Field(1.0, ge=0)
    """Classes where the two disagree, boxes where the teacher is confident."""
    soft_cls: float = Field(0.0, ge=0)
    """Soft targets of the paper: class probabilities of every anchor."""
    soft_box: float = Field(0.0, ge=0)
    """Soft targets of the paper: box codes of every anchor."""
    mse: float = Field(0.0, ge=0)
    """Mean squared difference of features."""
    pdf: float = Field(0.0, ge=0)
    """PDF-Distil: features, classes and boxes, guided by the difference of the predictions."""
    defeat: float = Field(0.0, ge=0)
    """DeFeat: features, foreground and background apart. Counts on rows annotated with boxes only."""

    @property
    def features(self) -> bool:
        """Whether some loss compares features."""
        return max(self.mse, self.pdf, self.defeat) > 0

    def needs_dense(self) -> list[str]:
        """Settings that need the whole of a teacher's answer: every anchor alike, or features."""
        return [name for name in ("soft_cls", "soft_box", "mse", "pdf", "defeat") if getattr(self, name) > 0]


class SegmentationDistillConfig(DistillTaskConfig):
    """Losses between two segmentation networks."""

    kl: float = Field(1.0, ge=0)
    """Divergence of the class distributions, pixel by pixel."""
    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of `kl`."""
    cwd: float = Field(0.0, ge=0)
    """Channel-wise distillation (Shu et al., ICCV 2021): divergence of each class's distribution over the pixels."""
    cwd_temperature: float = Field(4.0, gt=0)
    """Softmax temperature of `cwd`."""

    def needs_dense(self) -> list[str]:
        """Settings that need the whole of a teacher's answer: the logits of the classes that a pixel hardly has."""
        return ["temperature"] * (self.kl > 0 and self.temperature != 1) + ["cwd"] * (self.cwd > 0)


class DistillConfig(Section):
    """Distillation from the teachers. A task without a teacher is not distilled."""

    targets: Literal["dense", "packed"] = "dense"
    """How the teachers' answers travel: whole, in float16, or packed into a few kilobytes an image. A task with a loss
    that needs the whole answer (`needs_dense`) gets it in any case."""
    start: float = Field(0.0, ge=0, lt=1)
    """Part of the training before which nothing is distilled: a network that teaches itself must have learnt first."""
    det: DetectionDistillConfig = DetectionDistillConfig()
    """Of detection."""
    seg: SegmentationDistillConfig = SegmentationDistillConfig()
    """Of segmentation."""

    def of(self, task: Task) -> DetectionDistillConfig | SegmentationDistillConfig:
        """The distillation of a task."""
        return self.det if task == "det" else self.seg


class TeacherConfig(Section):
    """One frozen single-task network."""

    checkpoint: str
    """A run folder (its best checkpoint is taken) or a checkpoint folder."""


class TeachersConfig(Section):
    """The teachers and where they run."""

    placement: Literal["pool", "inline", "stored", "ema"] = "pool"
    """`pool`: Ray actors of their own. `inline`: inside the training worker. `stored`: soft targets that
    jobs/precompute.py wrote into `store`. `ema`: no teachers; the moving average of the network itself teaches it."""
    det: TeacherConfig | None = None
    """Of detection."""
    seg: TeacherConfig | None = None
    """Of segmentation."""
    pool: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Name of a pool that runs share and that outlives them: attached to where it is there, else started. Default: a
    pool of the run's own."""
    store: str | None = None
    """Folder of soft targets: local, or any URI that pyarrow writes."""
    replicas: int = Field(1, ge=1)
    """Actors of each teacher; for jobs/precompute.py, the most."""
    resources: Resources = Resources(cpu=0.5)
    """Of each actor."""
    prefetch: int = Field(3, ge=1)
    """Batches a worker sends ahead to the teachers."""
    threads: int = Field(1, ge=1)
    """CPU threads of each actor."""

    def of(self, task: Task) -> TeacherConfig | None:
        """The teacher of a task."""
        return self.det if task == "det" else self.seg


class OptimConfig(Section):
    """Optimiser, schedule and moving average. Weight decay spares biases and normalisation."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """Of AdamW decoupled from the gradient, of SGD a part of it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    warmup_steps: int = Field(100, ge=0)
    """Linear from lr/10 to lr; a cosine then leads back to lr/10."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Largest global gradient norm; null: no clipping."""
    ema_decay: float = Field(0.9998, ge=0, lt=1)
    """Of the weights' moving average, which is what is evaluated and kept."""
    ema_warmup: float = Field(2000, gt=0)
    """Time constant n0 of the moving average's decay(n) = ema_decay * (1 - exp(-n / n0))."""


class TrainConfig(Section):
    """The training run."""

    run: str
    """Run folder. It may exist: the run then goes on where it stopped."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Images of a step, over all workers."""
    workers: int | list[int] = 1
    """Data-parallel Ray Train workers. A list of two, the fewest and the most, makes the run elastic: it shrinks when
    nodes are lost and grows when they come."""
    threads: int = Field(1, ge=1)
    """CPU threads of each worker."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type of forward and backward passes, also the teachers'. `auto`: bfloat16 where the workers' device
    computes it in hardware (GPUs of compute capability 8 and later, CPUs with AVX512-BF16, AMX or their like), else
    float32; a run that resumes on other hardware keeps the type it began with."""
    seed: int = Field(0, ge=0)
    """Of initial weights, order of rows and augmentation."""
    resume: bool = True
    """Go on from the run folder's newest checkpoint; false refuses a run folder that holds one. A folder without any
    may be begun anew, also with other settings."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """In addition to the checkpoints at the end of each epoch, at each evaluation and at the end. Where an epoch has
    fewer than 50 steps, every 50 steps take the place of the epoch's end: a checkpoint every few steps would cost more
    than it saves."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest stay, besides the best."""
    log_every_steps: int = Field(10, ge=1)
    """Between two lines of metrics.jsonl."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group before the run fails."""
    max_bad_steps: int = Field(10, ge=0)
    """Steps whose loss or gradient is not finite. They change nothing, and one more than this ends the run."""
    timeout_s: float = Field(600.0, gt=0)
    """How long a worker waits for the others. A wait that is longer ends the run."""
    resources: Resources = Resources(cpu=1.0)
    """Of each worker. A worker with a GPU share trains on CUDA with NCCL, else on the CPU with gloo."""

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: int | list[int]) -> int | list[int]:
        ends = value if isinstance(value, list) else [value, value]
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise ValueError("a number from 1, or a list of the fewest and the most")
        return value

    @property
    def most_workers(self) -> int:
        """Workers if there is room for all."""
        return self.workers[1] if isinstance(self.workers, list) else self.workers


class EvaluateConfig(Section):
    """Evaluation on the validation split, on the moving average's weights."""

    every_steps: int | None = Field(None, ge=1)
    """Default: only at the end."""
    protocol: Protocol = "coco"
    """Average precision of COCO (101 recalls), of VOC 2007 (11 recalls) or of VOC from 2010 on (area under the curve);
    each at IoU .50:.95. Segmentation is scored alike in all."""
    batch_size: int = Field(32, ge=1)
    """Images at a time."""
    score_threshold: float = Field(0.01, ge=0, lt=1)
    """Detections at or below it are dropped."""
    nms: Literal["per_class", "agnostic"] = "per_class"
    """Whether a box suppresses boxes of its own class only, or of any; `agnostic` keeps an anchor's best class only."""
    nms_iou: float = Field(0.5, gt=0, le=1)
    """Of two boxes that overlap by more, the lower-scored is dropped."""
    max_detections: int = Field(100, ge=1)
    """Of an image."""
    pictures: int = Field(8, ge=0)
    """Validation images that each evaluation draws."""


class TrackingConfig(Section):
    """Weights & Biases. `metrics.jsonl` and `report.html` are written in any case."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online where an API key is set, else offline in the run folder; where that is in a bucket, which W&B cannot
    write to, disabled."""
    project: str = "multas-ray"
    """Of Weights & Biases."""
    group: str | None = None
    """Under which runs stand together there."""


class Config(Section):
    """A run."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    distill: DistillConfig = DistillConfig()
    teachers: TeachersConfig = TeachersConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        if self.model.levels is None:
            self.model.levels = 5 if self.data.eval_size >= 512 else 4
        if isinstance(self.data.mixing, dict):
            rows = sum(self.data.mixing.values())
            if rows != self.train.batch_size:
                raise ValueError(f"data.mixing: adds up to {rows} rows, train.batch_size is {self.train.batch_size}")
        workers = self.train.most_workers
        if workers > self.train.batch_size:
            raise ValueError(f"train.workers: {workers} workers, but a batch has {self.train.batch_size} rows")
        for task in TASKS:
            if self.teachers.of(task) and task not in self.model.tasks:
                raise ValueError(f"teachers.{task}: set, but model.tasks is {self.model.tasks}")
            if self.teachers.of(task) and self.teachers.placement == "ema":
                raise ValueError(f"teachers.{task}: set, but with teachers.placement: ema the network teaches itself")
        if self.teachers.placement == "ema" and self.distill.det.features:
            raise ValueError("distill.det: features are compared with a teacher's, but teachers.placement is ema")
        if self.model.norm == "sync" and not self.train.resources.gpu:
            raise ValueError(
                "model.norm: sync needs GPU workers (train.resources.gpu); on CPU use batch, frozen or group"
            )
        if self.model.neck != "fpn" and self.model.preset != "paper":
            raise ValueError(f"model.neck: {self.model.neck} needs model.preset: paper, which is {self.model.preset}")
        if self.distill.det.defeat and self.distill.det.on == "missing":
            raise ValueError("distill.det.defeat: needs distill.det.on: annotated or all, which is missing")
        if self.model.preset == "paper" and self.model.norm in ("batch", "sync"):
            # The neck averages each image to one pixel, and the coarsest level may have only one.
            if self.train.batch_size // workers < 2 and self.model.norm == "batch":
                raise ValueError(
                    f"train.batch_size: {self.train.batch_size} rows over {workers} workers, but batch "
                    "statistics need two rows a worker; or set model.norm: group"
                )
            coarsest = 8 * 2 ** (self.model.levels - 1)
            if min(self.data.sizes) <= coarsest:
                raise ValueError(
                    f"data.size: {min(self.data.sizes)} pixels, but batch statistics of the paper preset's coarsest "
                    f"level (stride {coarsest}) need more than {coarsest}; or set model.norm: group"
                )
        if self.teachers.placement == "stored":
            self._stored_fits()
        if self.train.precision == "float16" and not self.train.resources.gpu:
            raise ValueError("train.precision: float16 needs GPU workers; on CPU use float32 or bfloat16")
        return self

    def _stored_fits(self) -> None:
        if self.teachers.store is None:
            raise ValueError("teachers.placement: stored needs teachers.store, the folder of the soft targets")
        if len(self.data.sizes) > 1:
            raise ValueError(f"data.size: {self.data.size}, but stored soft targets are of one size")
        for task in self.distilled():
            for name in self.distill.of(task).needs_dense():
                raise ValueError(
                    f"distill.{task}.{name}: needs the teachers' whole answers, but stored ones are packed; use "
                    "teachers.placement pool or inline"
                )

    def absolute(self) -> "Config":
        """A copy whose paths mean the same in every process, also in one that was started in another folder."""
        config = self.model_copy(deep=True)
        config.train.run = _absolute(config.train.run)
        config.data.path = _absolute(config.data.path)
        if config.teachers.store is not None:
            config.teachers.store = _absolute(config.teachers.store)
        return config

    def packed(self, task: Task) -> bool:
        """Whether the task's soft targets travel packed."""
        stored = self.teachers.placement == "stored"
        packed = self.distill.targets == "packed" and self.teachers.placement != "ema"
        return stored or (packed and not self.distill.of(task).needs_dense())

    def distilled(self) -> list[Task]:
        """Tasks with a teacher and a weight; the network itself is one where it teaches itself."""
        itself = self.teachers.placement == "ema"
        taught = [task for task in TASKS if (task in self.model.tasks if itself else self.teachers.of(task))]
        return [task for task in taught if self.distill.of(task).weight > 0]

    def to_yaml(self) -> str:
        """The whole tree, defaults filled in: enough to repeat the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _absolute(path: str) -> str:
    """A local path made absolute; a URI as it is."""
    return path if "://" in path else StoragePath(path).uri
