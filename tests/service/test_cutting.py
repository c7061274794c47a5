"""Requests of a client are as large as a server takes, and alike; one bad image leaves the others alone."""

import itertools
import json

import httpx2
import numpy as np
import pytest

from service.answers import Answered, ServerError
from service.calls import ask_embeddings
from service.cutting import BODY_BYTES, PART_BYTES, Limits, ask, cut
from smn_core.errors import InvalidImage
from smn_core.given import each_item

ASKED = ask_embeddings("m")


def sizes(images, limits):
    return [len(some) for some in cut(each_item(images), limits)]


def test_requests_have_as_many_images_and_bytes_as_a_server_takes():
    assert sizes([b"x"] * 7, Limits(3)) == [3, 3, 1]
    room = BODY_BYTES + 2 * (100 + PART_BYTES)
    assert sizes([bytes(100)] * 5, Limits(32, room)) == [2, 2, 1]
    assert sizes([bytes(100)] * 5, Limits(32, room - 1)) == [1] * 5


def test_a_request_is_of_files_or_of_arrays_of_one_shape():
    x, larger = np.zeros((2, 3, 4, 4), np.float32), np.zeros((3, 8, 8), np.float32)
    assert sizes([b"x", b"y", *x, larger, b"z"], Limits(32)) == [2, 2, 1, 1]


def test_no_more_is_read_than_the_request_that_is_cut():
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield b"x"

    requests = cut(each_item(endless()), Limits(4))
    assert [len(next(requests)), len(next(requests))] == [4, 4] and len(read) == 9


@pytest.mark.parametrize(
    ("told", "images"),
    [({"max_images": 64, "batch_size": 32}, 32), ({"max_images": 4, "batch_size": 32}, 4), ({"max_images": "x"}, 32)],
)
def test_limits_are_those_that_a_server_tells(told, images):
    assert Limits.of({**told, "max_body_bytes": 5000}) == Limits(images, 5000)


def refusal(status, code, message):
    return httpx2.Response(
        status,
        content=json.dumps({"error": {"code": code, "message": message}}),
        request=httpx2.Request("POST", "http://smn.test/embed"),
    )


MANY = Limits(32)


def carry_out(images, answer, *, strict=False, limits=MANY):
    """The parts of one request, whose images a function of their names answers; and the images of every request."""
    (some,) = cut(each_item(images), limits)
    sent = []

    def read(response):
        rows = [np.float32([len(name)]) for name in response.json()]
        return Answered(rows, "sha256:0", "smn1:a", "")

    talk = ask(some, ASKED, read, strict=strict)
    try:
        call = next(talk)
        while True:
            names = [data.decode() for _, (_, data, _) in call.files]
            sent.append(names)
            refused = answer(names)
            ok = httpx2.Response(
                200, content=json.dumps(names), request=httpx2.Request("POST", "http://smn.test/embed")
            )
            call = talk.send(refused or ok)
    except StopIteration as done:
        return done.value, sent


def bad_ones(names):
    """As the server does: the first image that begins with `bad`, by its number where there are several."""
    for number, name in enumerate(names):
        if name.startswith("bad"):
            where = f"image {number}: " if len(names) > 1 else ""
            return refusal(422, "invalid_image", f"{where}the 4 bytes are not an image")
        if name.startswith("inf"):
            return refusal(422, "not_finite", f"the embedding of image {number} is not finite: far from any photo's")
    return None


def test_each_bad_image_is_left_out_with_its_reason_and_the_others_are_sent_again():
    given = [b"a", b"bad1", b"b", b"inf", b"bad2", b"c"]
    (part,), sent = carry_out(given, bad_ones)
    assert [item.number for item in part.items] == [0, 2, 5] and len(part.rows) == 3
    assert {left.number: left.reason for left in part.skipped} == {
        1: "the 4 bytes are not an image",
        3: "the embedding is not finite: far from any photo's",
        4: "the 4 bytes are not an image",
    }
    assert sent[-1] == ["a", "b", "c"]


def test_images_that_are_all_bad_are_all_left_out():
    (part,), sent = carry_out([b"bad1", b"bad2"], bad_ones)
    assert not part.items and len(part.skipped) == 2 and sent == [["bad1", "bad2"], ["bad2"]]


def test_strictly_the_first_bad_image_is_an_error_that_names_it():
    with pytest.raises(ServerError, match=r"^image 1: the 4 bytes are not an image$"):
        carry_out([b"a", b"bad1"], bad_ones, strict=True)
    with pytest.raises(InvalidImage, match=r"nowhere\.png: cannot read it"):
        carry_out([b"a", "nowhere.png"], bad_ones, strict=True)


def test_an_image_larger_than_any_request_is_not_sent():
    (part,), sent = carry_out([b"a", bytes(9000)], bad_ones, limits=Limits(32, 5000))
    assert [item.number for item in part.items] == [0] and "at most 5,000" in part.skipped[0].reason and sent == [["a"]]


@pytest.mark.parametrize("code", ["body_too_large", "too_many_images", "deadline"])
def test_a_request_that_is_too_large_for_a_server_is_halved(code):
    def at_most_two(names):
        return refusal(413, code, "too much") if len(names) > 2 else None

    parts, sent = carry_out([b"%d" % i for i in range(5)], at_most_two)
    assert [item.number for part in parts for item in part.items] == [0, 1, 2, 3, 4]
    assert [len(names) for names in sent if len(names) <= 2] == [2, 1, 2]
    with pytest.raises(ServerError, match="too much"):
        carry_out([b"a"], lambda _: refusal(413, code, "too much"))


def test_a_refusal_that_no_image_is_to_blame_for_is_raised():
    with pytest.raises(ServerError, match="no mask"):
        carry_out([b"a", b"b"], lambda _: refusal(404, "not_found", "no mask m"))
    with pytest.raises(ServerError, match="image 7"):
        carry_out([b"a", b"b"], lambda _: refusal(422, "invalid_image", "image 7: not one of these"))
