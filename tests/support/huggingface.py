"""Detectors and segmentation networks of transformers, of small configurations and random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

LABELS = {0: "puppy", 1: "cat", 2: "lorry"}
SIZE = 64
SIDES = {"deformable_detr": 128}
"""Of families that have maps of stride 64, which need more than a pixel."""


def _resnet(*stages: str) -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
    return transformers.ResNetConfig(**sizes, out_features=list(stages or ["stage4"]))


def _backbone(*stages: str) -> dict[str, Any]:
    return {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None} | {
        "backbone_config": _resnet(*stages)
    }


def _decoder(width: int = 16, **others: Any) -> dict[str, Any]:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return (
        {"d_model": width, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 7, "num_labels": 3} | heads | others
    )


def _real_time(backbone: Any) -> dict[str, Any]:
    return {
        **{"backbone_config": backbone, "encoder_in_channels": [8, 8, 8], "encoder_hidden_dim": 16, "num_queries": 9},
        **{"encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 16, "decoder_in_channels": [16, 16, 16]},
        **{"decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "num_labels": 3},
        "hidden_expansion": 0.5,
    }


def _rt_resnet() -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    return transformers.RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])


def _hgnet() -> Any:
    stages = dict.fromkeys(("stage_in_channels", "stage_mid_channels", "stage_out_channels", "hidden_sizes"), [8] * 4)
    counts = dict.fromkeys(("stage_num_blocks", "stage_numb_of_layers", "depths"), [1] * 4)
    sizes = {"embedding_size": 8, "stem_channels": [3, 8, 8]}
    return transformers.HGNetV2Config(**sizes, **stages, **counts, out_features=["stage2", "stage3", "stage4"])


def _swin() -> Any:
    sizes = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2, "image_size": SIZE}
    return transformers.SwinConfig(**sizes, out_features=["stage1", "stage2", "stage3", "stage4"])


def _of(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIZE, "patch_size": 16}
_LIGHT = {
    **{"d_model": 16, "decoder_layers": 1, "num_queries": 5, "group_detr": 1, "decoder_self_attention_heads": 2},
    **{"decoder_cross_attention_heads": 2, "decoder_ffn_dim": 16, "num_feature_levels": 1, "num_labels": 3},
}
PROCESSORS = {
    "dab-detr": "ConditionalDetrImageProcessor",
    "rt_detr_v2": "RTDetrImageProcessor",
    "d_fine": "RTDetrImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
}
"""Classes of the processors of families that have none of their own; their publishers' files name them."""
STAGES = ("stage1", "stage2", "stage3", "stage4")
DETECTORS: dict[str, Callable[[], Any]] = {
    "detr": lambda: _of("DetrConfig", **_backbone(), **_decoder()),
    "table-transformer": lambda: _of("TableTransformerConfig", **_backbone(), **_decoder()),
    "yolos": lambda: _of(
        "YolosConfig",
        **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": [SIZE, SIZE], "patch_size": 16, "num_detection_tokens": 7, "num_labels": 3},
    ),
    "conditional_detr": lambda: _of("ConditionalDetrConfig", **_backbone(), **_decoder()),
    "dab-detr": lambda: _of("DabDetrConfig", **_backbone(), **_decoder(hidden_size=16)),
    "deformable_detr": lambda: _of("DeformableDetrConfig", **_backbone(*STAGES[1:]), **_decoder(32, decoder_layers=2)),
    "rt_detr": lambda: _of("RTDetrConfig", **_real_time(_rt_resnet())),
    "rt_detr_v2": lambda: _of("RTDetrV2Config", **_real_time(_rt_resnet())),
    "d_fine": lambda: _of("DFineConfig", **_real_time(_hgnet())),
    "deimv2": lambda: _of("Deimv2Config", **_real_time(_hgnet())),
    "lw_detr": lambda: _of(
        "LwDetrConfig",
        backbone_config=_of(
            "LwDetrViTConfig",
            **{"pretrain_image_size": SIZE, "window_block_indices": [0], "out_indices": [1, 2], "num_windows": 4},
            **_VIT,
        ),
        **{"projector_scale_factors": [1.0]},
        **_LIGHT,
    ),
    "rf_detr": lambda: _of(
        "RfDetrConfig",
        backbone_config=_of(
            "RfDetrDinov2Config", window_block_indexes=[0], num_windows=2, out_features=["stage1", "stage2"], **_VIT
        ),
        **_LIGHT,
    ),
}
SEGMENTERS: dict[str, Callable[[], Any]] = {
    "segformer": lambda: _of(
        "SegformerConfig",
        **{"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8},
        num_labels=3,
    ),
    "upernet": lambda: _of(
        "UperNetConfig",
        **{"backbone_config": _resnet(*STAGES), "hidden_size": 8, "auxiliary_in_channels": 8},
        **{"auxiliary_channels": 8, "pool_scales": [1, 2], "num_labels": 3},
    ),
    "mask2former": lambda: _of(
        "Mask2FormerConfig",
        **{"backbone_config": _swin(), "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32},
        **{"encoder_feedforward_dim": 16, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2},
        **{"dim_feedforward": 16, "num_queries": 5, "num_labels": 3},
    ),
    "maskformer": lambda: _of(
        "MaskFormerConfig",
        **{"backbone_config": _resnet(*STAGES), "fpn_feature_size": 32, "mask_feature_size": 32, "num_labels": 3},
        decoder_config=_of("DetrConfig", **_backbone(), **_decoder(32)),
    ),
    "mobilevit": lambda: _of(
        "MobileViTConfig",
        **{"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2, "image_size": SIZE},
        **{"aspp_out_channels": 8, "num_labels": 3},
    ),
    "eomt": lambda: _of(
        "EomtConfig",
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16},
        **{"image_size": SIZE, "patch_size": 16, "num_queries": 5, "num_blocks": 1, "num_upscale_blocks": 1},
        num_labels=3,
    ),
}


def save(folder: Path, family: str, **preprocessor: Any) -> str:
    """Write a network and its preprocessor's settings as their publishers do; return the folder."""
    import json

    torch.manual_seed(0)
    detects = family in DETECTORS
    config = (DETECTORS if detects else SEGMENTERS)[family]()
    config.id2label, config.label2id = LABELS, {name: number for number, name in LABELS.items()}
    kinds = ("ObjectDetection",) if detects else ("SemanticSegmentation", "UniversalSegmentation")
    autos = [getattr(transformers, f"AutoModelFor{kind}") for kind in kinds]
    auto = next(each for each in autos if type(config) in each._model_mapping)
    auto.from_config(config).save_pretrained(folder)
    side = SIDES.get(family, SIZE)
    about = {"size": {"height": side, "width": side}, "do_rescale": True, "rescale_factor": 1 / 255} | preprocessor
    if family in PROCESSORS:
        about["image_processor_type"] = PROCESSORS[family]
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return str(folder)
