"""The official OpenAI SDK against the gateway: the installed version always, others in environments of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.gateway.live import serving
from tests.gateway.test_app import as_asked

CLIENT = Path(__file__).parent / "sdk_client.py"
WHOLE = "Grüße, 世界"


def check(python: Path | str, url: str) -> dict:
    ran = subprocess.run([str(python), str(CLIENT), url + "/v1"], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["text"] == told["streamed"] == WHOLE
    assert told["selected"] in ("small", "large")
    assert told["usage"]
    assert told["stream_usage"]
    assert told["finish"] == "stop"
    assert told["problem"] == "model_not_found"
    assert told["models"][0] == "auto"
    return told


def test_the_installed_sdk_gets_routed_answers(tmp_path):
    pytest.importorskip("openai")
    with serving(tmp_path, {"small": as_asked, "large": as_asked}) as live:
        check(sys.executable, live.url)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["openai>=2,<3", "openai>=3,<4"])
def test_each_major_version_gets_routed_answers(tmp_path, version):
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", version], check=True, timeout=600)
    with serving(tmp_path, {"small": as_asked, "large": as_asked}) as live:
        told = check(python, live.url)
    assert told["sdk"].split(".")[0] == version[8]
