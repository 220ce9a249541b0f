"""The configuration of a run: one tree of pydantic models."""

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from multas_ray.storage import StoragePath

Task = Literal["det", "seg"]
TASKS: tuple[Task, ...] = ("det", "seg")
TaskMask = Literal["det", "seg", "both", "none"]
"""Tasks that a row is annotated for."""
TASK_MASKS: tuple[TaskMask, ...] = ("none", "det", "seg", "both")
"""All task masks, indexed by has_det + 2 * has_seg."""
Protocol = Literal["coco", "voc2007", "voc2012"]
METRIC_GROUPS = ("loss", "time", "throughput", "teacher")
"""First parts of the names of metrics that are not scores, besides the tasks."""
FOREIGN = re.compile(r"\w{2,}:(?!//)")
"""Beginning of the source of a teacher that is no network of this project, such as `hf:owner/name`."""
DistilledOn = Literal["missing", "annotated", "all"]
"""Rows to distil a task on: those without its annotation, those with it, or all rows."""


class Section(BaseModel):
    """A part of the configuration, as it was written. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_cpus(cls, tree: Any) -> Any:
        """Fill in `cpu` where resources are given without it: by this section's default, such as a teacher's 0.5."""
        given = tree.get("resources") if isinstance(tree, dict) else None
        if not isinstance(given, dict) or "resources" not in cls.model_fields:
            return tree
        return tree | {"resources": {"cpu": cls.model_fields["resources"].default.cpu} | given}


class Resources(Section):
    """Reservation of a Ray actor or task, and its nodes. CPUs are admission tokens: threads are set separately."""

    cpu: float = Field(1.0, ge=0)
    """Logical CPUs."""
    gpu: float = Field(0.0, ge=0)
    """Number of GPUs, or the share of one."""
    custom: dict[str, float] = {}
    """Custom resources, e.g. {teacher_node: 0.01}."""
    labels: dict[str, str] = {}
    """Labels that the node must have, e.g. {role: teacher} or {ray.io/accelerator-type: "in(A100,H100)"}. Conditions
    are Ray's: `a`, `!a`, `in(a,b)` and `!in(a,b)`."""

    def options(self) -> dict[str, Any]:
        """Keyword arguments of Ray's actors and tasks."""
        selector = {"label_selector": self.labels} if self.labels else {}
        return {"num_cpus": self.cpu, "num_gpus": self.gpu, "resources": self.custom, **selector}


class AugmentConfig(Section):
    """Training augmentation, applied alike to pixels, boxes and masks."""

    photometric: bool = True
    """Random brightness, contrast, saturation and hue."""
    zoom_out: float = Field(0.3, ge=0, le=1)
    """Probability of pasting the image on a canvas of up to twice its sides."""
    crop: float = Field(0.5, ge=0, le=1)
    """Probability of a crop that keeps a minimum IoU with some box (SSD); images without boxes get a random resized
    crop."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""


class SourceConfig(Section):
    """One of several data sets."""

    path: str
    """Data set folder: local, or any URI that pyarrow reads."""
    classes: dict[str, str | None] = {}
    """Classes of the data set that have another name in the run; null for one that is ignored: its boxes and pixels
    teach nothing, and nothing else there is wrong; `background` for one that is none: its boxes are no objects.
    Several may have one name."""
    train: str | None = "train"
    """Split to train on; null for none."""
    val: str | None = "val"
    """Split to evaluate on; null for none."""


class DataConfig(Section):
    """The data sets and how they are streamed."""

    path: str | None = None
    """Data set folder: local, or any URI that pyarrow reads. Either this or `sources`."""
    sources: dict[str, SourceConfig] = {}
    """Several data sets by names of your own. A class of the run that one of them does not list is unlabelled in all
    its images."""
    det_classes: list[str] | None = None
    """Object classes of the run over several sources. Default: the union by name, in order of first appearance."""
    seg_classes: list[str] | None = None
    """Pixel classes of the run over several sources; `background` first, if there is one. Default: as of objects."""
    train: str = "train"
    """Split of `path` to train on."""
    val: str = "val"
    """Split of `path` to evaluate on."""
    size: int | list[int] = 320
    """Side of the square network input in pixels, a multiple of 32; a list trains multi-scale, one size a batch
    (evaluation uses the last one)."""
    multi_scale_until: float = Field(1.0, ge=0, le=1)
    """Fraction of the training after which only the last of several sizes is used."""
    mixing: Literal["natural"] | dict[str, int] = "natural"
    """Rows of a batch. `natural`: in the proportions of the data. A mapping fixes the number of rows of each task mask
    (det, seg, both, none) in every batch, e.g. {det: 8, seg: 8}, or of each source; each group then has its own
    epochs."""
    augment: AugmentConfig = AugmentConfig()
    """Evaluation images are not augmented."""
    workers: int | None = Field(None, ge=1)
    """Parallel Ray Data tasks of the training stream. Default: half the cores of the cluster, or of a local machine."""
    resources: Resources = Resources(cpu=0.25)
    """Reserved per task of the training stream. Evaluation tasks run on the same nodes and reserve no CPU: the training
    stream is idle while they run."""
    shuffle_window: int = Field(16, ge=1)
    """Number of row groups whose rows are shuffled together, after the row groups of the split have been shuffled."""

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

    @field_validator("sources")
    @classmethod
    def _source_names(cls, value: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        taken = (*TASK_MASKS, *METRIC_GROUPS)
        for name in value:
            if not name.isidentifier() or name in taken:
                raise ValueError(
                    f"'{name}': a source's name has letters, digits and _ only, and is none of {', '.join(taken)}"
                )
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "DataConfig":
        if (self.path is None) == (not self.sources):
            raise ValueError("either path, a data set, or sources, several of them, is needed")
        if self.path is not None and (self.det_classes or self.seg_classes):
            raise ValueError("det_classes and seg_classes are those of several sources; path has its own")
        for role, purpose in (("train", "train"), ("val", "evaluate")):
            if self.sources and all(getattr(source, role) is None for source in self.sources.values()):
                raise ValueError(f"sources: none of them has a split to {purpose} on")
        for task in TASKS:
            _check_class_names(f"{task}_classes", self.chosen_classes(task) or [])
        if isinstance(self.mixing, dict):
            mixed = tuple(name for name, source in self.sources.items() if source.train is not None)
            allowed: list[tuple[str, ...]] = [TASK_MASKS, *([mixed] if mixed else [])]
            if min(self.mixing.values(), default=-1) < 0 or not any(
                set(self.mixing) <= set(names) for names in allowed
            ):
                shown = " or ".join(", ".join(names) for names in allowed)
                raise ValueError(f"mixing: natural, or numbers of {shown}; not {self.mixing}")
        return self

    def chosen_classes(self, task: Task) -> list[str] | None:
        """Classes of a task that the run over several sources is to have; None for all that they have."""
        return {"det": self.det_classes, "seg": self.seg_classes}[task]

    @property
    def sizes(self) -> list[int]:
        """Training sizes in pixels."""
        return self.size if isinstance(self.size, list) else [self.size]

    def absolute(self) -> "DataConfig":
        """Return a copy with absolute paths."""
        sources = {
            name: source.model_copy(update={"path": _absolute(source.path)}) for name, source in self.sources.items()
        }
        return self.model_copy(update={"path": None if self.path is None else _absolute(self.path), "sources": sources})

    @property
    def eval_size(self) -> int:
        """Side of the square evaluation input in pixels."""
        return self.sizes[-1]


class ModelConfig(Section):
    """The shared-backbone network."""

    preset: Literal["default", "paper"] = "default"
    """Family of the network. `paper`: the published network, to the number: ResNets without the stem's max-pool, a
    context-enhancing neck, separate heads on every level, segmentation refined at full resolution. `default`: the same
    family at a fraction of the cost: stem with max-pool, plain pyramid, one detection head for all levels, segmentation
    refined at stride 4."""
    backbone: str = "resnet18"
    """Name of the backbone. From torchvision: resnet18, resnet34, resnet50, resnet101, swin_t, swin_s, swin_b. Also
    efficientnet_lite0, which is torchvision's efficientnet_b0 without squeeze-excitation and with ReLU6; and timm/NAME,
    any model of the library timm (the optional extra `timm`) that has maps of the strides 8, 16 and 32, or is a plain
    ViT."""
    pretrained: bool = True
    """Start from ImageNet weights: torchvision's downloads, or for efficientnet_lite0 the package of the optional extra
    `pretrained`."""
    weights: str | None = None
    """File of pretrained weights (.safetensors) of a backbone of timm, in place of the published ones."""
    tasks: list[Task] = ["det", "seg"]
    """Tasks with a head. One task makes a single-task network, such as a teacher."""
    neck: Literal["fpn", "pafpn"] = "fpn"
    """Feature pyramid of the paper preset: top-down, or top-down and bottom-up. The default preset has `fpn` only."""
    width: int = Field(128, ge=16)
    """Channels of the neck and the heads, a multiple of 16. Default: 128; in the paper preset 256."""
    levels: Literal[4, 5] | None = None
    """Number of pyramid levels, the finest of stride 8. Default: 4; 5 where the evaluation input has 512 pixels or
    more."""
    norm: Literal["batch", "sync", "frozen", "group"] = "batch"
    """Normalisation of the backbone: batch statistics per worker, batch statistics over all workers (GPU only), frozen
    statistics, or GroupNorm. Neck and heads of the paper preset follow it (frozen: GroupNorm, since they have no
    trained statistics to freeze); those of the default preset always have GroupNorm."""
    anchor_base: float = Field(24.0, gt=0)
    """Side in pixels of the smallest anchor at the finest level; it doubles from level to level."""
    adapter: int | None = Field(None, ge=1)
    """Channels of the detection teacher's features, to which a 1x1 convolution on each level maps the network's own for
    distillation. The run sets it where a feature loss has a weight."""

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
    """Assignment of anchors to boxes: by overlap, or by Mutual Guidance (Zhang et al., ACCV 2020)."""
    classification: Literal["focal", "generalized_focal"] = "focal"
    """Classification loss of anchors: focal loss (Lin et al., ICCV 2017), or its form for soft targets (Li et al.,
    NeurIPS 2020)."""
    focal_alpha: float = Field(0.25, gt=0, lt=1)
    """Weight alpha of positives in the focal loss; negatives have 1 - alpha."""
    focal_gamma: float = Field(1.0, ge=0)
    """Exponent gamma by which the focal loss favours hard anchors; 0 weights all anchors alike."""
    weak_det: float = Field(0.0, ge=0)
    """Weight, within `det`, of detection on rows with masks only: their connected components' boxes are the targets,
    split and joined as the network's most confident boxes suggest (BoMBo, Le et al., BMVC 2024)."""
    weak_seg: float = Field(0.0, ge=0)
    """Weight, within `seg`, of segmentation on rows with boxes only: pixels outside all boxes are background
    (BoMBo)."""
    weak_inside: Literal["fill", "ignore"] = "fill"
    """Target of the pixels inside a box in `weak_seg`. `fill`: the class of the smallest box over the pixel; `ignore`:
    no target."""

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
    """Losses between two detectors. For a published loss, weight 1 is its published strength."""

    guided: float = Field(1.0, ge=0)
    """Weight of the guided loss: classes where the two disagree, boxes where the teacher is confident."""
    soft_cls: float = Field(0.0, ge=0)
    """Weight of the paper's soft targets for classes: class probabilities of every anchor."""
    soft_box: float = Field(0.0, ge=0)
    """Weight of the paper's soft targets for boxes: box codes of every anchor."""
    mse: float = Field(0.0, ge=0)
    """Weight of the mean squared difference of features."""
    pdf: float = Field(0.0, ge=0)
    """Weight of PDF-Distil: features, classes and boxes, guided by the difference of the predictions."""
    defeat: float = Field(0.0, ge=0)
    """Weight of DeFeat: features, with foreground and background apart. Counts only on rows annotated with boxes."""

    @property
    def features(self) -> bool:
        """Whether some loss compares features."""
        return max(self.mse, self.pdf, self.defeat) > 0

    def needs_dense(self) -> list[str]:
        """Names of the losses in use that need a teacher's whole answer: every anchor alike, or features."""
        return [name for name in ("soft_cls", "soft_box", "mse", "pdf", "defeat") if getattr(self, name) > 0]


class SegmentationDistillConfig(DistillTaskConfig):
    """Losses between two segmentation networks."""

    kl: float = Field(1.0, ge=0)
    """Weight of the KL divergence of the class distributions, pixel by pixel."""
    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of `kl`."""
    cwd: float = Field(0.0, ge=0)
    """Weight of channel-wise distillation (Shu et al., ICCV 2021): KL divergence of each class's distribution over the
    pixels."""
    cwd_temperature: float = Field(4.0, gt=0)
    """Softmax temperature of `cwd`."""

    def needs_dense(self) -> list[str]:
        """Names of the settings in use that need a teacher's whole answer: the logits of unlikely classes too."""
        return ["temperature"] * (self.kl > 0 and self.temperature != 1) + ["cwd"] * (self.cwd > 0)


class DistillConfig(Section):
    """Distillation from the teachers. A task without a teacher is not distilled."""

    targets: Literal["dense", "packed"] = "dense"
    """Form in which the teachers' answers are sent: `dense`, whole and in float16, or `packed` into a few kilobytes an
    image. A task with a loss that needs the whole answer always gets it dense."""
    start: float = Field(0.0, ge=0, lt=1)
    """Fraction of the training before which nothing is distilled: a network that teaches itself must have learnt
    first."""
    det: DetectionDistillConfig = DetectionDistillConfig()
    """Distillation of detection."""
    seg: SegmentationDistillConfig = SegmentationDistillConfig()
    """Distillation of segmentation."""

    def of(self, task: Task) -> DetectionDistillConfig | SegmentationDistillConfig:
        """The distillation of a task."""
        return self.det if task == "det" else self.seg


class TeacherConfig(Section):
    """One frozen network that teaches a task."""

    source: str
    """Run folder (its best checkpoint is taken) or checkpoint folder of this project; `hf:NAME-OR-FOLDER`,
    `torchvision:NAME[:WEIGHTS]`, `onnx:FILE` or `python:MODULE:FACTORY`, see docs/guide/teachers.md. `checkpoint` is
    its older name."""
    classes: dict[str, str | None] = {}
    """Classes of the teacher that have another name in the run; null for one that teaches nothing. Several may have one
    name."""
    names: list[str] | None = None
    """Names of the teacher's classes in the order of its outputs. Default: what it says itself."""
    size: int | None = Field(None, ge=32)
    """Side in pixels of the squares that images are stretched to for it. Default: what a model from elsewhere says
    itself, else those of the student."""
    temperature: float = Field(1.0, gt=0)
    """Divisor of its logits, in the run's classes: above 1 for a teacher that is too sure, below for one that is not
    sure enough (`jobs/teachers.py check` fits it)."""
    batch_size: int | None = Field(None, ge=1)
    """Largest number of images that it answers at a time. Default: all that are asked for."""
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Autocast type of its answers. Default: the run's."""

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        # Of both the later one counts: an override of a file's value comes after it.
        return {"source" if key == "checkpoint" else key: value for key, value in tree.items()}


# Blank tags: messages name the place of a value by the keys alone.
OneOrSeveral = Annotated[
    Annotated[TeacherConfig, Tag("")] | Annotated[list[TeacherConfig], Field(min_length=1), Tag(" ")],
    Discriminator(lambda value: " " if isinstance(value, list) else ""),
]
"""A teacher, or a list of them: each class is then taught by those that know it, by their mean."""


class TeachersConfig(Section):
    """The teachers and where they run."""

    placement: Literal["pool", "inline", "stored", "ema"] = "pool"
    """Place of the teachers. `pool`: separate Ray actors. `inline`: inside the training worker. `stored`: soft targets
    that jobs/precompute.py wrote into `store`. `ema`: no teachers; the moving average of the network itself teaches
    it."""
    det: OneOrSeveral | None = None
    """Teacher of detection, or a list of them: each class is taught by those that know it, by their mean."""
    seg: OneOrSeveral | None = None
    """Teacher of segmentation, or a list of them."""
    runtime_env: dict[str, Any] = {}
    """Ray's runtime environment of the teachers' processes, such as {pip: [transformers]}: what a teacher needs, this
    project's other processes do not."""
    pool: str | None = Field(None, pattern=r"^[\w.-]+$")
    """Name of a pool that runs share and that outlives them: a run attaches to it if it exists and starts it if not.
    Default: a pool for this run alone."""
    store: str | None = None
    """Folder of the stored soft targets: local, or any URI that pyarrow writes."""
    replicas: int = Field(1, ge=1)
    """Number of actors of each teacher; the largest number in jobs/precompute.py."""
    resources: Resources = Resources(cpu=0.5)
    """Reserved per teacher actor."""
    prefetch: int = Field(3, ge=1)
    """Number of batches that a worker sends ahead to the teachers."""
    threads: int = Field(1, ge=1)
    """CPU threads of each teacher actor."""

    def of(self, task: Task) -> tuple[TeacherConfig, ...]:
        """Teachers of a task."""
        teachers = self.det if task == "det" else self.seg
        return (teachers,) if isinstance(teachers, TeacherConfig) else tuple(teachers or ())

    def named(self, task: Task) -> str:
        """Name of a task's teachers in messages."""
        return f"teachers.{task}.source {', '.join(teacher.source for teacher in self.of(task))}".strip()


class OptimConfig(Section):
    """Optimiser, schedule and moving average. Biases and normalisation layers are not decayed."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimiser."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay: decoupled from the gradient in AdamW, added to it in SGD."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    warmup_steps: int = Field(100, ge=0)
    """Number of steps in which the learning rate rises linearly from lr/10 to lr; a cosine then brings it back to
    lr/10."""
    clip_norm: float | None = Field(10.0, gt=0)
    """Largest norm of the whole gradient; null: no clipping."""
    ema_decay: float = Field(0.9998, ge=0, lt=1)
    """Decay of the weights' moving average; the averaged weights are the ones evaluated and saved as the network."""
    ema_warmup: float = Field(2000, gt=0)
    """Time constant n0 of the moving average's decay(n) = ema_decay * (1 - exp(-n / n0))."""


class TrainConfig(Section):
    """The training run."""

    run: str
    """Run folder. If it holds a run, that run is resumed."""
    steps: int = Field(ge=1)
    """Number of optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Number of images of a step, over all workers."""
    workers: int | list[int] = 1
    """Number of data-parallel Ray Train workers. A list of two, the fewest and the most, makes the run elastic: it
    shrinks when nodes are lost and grows when nodes join."""
    threads: int = Field(1, ge=1)
    """CPU threads of each training worker."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast type of forward and backward passes, also the teachers'. `auto`: bfloat16 where the workers' device
    computes it in hardware (GPUs of compute capability 8 and later, CPUs with AVX512-BF16, AMX or their like), else
    float32; a run that resumes on other hardware keeps the type it began with."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights, the order of rows and the augmentation."""
    resume: bool = True
    """Resume from the run folder's newest checkpoint; false refuses a folder that holds one. A folder without any
    checkpoint may be started afresh, also with other settings."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints, in addition to those at the end of each epoch, at each evaluation and at the end.
    Where an epoch has fewer than 50 steps, every 50 steps take the place of the epoch's end: a checkpoint every few
    steps would cost more than it saves."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of newest checkpoints that are kept, besides the best."""
    log_every_steps: int = Field(10, ge=1)
    """Steps between two lines of metrics.jsonl."""
    max_failures: int = Field(3, ge=0)
    """Number of restarts of the worker group before the run fails."""
    max_bad_steps: int = Field(10, ge=0)
    """Largest number of bad steps, whose loss or gradient is not finite. They change nothing; one more ends the run."""
    timeout_s: float = Field(600.0, gt=0)
    """Seconds that a worker waits for the others. A longer wait ends the run."""
    resources: Resources = Resources(cpu=1.0)
    """Reserved per training worker. With a GPU or a share of one, a worker trains on CUDA with NCCL, else on the CPU
    with gloo."""

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: int | list[int]) -> int | list[int]:
        ends = value if isinstance(value, list) else [value, value]
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise ValueError("a number from 1, or a list of the fewest and the most")
        return value

    @property
    def most_workers(self) -> int:
        """Number of workers if there is room for all."""
        return self.workers[1] if isinstance(self.workers, list) else self.workers


class EvaluateConfig(Section):
    """Evaluation on the validation split, on the moving average's weights."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between two evaluations. Default: one evaluation, at the end."""
    protocol: Protocol = "coco"
    """Definition of average precision: COCO's (101 recalls), VOC 2007's (11 recalls) or VOC's from 2010 on (area under
    the curve); each at IoU .50:.95. Segmentation is scored alike in all."""
    batch_size: int = Field(32, ge=1)
    """Number of images evaluated at a time."""
    score_threshold: float = Field(0.01, ge=0, lt=1)
    """Score at or below which detections are dropped."""
    nms: Literal["per_class", "agnostic"] = "per_class"
    """Non-maximum suppression: `per_class`, where a box suppresses boxes of its own class only, or `agnostic`, where it
    suppresses boxes of any class and an anchor keeps its best class only."""
    nms_iou: float = Field(0.5, gt=0, le=1)
    """IoU above which the lower-scored of two boxes is dropped."""
    max_detections: int = Field(100, ge=1)
    """Largest number of detections in an image."""
    pictures: int = Field(8, ge=0)
    """Number of validation images of which each evaluation draws the predictions."""


class TrackingConfig(Section):
    """Weights & Biases. `metrics.jsonl` and `report.html` are written in any case."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Mode of W&B. `auto`: online where an API key is set, else offline in the run folder; disabled where that is in a
    bucket, which W&B cannot write to."""
    project: str = "multas-ray"
    """Project in W&B."""
    group: str | None = None
    """Group in W&B under which runs appear together."""


class Config(Section):
    """Configuration of a run: one section a concern."""

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
        # The one default that follows from another section.
        levels = self.model.levels or (5 if self.data.eval_size >= 512 else 4)
        config = self.model_copy(update={"model": self.model.model_copy(update={"levels": levels})})
        config._check_batch()
        config._check_teachers()
        config._check_network()
        config._check_batch_statistics()
        if self.teachers.placement == "stored":
            config._check_stored_targets()
        if self.train.precision == "float16" and not self.train.resources.gpu:
            raise ValueError("train.precision: float16 needs GPU workers; on CPU use float32 or bfloat16")
        return config

    def _check_batch(self) -> None:
        if isinstance(self.data.mixing, dict):
            rows = sum(self.data.mixing.values())
            if rows != self.train.batch_size:
                raise ValueError(f"data.mixing: adds up to {rows} rows, train.batch_size is {self.train.batch_size}")
        workers = self.train.most_workers
        if workers > self.train.batch_size:
            raise ValueError(f"train.workers: {workers} workers, but a batch has {self.train.batch_size} rows")

    def _check_teachers(self) -> None:
        for task in TASKS:
            if self.teachers.of(task) and task not in self.model.tasks:
                raise ValueError(f"teachers.{task}: set, but model.tasks is {self.model.tasks}")
            if self.teachers.of(task) and self.teachers.placement == "ema":
                raise ValueError(f"teachers.{task}: set, but with teachers.placement: ema the network teaches itself")
        if self.teachers.runtime_env and self.teachers.placement == "inline":
            raise ValueError(
                "teachers.runtime_env: set, but with teachers.placement: inline teachers are in the training workers; "
                "use pool or stored"
            )
        if self.teachers.placement == "ema" and self.distill.det.features:
            raise ValueError("distill.det: features are compared with a teacher's, but teachers.placement is ema")

    def _check_network(self) -> None:
        if self.model.norm == "sync" and not self.train.resources.gpu:
            raise ValueError(
                "model.norm: sync needs GPU workers (train.resources.gpu); on CPU use batch, frozen or group"
            )
        if self.model.neck != "fpn" and self.model.preset != "paper":
            raise ValueError(f"model.neck: {self.model.neck} needs model.preset: paper, which is {self.model.preset}")
        if self.distill.det.defeat and self.distill.det.on == "missing":
            raise ValueError("distill.det.defeat: needs distill.det.on: annotated or all, which is missing")

    def _check_batch_statistics(self) -> None:
        """Check that batch normalisation of the paper preset sees more than one value of each channel.

        The neck averages each image to one pixel, and the coarsest level may have only one.
        """
        if self.model.preset != "paper" or self.model.norm not in ("batch", "sync"):
            return
        workers = self.train.most_workers
        if self.train.batch_size // workers < 2 and self.model.norm == "batch":
            raise ValueError(
                f"train.batch_size: {self.train.batch_size} rows over {workers} workers, but batch "
                "statistics need two rows a worker; or set model.norm: group"
            )
        assert self.model.levels is not None
        coarsest = 8 * 2 ** (self.model.levels - 1)
        if min(self.data.sizes) <= coarsest:
            raise ValueError(
                f"data.size: {min(self.data.sizes)} pixels, but batch statistics of the paper preset's coarsest "
                f"level (stride {coarsest}) need more than {coarsest}; or set model.norm: group"
            )

    def _check_stored_targets(self) -> None:
        if self.teachers.store is None:
            raise ValueError("teachers.placement: stored needs teachers.store, the folder of the soft targets")
        for task in self.distilled_tasks():
            for name in self.distill.of(task).needs_dense():
                raise ValueError(
                    f"distill.{task}.{name}: needs the teachers' whole answers, but stored ones are packed; use "
                    "teachers.placement pool or inline"
                )

    def absolute(self) -> "Config":
        """Return a copy with absolute paths, which mean the same in every process, whatever its working folder."""
        store = self.teachers.store
        return self.model_copy(
            update={
                "train": self.train.model_copy(update={"run": _absolute(self.train.run)}),
                "data": self.data.absolute(),
                "teachers": self.teachers.model_copy(update={"store": None if store is None else _absolute(store)}),
            }
        )

    def packed(self, task: Task) -> bool:
        """Whether the task's soft targets travel packed."""
        stored = self.teachers.placement == "stored"
        packed = self.distill.targets == "packed" and self.teachers.placement != "ema"
        return stored or (packed and not self.distill.of(task).needs_dense())

    def distilled_tasks(self) -> list[Task]:
        """Tasks that are distilled: those with a weight and a teacher, which is the network itself with `ema`."""
        itself = self.teachers.placement == "ema"
        taught = [task for task in TASKS if (task in self.model.tasks if itself else self.teachers.of(task))]
        return [task for task in taught if self.distill.of(task).weight > 0]

    def to_yaml(self) -> str:
        """Return the whole tree as YAML with all defaults filled in: enough to repeat the run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _check_class_names(key: str, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"{key}: '{twice[0]}' stands there {names.count(twice[0])} times")
    if key == "seg_classes" and "background" in names[1:]:
        raise ValueError("seg_classes: background is the first class, where there is one")


def _absolute(path: str) -> str:
    """Make a local path absolute; leave a URI as it is."""
    return path if "://" in path else StoragePath(path).uri
