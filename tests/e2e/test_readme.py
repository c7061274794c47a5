"""The README's way from photos to a served mask, and its curl lines, on a small model and a real server."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from preloaded import SMN
from served import ROOT, ServerProcess, photo, relative_error

README = (ROOT / "README.md").read_text()
SMALL = ["--backbone", "test_vit"]
"""In place of the defaults, which take a backbone's weights from elsewhere, and minutes."""


def block(begins):
    """The fenced block that begins with these words."""
    return re.search(rf"^```\w*\n({re.escape(begins)}.*?)^```$", README, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """What every line of the walk-through printed, its folder, and the server, which goes on."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("walk")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "theta.safetensors")
    flags = ["--weights", "theta.safetensors", "--image-size", "32"]
    (folder / "photos").mkdir()
    for i in range(64):
        (folder / "photos" / f"{i}.png").write_bytes(photo(i))
    (folder / "cat.jpg").write_bytes(photo(100, (80, 60), "JPEG"))
    (folder / "dog.png").write_bytes(photo(101))
    adapt, serve, opened = block("smn adapt").splitlines()
    (curl,) = re.findall(r"`(curl -F image=@cat.jpg [^`]*)`", README)
    (push,) = re.findall(r"`(smn push photos[^`]*)`", README)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SMN_")}
    bin_folder = str(Path(sys.executable).parent)
    environment = {**plain, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(words, **more):
        return subprocess.run(
            words, cwd=folder, env={**environment, **more}, capture_output=True, text=True, check=True, timeout=240
        ).stdout

    told = run([*shlex.split(adapt, comments=True), *SMALL, *flags, "--minutes", "0.5", "--workers", "0"])
    assert "verdict: " in told
    with ServerProcess(shlex.split(serve, comments=True)[2:], folder, program=SMN) as server:
        pushed = run(shlex.split(push), SMN_SERVER=server.url)
        got = run([*shlex.split(curl.replace("http://127.0.0.1:8000", server.url)), "-sS", "--fail-with-body"])
        address = shlex.split(opened, comments=True)[1].replace("http://127.0.0.1:8000", server.url)
        page = run(["curl", "-sS", "--fail-with-body", address])
        yield {
            "folder": folder,
            "server": server,
            "run": run,
            "pushed": pushed,
            "got": json.loads(got),
            "flags": flags,
            "page": page,
        }


def test_a_mask_trained_and_pushed_by_the_readme_embeds_as_it_does_without_a_server(walked):
    assert walked["pushed"].startswith("photos@1 sha256:")
    (walked["folder"] / "one").mkdir()
    (walked["folder"] / "one" / "cat.jpg").write_bytes((walked["folder"] / "cat.jpg").read_bytes())
    walked["run"](["smn", "embed", "one", "--mask", "photos.smn", "--out", "one.npy", *walked["flags"]])
    wanted = np.load(walked["folder"] / "one.npy")
    assert relative_error(np.array(walked["got"]["embeddings"]), wanted) < 1e-4
    assert walked["got"]["mask"]["digest"] in walked["pushed"]


def test_what_the_third_command_opens_is_the_console(walked):
    assert "<title>SMN" in walked["page"]


def test_every_curl_line_of_the_readme_does_what_it_says(walked):
    calls = block("curl -T").replace("\\\n", " ").splitlines()
    answers = []
    for call in calls:
        words = shlex.split(call.replace("http://127.0.0.1:8000", walked["server"].url), comments=True)
        answers.append(walked["run"]([*words, "-sS", "--fail-with-body"]))
    uploaded, read, several, root, as_npy = answers
    assert json.loads(uploaded)["version"] == 1 and json.loads(read)["current"]["version"] == 1
    assert np.array(json.loads(several)["embeddings"]).shape == (2, 64)
    assert json.loads(root)["mask"] is None
    z = np.load(io.BytesIO((walked["folder"] / "z.npy").read_bytes()))
    assert as_npy == "" and z.shape == (1, 64) and np.linalg.norm(z) == pytest.approx(1, abs=1e-5)


def test_the_other_verbs_of_the_walk_through_work(walked):
    said = re.findall(r"`(smn (?:list|rollback|pull|delete)[^`]*)`", README)
    assert [line.split()[1] for line in said] == ["list", "rollback", "pull", "delete"]
    for line in ["smn push photos.smn --name verbs", *(line.replace(" photos", " verbs") for line in said)]:
        walked["run"](shlex.split(line), SMN_SERVER=walked["server"].url)
    assert (walked["folder"] / "copy.smn").read_bytes() == (walked["folder"] / "photos.smn").read_bytes()
