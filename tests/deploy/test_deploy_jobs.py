"""The jobs that use a trained network, as they are called."""

import json
import re
import subprocess
import sys

import pytest

from multas_ray.cli import OK
from tests.support.jobs import call
from tests.support.shared import ROOT

OWN = re.compile(
    r"\d+ of \d+ images|.*: \d+ images, \d+ detections|\d+ images of .*"
    r"|[┏┃┡│└].*| *(all|by) class(es)? *|.*\.html"
)
"""Lines that these jobs print."""


@pytest.mark.parametrize(
    ("job", "arguments", "left"),
    [
        ("evaluate.py", ["--data", "{scenes}", "--protocol", "voc2012", "--worst", "2"], "result.json"),
        ("predict.py", ["--images", "{photos}/*.png", "--no-overlays"], "predictions.json"),
        ("export.py", ["--no-onnx"], "meta.json"),
    ],
)
def test_a_job_does_what_it_is_told(
    started_ray, monkeypatch, capsys, checkpoint, scenes_path, photos, tmp_path, job, arguments, left
):
    out = tmp_path / "out"
    own = [argument.format(scenes=scenes_path, photos=photos) for argument in arguments]
    code, lines = call(monkeypatch, capsys, job, "--checkpoint", checkpoint, "--out", str(out), *own)
    assert code == OK, lines
    told = json.loads((out / left).read_text())
    if job == "evaluate.py":
        assert (told["protocol"], told["split"]) == ("voc2012", "val")
    if job == "predict.py":
        assert {image["file_name"] for image in told["images"]} == {f"photo{number}.png" for number in range(4)}
        assert not (out / "overlays").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("job", "source"), [("evaluate.py", "--data"), ("predict.py", "--images")])
def test_a_job_with_a_ray_of_its_own_shows_nothing_of_ray(checkpoint, scenes_path, tmp_path, job, source):
    command = [sys.executable, f"jobs/{job}", "--checkpoint", checkpoint, source, scenes_path]
    command += ["--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ran.returncode == OK, ran.stdout
    assert ran.stdout
    assert all(map(OWN.fullmatch, ran.stdout.splitlines())), ran.stdout
