"""A notebook's Embedder and a server's Client take the same calls and give the same answers."""

import inspect
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from served import inputs, photo, relative_error

import smn
from smn_core.errors import Conflict, InvalidImage


@pytest.fixture(scope="module")
def embedder(world):
    return world.embedder(batch_size=4)


@pytest.fixture(scope="module")
def client(world):
    with smn.Client(world.url) as client:
        yield client


CALLS = {
    "the root": {},
    "a mask": {"mask": "flowers"},
    "cut and of unit length": {"mask": "flowers", "dimensions": 3, "normalize": True},
    "all dimensions": {"mask": "other", "dimensions": 8},
}


@pytest.mark.parametrize("which", CALLS)
def test_one_line_changes_between_a_notebook_and_a_server(world, embedder, client, which):
    here, there = (one.embed(world.photos, **CALLS[which]) for one in (embedder, client))
    assert relative_error(there.embeddings, here.embeddings) < 1e-4
    assert (here.space, here.digest, here.names, here.kept) == (there.space, there.digest, there.names, there.kept)
    assert here.names[0] == str(world.photos / "bright" / "01.png") and len(here.embeddings) == 20
    assert here.space == embedder.space(**CALLS[which]) == client.space(**CALLS[which])


@pytest.mark.parametrize("top", [None, 1, 2])
def test_labels_are_the_same(world, embedder, client, top):
    here, there = (one.classify(world.photos, mask="flowers", top=top) for one in (embedder, client))
    assert (here.space, here.digest, here.names) == (there.space, there.digest, there.names)
    for ours, theirs in zip(here.data, there.data, strict=True):
        assert (ours.label, ours.classes, ours.num_classes) == (theirs.label, theirs.classes, theirs.num_classes)
        assert ours.label == ours.classes[0] and len(ours.probs) == (top or 3)
        np.testing.assert_allclose(ours.probs, theirs.probs, rtol=1e-3)


def test_a_mask_without_a_classifier_labels_nothing(world, embedder, client):
    with pytest.raises(Conflict, match="smn probe"):
        embedder.classify(world.photos, mask="other")
    with pytest.raises(smn.ServerError, match="smn probe"):
        client.classify(world.photos, mask="other")


@pytest.mark.parametrize("call", ["embed", "embed_each", "classify", "space"])
def test_the_calls_have_the_same_words(call):
    here, there = (inspect.signature(getattr(kind, call)).parameters for kind in (smn.Embedder, smn.Client))
    assert {name: word.default for name, word in here.items()} == {name: word.default for name, word in there.items()}


def test_an_image_is_the_same_however_it_is_given(world, embedder, client):
    file = world.photos / "dark" / "00.png"
    with Image.open(file) as image:
        pixels = np.asarray(image)
        given = [str(file), file, file.read_bytes(), image.copy(), pixels]
    for one in (embedder, client):
        z = one.embed(given, mask="flowers").embeddings
        assert len(z) == 5 and all(relative_error(row, z[0]) < 1e-6 for row in z)
        (row,) = one.embed(pixels, mask="flowers").embeddings
        assert relative_error(row, z[0]) < 1e-5


def test_arrays_and_files_may_be_mixed(world, embedder, client):
    x = inputs(5)
    given = [*x[:3], photo(1), *x[3:], world.photos / "dark"]
    here, there = embedder.embed(given), client.embed(given)
    assert len(here.embeddings) == 16 and relative_error(there.embeddings, here.embeddings) < 1e-4
    assert here.names == there.names and here.names[3] == "image 3"
    np.testing.assert_allclose(here.embeddings[[0, 4]], world.theta.embed(x[[0, 3]]), rtol=1e-3, atol=1e-5)


def test_a_turned_photo_is_turned_as_a_pil_image_too(embedder):
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo(3))).save(buffer, "PNG", exif=exif)
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        z = embedder.embed([buffer.getvalue(), image]).embeddings
    assert relative_error(z[1], z[0]) < 1e-6


@pytest.mark.parametrize("kind", ["HEIF", "AVIF"])
def test_what_phones_write_is_read_alike_here_and_by_the_workers_of_a_server(world, embedder, client, tmp_path, kind):
    file = tmp_path / f"photo.{kind.lower()}"
    with Image.open(io.BytesIO(photo(4, (200, 160)))) as image:
        image.save(file, kind, quality=90)
    here, there = embedder.embed(tmp_path), client.embed(tmp_path)
    assert here.names == (str(file),) and relative_error(there.embeddings, here.embeddings) < 1e-4


def test_an_endless_generator_is_embedded_as_far_as_somebody_asks(embedder, client):
    for one in (embedder, client):
        taken = []

        def camera(taken=taken):
            for i in itertools.count():
                taken.append(i)
                yield photo(i % 7)

        with_images = one.embed_each(camera(), mask="flowers")
        rows = list(itertools.islice(with_images, 30))
        with_images.close()
        assert [row.number for row in rows] == list(range(30))
        np.testing.assert_allclose(rows[7].vector, rows[0].vector, rtol=1e-4, atol=1e-5)
        assert len(taken) <= 30 + 6 * 6  # what is in flight, and no more


def test_one_bad_image_is_named_and_the_others_are_embedded(world, embedder, client):
    given = [photo(0), b"no image", photo(1), world.folder / "nowhere.png", photo(2)]
    for one in (embedder, client):
        found = one.embed(given, strict=False)
        assert found.kept == (0, 2, 4) and [left.number for left in found.skipped] == [1, 3]
        assert [left.name for left in found.skipped] == ["image 1", str(world.folder / "nowhere.png")]
        assert "known format" in found.skipped[0].reason and "image 1" not in found.skipped[0].reason
        rows = list(one.embed_each(given, strict=False))
        assert [row.vector is None for row in rows] == [False, True, False, True, False]
        assert rows[1].error == found.skipped[0].reason
        with pytest.raises((InvalidImage, smn.ServerError), match="image 1: "):
            one.embed(given[:3])
        with pytest.raises(smn.SMNError, match="none of the 1 images can be read; the first: image 0"):
            one.embed([b"no image"], strict=False)
        with pytest.raises(smn.InvalidArgument, match="no image was given"):
            one.embed([])


def test_a_promised_space_is_kept(world, embedder, client):
    photos = smn.Collection()
    photos.take(embedder.embed(world.photos / "dark", mask="flowers"))
    photos.take(client.embed(world.photos / "bright", mask="flowers", space=photos.space))
    again = smn.Collection(embedder, "flowers", space=photos.space)
    assert len(again.embed(world.photos / "dark").embeddings) == 10
    assert len(smn.Collection(client, "flowers", space=photos.space).embed(photo(0)).embeddings) == 1
    for one in (embedder, client):
        with pytest.raises(smn.OtherSpace) as refused:
            one.embed(world.photos, mask="other", space=photos.space)
        assert photos.space in str(refused.value) and one.space("other") in str(refused.value)
        with pytest.raises(smn.OtherSpace):
            again.take(one.embed(photo(0), mask="other"))
    assert again.space == photos.space


def test_a_mask_file_that_was_written_anew_is_read_again(world, embedder, tmp_path):
    path = tmp_path / "mine.smn"
    path.write_bytes((world.folder / "flowers.smn").read_bytes())
    first = embedder.embed(photo(0), mask=path)
    path.write_bytes((world.folder / "other.smn").read_bytes())
    second = embedder.embed(photo(0), mask=path)
    assert first.space != second.space and relative_error(second.embeddings, first.embeddings) > 1e-3


BAD = {
    "no such mask": ({"mask": "nowhere"}, "nowhere"),
    "mask and cascade": ({"mask": "flowers", "cascade": "places"}, "one of them"),
    "a mode without a cascade": ({"mode": "conditional"}, "cascade"),
    "too many dimensions": ({"dimensions": 9}, "dimensions"),
}


@pytest.mark.parametrize("which", BAD)
def test_what_cannot_be_done_is_one_clear_error(embedder, which):
    words, said = BAD[which]
    with pytest.raises(smn.InvalidArgument, match=said):
        embedder.embed(photo(0), **words)


def test_an_array_of_another_shape_is_refused(embedder):
    with pytest.raises(smn.InvalidArgument, match=r"image 0 is an array \[3, 8, 8\], expected \[3, 32, 32\]"):
        embedder.embed(np.zeros((1, 3, 8, 8), np.float32))
