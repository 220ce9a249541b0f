"""The commands of docs/guide/data.md are ones: flags of `prepare` that go together, and trainings of configurations."""

import re
import shlex
from pathlib import Path

import pytest

from jobs.prepare import parse
from multas_ray.config_file import load_config
from multas_ray.formats.flags import parsed_options
from tests.support.shared import ROOT

COMMANDS = re.findall(
    r"^    python jobs/(prepare|train)\.py (.*)$",
    (ROOT / "docs/guide/data.md").read_text().replace("\\\n", " "),
    re.MULTILINE,
)


def test_the_guide_prepares_and_trains() -> None:
    assert {job for job, _ in COMMANDS} == {"prepare", "train"}


@pytest.mark.parametrize(("job", "line"), COMMANDS, ids=lambda part: part[:60])
def test_a_command_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, line: str) -> None:
    words = shlex.split(line)
    if job == "train":
        load_config(str(ROOT / words[words.index("--config") + 1]), [word for word in words if "=" in word])
        return
    monkeypatch.chdir(tmp_path)
    for word in words:
        if not word.startswith("-"):
            Path(word).mkdir(parents=True, exist_ok=True)
    args = parse(words)
    parsed_options(args.format.Options, args)
