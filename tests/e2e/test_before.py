"""What was made before the redesign reads, embeds, serves and resumes after it.

`tests/golden/before/` holds a mask, a cascade and a half-finished run of an earlier commit. Where processor and
libraries are those that the set was made with (`machine.json`), what a run learns is compared byte for byte. Elsewhere
sums round otherwise: there losses of a run may be 5e-3 apart, and 1 in 10 of the OFF weights. Embeddings may be 1e-5
apart everywhere: a start chooses the forms in which layers run, and each rounds in its own way.
"""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from before import make
from safetensors.numpy import load_file
from served import ROOT, ServerProcess, relative_error

from smn_core import bits, maskfile, tensorfile
from smn_core.cascade import file as cascade_file

SET = ROOT / "tests" / "golden" / "before"
SAME_MACHINE = json.loads((SET / "machine.json").read_text()) == make.machine()
DIGESTS = {
    "vit": "sha256:4ca0b2fdbf7ab69add20eae0562a334faf20bfdf307eb4027ddc4b2a1190bfef",
    "resnet": "sha256:f0e8d16751819b4d2b9ad2f71542151219033354171fb18ea280a2501fd9fafd",
}
CASCADE_DIGESTS = {
    "vit": "sha256:e5af94be21f9dba461b86322ea533353a03275e5e900687ddfa4f87fb0ce5665",
    "resnet": "sha256:5e5bb7d6c1bb44db3bbdecaac68dadb8f47cbe8c92bf724571dc836f55fbd342",
}
APART, FITTED_APART = 1e-5, 1e-3

# Many verbs in one process: most of a short verb's time is the import of torch.
VERBS = """
import json, os, sys
import smn
for folder, words in json.loads(sys.argv.pop()):
    os.chdir(folder)
    sys.argv[1:] = words
    try:
        smn.main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def smn(commands, **environment):
    """Run verbs of this repository's code, each in a folder of its own."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SMN_")}
    done = subprocess.run(
        [sys.executable, "-c", VERBS, json.dumps([(str(folder), words) for folder, words in commands])],
        cwd=ROOT,
        env={**plain, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """A folder in which this code embedded through the old files, and finished the old runs and cascades anew."""
    root = tmp_path_factory.mktemp("before")
    shutil.copytree(SET, root / "old")
    shutil.copytree(SET, root / "resumed")
    shutil.copytree(SET, root / "refitted")  # by the old root: the resumed one may have other bits here
    embeds, learns = [], []
    for model in make.MODELS:
        old, resumed, refitted = (root / name / model for name in ("old", "resumed", "refitted"))
        embeds += [(old, make.embed_words(model, f"new-{out}", *way)) for out, way in make.EMBEDDINGS.items()]
        (resumed / "digits.smn").unlink()
        (refitted / "cascade" / "cascade.safetensors").unlink()
        learns += [(resumed, [*make.train_words(model), "--resume"])]
        learns += [(refitted, [*make.cascade_words(model), "--resume"])]
    smn([*embeds, *learns])
    return root


@pytest.fixture(params=list(make.MODELS))
def model(request):
    return request.param


def test_an_old_mask_reads_with_its_digest(model):
    data, mask = maskfile.read_file(SET / model / "digits.smn")
    assert mask.digest == tensorfile.digest_of(data) == DIGESTS[model]
    assert mask.n_off > 0
    assert bool(mask.state) == (model == "resnet")


def test_an_old_cascade_reads_with_its_digest_and_names_the_old_mask(model):
    found = cascade_file.open_folder(SET / model / "cascade")
    assert found.cascade.digest == CASCADE_DIGESTS[model]
    assert found.cascade.root == DIGESTS[model]
    assert [mask.digest for mask in found.masks()] == [found.cascade.root, *found.cascade.experts]


@pytest.mark.parametrize("out", list(make.EMBEDDINGS))
def test_embeddings_through_an_old_mask_or_cascade_are_the_old_ones(model, again, out):
    found, wanted = again / "old" / model / f"new-{out}", SET / model / out
    assert relative_error(np.load(found), np.load(wanted)) < APART


def test_an_old_run_resumes_and_ends_in_the_mask_that_the_old_code_ended_in(model, again):
    found, wanted = again / "resumed" / model / "digits.smn", SET / model / "digits.smn"
    if SAME_MACHINE:
        assert found.read_bytes() == wanted.read_bytes()
    new, old = maskfile.read_mask(found), maskfile.read_mask(wanted)
    assert bits.count_different(new.packed, old.packed) <= old.n_off / 10
    losses = [json.loads(mask.metadata["metrics"]) for mask in (new, old)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_an_old_cascade_is_fitted_anew_from_its_experts_to_the_same_one(model, again):
    """By the old command line, on the old root; the experts count as finished and are kept.

    Fusion and router are fitted on embeddings, so their numbers are as near as these.
    """
    found, wanted = again / "refitted" / model / "cascade", SET / model / "cascade"
    for expert in ("expert-1.smn", "expert-2.smn"):
        assert (found / expert).read_bytes() == (wanted / expert).read_bytes()
    new, old = (cascade_file.open_folder(folder).cascade for folder in (found, wanted))
    assert (new.experts, new.mode, new.fusion.kind) == (old.experts, old.mode, old.fusion.kind)
    if SAME_MACHINE:
        tensors = [load_file(folder / "cascade.safetensors") for folder in (found, wanted)]
        assert tensors[0].keys() == tensors[1].keys()
        for name, values in tensors[1].items():
            assert relative_error(tensors[0][name], values) < FITTED_APART, name


def test_an_old_mask_and_cascade_are_served_with_the_embeddings_of_the_files(model, again, tmp_path):
    """A server forms batches of other sizes than `smn embed`, whose sums may round otherwise: within 1e-5."""
    import httpx2

    folder = again / "old" / model
    images = sorted((SET / "images").iterdir())
    with ServerProcess([*make.backbone_words(model), "--registry", tmp_path / "registry"], folder) as server:
        pushes = [["push", "digits.smn", "--name", "digits"], ["push", "cascade", "--name", "places"]]
        smn([(folder, words) for words in pushes], SMN_SERVER=server.url)
        for out, query in {
            "mask.npy": "mask=digits",
            "unconditional.npy": "cascade=places&mode=unconditional",
            "conditional.npy": "cascade=places&mode=conditional",
        }.items():
            answer = httpx2.post(
                f"{server.url}/embed?{query}",
                files=[("image", (path.name, path.read_bytes())) for path in images],
                headers={"Accept": "application/x-npy"},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            assert relative_error(np.load(io.BytesIO(answer.content)), np.load(SET / model / out)) < APART
        served = httpx2.get(f"{server.url}/masks/digits/file", timeout=60)
        assert served.content == (SET / model / "digits.smn").read_bytes()
