"""`make lab` serves the chapters, and a kernel runs their code."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest
import websocket

ROOT = Path(__file__).parents[1]
TOKEN = "a-secret-of-this-test"


def request(url, method="GET"):
    call = urllib.request.Request(url, method=method, headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(call, timeout=30) as answer:
        return answer.read()


@pytest.fixture
def lab():
    if shutil.which("make") is None or not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("`make lab` needs make and an installed .venv")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = f"--no-browser --ServerApp.ip=127.0.0.1 --ServerApp.port={port} --IdentityProvider.token={TOKEN}"
    process = subprocess.Popen(
        ["make", "lab", f"ARGS={arguments}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                request(f"{address}/api/status")
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, process.stdout.read().decode()
                time.sleep(0.25)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_in_kernel(address, code):
    """What ``code`` prints in a new kernel of the server."""
    kernel = json.loads(request(f"{address}/api/kernels", "POST"))["id"]
    channel = websocket.create_connection(
        f"{address.replace('http', 'ws')}/api/kernels/{kernel}/channels?token={TOKEN}", timeout=120
    )
    identity = uuid.uuid4().hex
    header = {"msg_id": identity, "msg_type": "execute_request", "session": "test", "username": "", "version": "5.3"}
    content = {"code": code, "silent": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    channel.send(json.dumps(message))
    printed = ""
    while True:
        answer = json.loads(channel.recv())
        if answer["parent_header"].get("msg_id") != identity:
            continue
        if answer["msg_type"] == "stream":
            printed += answer["content"]["text"]
        if answer["msg_type"] == "error":
            return "\n".join(answer["content"]["traceback"])
        if answer["msg_type"] == "execute_reply":
            return printed


@pytest.mark.slow
def test_lab_opens_at_the_first_chapter_and_its_kernel_knows_the_library(lab):
    folder = json.loads(request(f"{lab}/api/contents/book/part1_foundations"))
    names = [entry["name"] for entry in folder["content"]]
    assert "01_five_answers_from_one_image.ipynb" in names
    assert b"JupyterLab" in request(f"{lab}/lab/tree/book/part1_foundations/01_five_answers_from_one_image.ipynb")
    printed = run_in_kernel(lab, "import mlore_edu as me; print(me.scene(0, 64, 'easy').semseg.shape)")
    assert printed == "(64, 64)\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_full_disk_is_told_before_anything_is_installed(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    df = tmp_path / "programs" / "df"
    df.parent.mkdir()
    df.write_text(
        '#!/bin/sh\necho "Filesystem 1024-blocks Used Available"\necho "/dev/disk 20000000 9000000 13000000"\n'
    )
    df.chmod(0o755)
    path = f"{df.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "--no-print-directory", "lab"], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True
    )
    assert done.returncode == 2
    assert done.stdout.decode().splitlines() == [
        "Installing takes up to 14 GB of disk for a while and keeps 7 GB; make room in this folder's disk."
    ]
    assert not (tmp_path / ".venv").exists()
