"""Configurations of tests."""

import json
from typing import Any

from multas_ray.config import Config
from multas_ray.config_file import parse_config


def changed(config: Config, **values: Any) -> Config:
    """The configuration with other values, by dotted key: `changed(config, **{"train.steps": 9})`."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return parse_config(config.model_dump(mode="json"), overrides)
