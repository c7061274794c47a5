"""POST /embed as a client sees it: the same numbers as plain timm, every form, every refusal."""

import base64
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from independent_client import NPY, as_json, as_multipart, as_npy
from PIL import Image
from served import Theta, eventually, inputs, photo, relative_error

PNG = "image/png"


def put(client, name, mask):
    answer = client.put(f"/masks/{name}", content=mask.data)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def embed(client, body, content_type=PNG, headers=None, **params):
    return client.post("/embed", content=body, params=params, headers={"Content-Type": content_type, **(headers or {})})


def vectors(answer):
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == NPY:
        return np.load(io.BytesIO(answer.content), allow_pickle=False)
    return np.array(answer.json()["embeddings"], np.float32)


# --- the right numbers


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_an_independent_client_gets_what_plain_timm_gives_in_every_form(theta, plain_client, codec):
    mask, files = theta.mask(seed=11, codec=codec), [photo(1), photo(2, (50, 64))]
    written = plain_client.put_mask(f"forms-{codec}", mask.data)
    assert written.status == 201 and written.json["digest"] == mask.digest and written.json["version"] == 1
    x = np.concatenate([theta.pixels(file) for file in files])
    for wanted, params in ((theta.embed(x), {}), (theta.embed(x, mask), {"mask": f"forms-{codec}"})):
        requests = [
            (as_json(files), "application/json"),
            (as_json(files, data_uri=PNG), "application/json"),
            as_multipart(files),
            (as_npy(x), NPY),
        ]
        for body, content_type in requests:
            for accept in ("application/json", NPY):
                answer = plain_client.embed(body, content_type, accept, **params)
                assert answer.status == 200, answer.body
                assert answer.headers["content-type"] == accept
                assert answer.headers["x-smn-digest"] == (mask.digest if params else "root")
                assert relative_error(answer.embeddings, wanted) < 1e-4
        one = plain_client.embed(files[0], PNG, **params)
        assert relative_error(one.embeddings, wanted[:1]) < 1e-4
    assert relative_error(theta.embed(x, mask), theta.embed(x)) > 0.01


def test_a_resnet_mask_brings_its_running_statistics(serve):
    theta = Theta("test_resnet")
    client, mask, x = serve(of=theta), theta.mask(with_state=True), inputs(3)
    put(client, "m", mask)
    assert relative_error(vectors(embed(client, as_npy(x), NPY, mask="m")), theta.embed(x, mask)) < 1e-4
    assert relative_error(vectors(embed(client, as_npy(x), NPY)), theta.embed(x)) < 1e-4


@pytest.mark.parametrize("kind", ["diagonal", "float32", "float16", "int8"])
def test_a_mask_with_a_map_serves_mapped_embeddings_in_every_form(client, theta, kind):
    mask, files = theta.mask(21, with_affine=kind), [photo(1), photo(2, (50, 64))]
    put(client, "m", mask)
    x = np.concatenate([theta.pixels(file) for file in files])
    wanted = theta.embed(x, mask)
    bare = theta.embed(x, replace(mask, affine={}))
    assert relative_error(wanted, bare) > 0.1
    for body, content_type in ((as_json(files), "application/json"), as_multipart(files), (as_npy(x), NPY)):
        for accept in ("application/json", NPY):
            found = vectors(embed(client, body, content_type, {"Accept": accept}, mask="m"))
            assert relative_error(found, wanted) < 1e-4
    cut = wanted[:, :3]
    found = vectors(embed(client, as_npy(x), NPY, mask="m", dimensions=3, normalize="true"))
    assert relative_error(found, cut / np.linalg.norm(cut, axis=1, keepdims=True)) < 1e-4
    assert relative_error(vectors(embed(client, as_npy(x), NPY)), theta.embed(x)) < 1e-4


def test_masks_that_share_their_bits_are_told_apart_by_their_maps(serve, theta):
    """Asked for at the same time, so that they meet in a batch."""
    client, xs = serve(batch_size=16), [inputs(1 + i % 3, seed=i) for i in range(24)]
    masks = [theta.mask(3, with_affine=kind) for kind in (None, "diagonal", "float32")]
    assert len({mask.digest for mask in masks}) == 3
    for number, mask in enumerate(masks):
        put(client, f"m{number}", mask)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda i: vectors(embed(client, as_npy(xs[i]), NPY, mask=f"m{i % 3}")), range(len(xs)))
        for i, found in enumerate(answers):
            assert relative_error(found, theta.embed(xs[i], masks[i % 3])) < 1e-4


def test_the_answer_says_model_mask_and_dimensions(client, theta):
    mask = theta.mask()
    put(client, "m", mask)
    body = embed(client, photo(), mask="m").json()
    assert body["model"] == "test_vit" and body["cascade"] is None and body["dimensions"] == 8
    assert body["mask"] == {"name": "m", "version": 1, "digest": mask.digest}
    assert embed(client, photo()).json()["mask"] is None


def test_a_reference_is_a_name_a_version_or_a_digest(client, theta):
    first, second, x = theta.mask(1), theta.mask(2), inputs()
    put(client, "m", first)
    put(client, "m", second)
    for reference, mask, version in [
        ("m", second, 2),
        ("m@1", first, 1),
        ("m@2", second, 2),
        (f"m@{first.digest}", first, 1),
    ]:
        answer = embed(client, as_npy(x), NPY, mask=reference)
        assert answer.headers["x-smn-digest"] == mask.digest
        assert answer.json()["mask"] == {"name": "m", "version": version, "digest": mask.digest}
        assert relative_error(vectors(answer), theta.embed(x, mask)) < 1e-4


def test_dimensions_are_cut_before_the_length_is_made_one(client, theta):
    x = inputs(2)
    z = theta.embed(x)[:, :3]
    assert relative_error(vectors(embed(client, as_npy(x), NPY, dimensions=3)), z) < 1e-4
    answer = embed(client, as_npy(x), NPY, dimensions=3, normalize="true")
    assert answer.json()["dimensions"] == 3
    assert relative_error(vectors(answer), z / np.linalg.norm(z, axis=1, keepdims=True)) < 1e-4


def test_server_timing_tells_the_stages_of_a_request(client, theta):
    put(client, "m", theta.mask())
    text = embed(client, photo(), mask="m").headers["server-timing"]
    stages = {part.split(";dur=")[0].strip(): float(part.split(";dur=")[1]) for part in text.split(",")}
    assert {"queue", "decode", "swap", "forward", "total"} <= set(stages)
    assert all(0 <= ms <= stages["total"] for ms in stages.values())


def test_a_request_id_comes_back_and_one_is_made_where_none_was_given(client):
    assert embed(client, photo(), headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == "a-1"
    made = embed(client, photo()).headers["x-request-id"]
    assert made and made != embed(client, photo()).headers["x-request-id"]
    assert embed(client, b"no image", headers={"X-Request-ID": "a-2"}).headers["x-request-id"] == "a-2"
    assert embed(client, photo(), headers={"X-Request-ID": "a b\x01"}).headers["x-request-id"] != "a b\x01"


# --- images that work


def test_an_animated_image_is_embedded_by_its_first_frame(client):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    still = io.BytesIO()
    frames[0].save(still, "PNG")
    moving = vectors(embed(client, buffer.getvalue(), "image/gif"))
    assert relative_error(moving, vectors(embed(client, still.getvalue()))) < 1e-2


def test_a_cmyk_jpeg_is_embedded(client):
    found = vectors(embed(client, photo(fmt="JPEG", mode="CMYK"), "image/jpeg"))
    assert found.shape == (1, 8) and np.isfinite(found).all()


def test_a_16_bit_image_is_scaled_not_clipped(client):
    values = (np.arange(40 * 40).reshape(40, 40) * 40).astype(np.uint16)
    deep, flat = io.BytesIO(), io.BytesIO()
    Image.fromarray(values).save(deep, "PNG")
    Image.fromarray(((values.astype(int) + 128) // 257).astype(np.uint8)).save(flat, "PNG")
    assert relative_error(vectors(embed(client, deep.getvalue())), vectors(embed(client, flat.getvalue()))) < 1e-4


def test_an_exif_rotated_image_is_turned_upright(client):
    with Image.open(io.BytesIO(photo())) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = io.BytesIO()
        image.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    assert relative_error(vectors(embed(client, turned.getvalue())), vectors(embed(client, photo()))) < 1e-4


# --- refusals


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BAD_IMAGES = {
    "text": (b"this is text, not an image", "invalid_image"),
    "empty": (b"", "invalid_image"),
    "truncated JPEG": (photo(fmt="JPEG", size=(200, 200))[:1500], "invalid_image"),
    "100-megapixel bomb": (png_header(10_000, 10_000), "image_too_large"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "invalid_image"),
}


@pytest.mark.parametrize("which", BAD_IMAGES)
def test_what_is_no_image_is_refused_with_422(client, require_error, which):
    data, code = BAD_IMAGES[which]
    require_error(embed(client, data), 422, code)


def test_the_message_says_which_of_several_images_is_bad(client, require_error):
    assert "image 1" in require_error(embed(client, as_json([photo(), b"text"]), "application/json"), 422)


BAD_BODIES = {
    "no image in JSON": (b'{"images": []}', "application/json", 400, "no_images"),
    "no images key": (b"{}", "application/json", 400, "no_images"),
    "images is no list": (b'{"images": "abcd"}', "application/json", 400, "no_images"),
    "a number": (b'{"images": [1]}', "application/json", 400, "invalid_image_text"),
    "not base64": (b'{"images": ["%%%"]}', "application/json", 400, "invalid_image_text"),
    "not JSON": (b"{", "application/json", 400, "invalid_json"),
    "deep JSON": (b"[" * 100_000, "application/json", 400, "invalid_json"),
    "a JSON list": (b"[]", "application/json", 400, "invalid_json"),
    "no part": (as_multipart([])[0], as_multipart([])[1], 400, None),
    "no boundary": (b"x", "multipart/form-data", 400, None),
    "garbage as multipart": (b"garbage\r\n" * 9, "multipart/form-data; boundary=x", 400, None),
    "too many in JSON": (as_json([b"x"] * 9), "application/json", 413, "too_many_images"),
    "too many parts": (*as_multipart([b"x"] * 9), 413, "too_many_images"),
    "far too many parts": (*as_multipart([b"x"] * 40), 413, "too_many_images"),
    "1,000 parts": (*as_multipart([b"x"] * 1000), 413, "too_many_images"),
    "1,000 fields": (
        b"".join(b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nv\r\n' for _ in range(1000))
        + b"--b--\r\n",
        "multipart/form-data; boundary=b",
        413,
        "too_many_parts",
    ),
    "too many that are no base64": (
        b'{"images": [' + b'"%",' * 9 + b'"%"]}',
        "application/json",
        413,
        "too_many_images",
    ),
    "text": (b"x", "text/plain", 415, "unsupported_type"),
    "a form": (b"x=1", "application/x-www-form-urlencoded", 415, "unsupported_type"),
}


@pytest.mark.parametrize("which", BAD_BODIES)
def test_a_malformed_body_is_refused_with_its_own_status(serve, require_error, which):
    body, content_type, status, code = BAD_BODIES[which]
    require_error(embed(serve(max_images=8), body, content_type), status, code)


def npy_header(text, version=1):
    text = text.encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


BAD_ARRAYS = {
    "wrong dtype": (as_npy(inputs().astype(np.float64)), 422),
    "big endian": (as_npy(inputs().astype(">f4")), 422),
    "wrong shape": (as_npy(inputs()[:, :, :16]), 422),
    "three dimensions": (as_npy(inputs()[0]), 422),
    "Fortran order": (as_npy(np.asfortranarray(inputs(2))), 422),
    "NaN": (as_npy(np.where(inputs() > 2, np.nan, inputs())), 422),
    "infinity": (as_npy(np.where(inputs() > 2, np.inf, inputs()).astype(np.float32)), 422),
    "truncated": (as_npy(inputs())[:-1], 422),
    "longer than it says": (as_npy(inputs()) + b"\0", 422),
    "pickled objects": (as_npy(np.array([{"a": 1}], dtype=object)), 422),
    "huge declared shape": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 3, 32, 32)}"),
        413,
    ),
    "negative shape": (npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 32, 32)}"), 422),
    "no row": (as_npy(inputs(0)), 400),
    "too many rows": (as_npy(inputs(9)), 413),
    "unclosed header": (npy_header("{'descr': '<f4', 'shape': ("), 422),
    "nested header": (npy_header("(" * 4000), 422),
    "no header": (b"\x93NUMPY", 422),
    "empty": (b"", 422),
    "unknown version": (npy_header("{}", 9), 422),
    "a code for a dtype": (npy_header("{'descr': 'O8', 'fortran_order': False, 'shape': (1, 3, 32, 32)}"), 422),
    "a strange dtype": (npy_header("{'descr': 'zz', 'fortran_order': False, 'shape': (1, 3, 32, 32)}"), 422),
}


@pytest.mark.parametrize("which", BAD_ARRAYS)
def test_an_array_that_is_no_model_input_is_refused(serve, require_error, which):
    body, status = BAD_ARRAYS[which]
    require_error(embed(serve(max_images=8), body, NPY), status)


BAD_REQUESTS = {
    "mask and cascade": ({"mask": "m", "cascade": "c"}, {}, 400),
    "a mask that is no reference": ({"mask": "../../etc/passwd"}, {}, 400),
    "an empty mask": ({"mask": ""}, {}, 400),
    "zero dimensions": ({"dimensions": 0}, {}, 400),
    "too many dimensions": ({"dimensions": 9}, {}, 400),
    "dimensions that are no number": ({"dimensions": "many"}, {}, 400),
    "a deadline that is no number": ({}, {"X-Timeout-Ms": "soon"}, 400),
    "a deadline of zero": ({}, {"X-Timeout-Ms": "0"}, 400),
    "a superscript deadline": ({}, {"X-Timeout-Ms": b"\xb2"}, 400),
    "an endless deadline": ({}, {"X-Timeout-Ms": "9" * 5000}, 400),
    "a name that is no UTF-8": ({"mask": b"\xff\xfe"}, {}, 400),
    "a parameter that there is none": ({"masks": "m"}, {}, 400),
    "a parameter given twice": ({"mask": ["m", "m@1"]}, {}, 400),
    "an unknown mask": ({"mask": "nowhere"}, {}, 404),
    "an unknown version": ({"mask": "m@7"}, {}, 404),
}


@pytest.mark.parametrize("which", BAD_REQUESTS)
def test_a_request_that_cannot_mean_anything_is_refused(client, theta, require_error, which):
    params, headers, status = BAD_REQUESTS[which]
    put(client, "m", theta.mask())
    require_error(embed(client, photo(), headers=headers, **params), status)


def test_an_unknown_mask_names_near_misses(client, theta, require_error):
    put(client, "flowers", theta.mask())
    assert "flowers" in require_error(embed(client, photo(), mask="flower"), 404, "not_found")


def test_a_misspelt_parameter_is_never_answered_by_the_untouched_backbone(client, require_error):
    message = require_error(embed(client, photo(), masks="flowers"), 400, "unknown_parameter")
    assert "masks" in message and "mask," in message


@pytest.mark.parametrize("path", ["/embed/", "/masks/"])
def test_a_path_with_one_slash_too_many_is_404_and_no_empty_redirect(client, require_error, path):
    require_error(client.get(path, follow_redirects=False), 404, "no_such_route")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/x-npy, */*", NPY),
        ("application/json, application/x-npy;q=0.1", "application/json"),
        ("application/x-npy;q=0, */*", "application/json"),
        ("application/x-npy;q=0.9, application/json;q=0.8", NPY),
        ("text/html", "application/json"),
    ],
)
def test_the_answer_comes_in_the_form_that_the_client_rates_highest(client, accept, kind):
    assert embed(client, photo(), headers={"Accept": accept}).headers["content-type"] == kind


def test_a_wrong_method_and_a_wrong_path_have_the_one_body_too(client, require_error):
    answer = client.get("/embed")
    require_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    require_error(client.get("/nowhere"), 404, "no_such_route")


EMBED_TYPES = [PNG, "application/json", NPY, "multipart/form-data; boundary=x"]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        *(("/embed", kind) for kind in EMBED_TYPES),
        ("/v1/embeddings", "application/json"),
        ("/masks/m/current", "application/json"),
    ],
)
def test_a_body_over_the_limit_is_refused_whether_it_says_its_length_or_not(
    serve, require_error, declared, path, content_type
):
    body = b"\r\n--x\r\n" + b'{"model": "test_vit", "input": "' + b"a" * 70_000
    client = serve(max_body_bytes=4096)
    sent = body if declared else iter([body[i : i + 500] for i in range(0, len(body), 500)])
    method = "PUT" if path.endswith("current") else "POST"
    require_error(
        client.request(method, path, content=sent, headers={"Content-Type": content_type}), 413, "body_too_large"
    )


def test_a_url_or_path_as_image_is_never_fetched_or_opened(client, require_error, tmp_path):
    import http.server

    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    secret = tmp_path / "secret.png"
    secret.write_bytes(photo())
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}/a.png"
        for text in (url, f"file://{secret}", f"data:{url}", f"data:image/png,{url}"):
            body = json.dumps({"images": [text]}).encode()
            require_error(embed(client, body, "application/json"), 400)
            openai = client.post("/v1/embeddings", json={"model": "test_vit", "input": text})
            require_error(openai, 400)
        path = json.dumps({"images": [str(secret)]}).encode()
        assert embed(client, path, "application/json").status_code in (400, 422)
        other.shutdown()
    assert asked == []


def test_one_bad_image_fails_its_own_request_and_not_its_batch_mates(client, theta):
    put(client, "m", theta.mask())
    wanted = vectors(embed(client, photo(), mask="m"))
    answers = {}

    def send(i):
        body = photo()[: 200 if i % 3 == 0 else None]
        answers[i] = embed(client, body, mask="m")

    threads = [threading.Thread(target=send, args=(i,)) for i in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, answer in answers.items():
        if i % 3 == 0:
            assert answer.status_code == 422
        else:
            assert relative_error(vectors(answer), wanted) < 1e-4


def test_a_failure_inside_the_server_has_the_one_body_and_the_request_id(client, require_error, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(client.app.state.server.registry, "names", broken)
    answer = client.get("/masks", headers={"X-Request-ID": "a-3"})
    assert "secret" not in require_error(answer, 500, "internal_error")
    assert answer.headers["x-request-id"] == "a-3"


def test_memory_of_a_request_is_given_back(client):
    server = client.app.state.server
    for body in (photo(), b"text"):
        embed(client, body)
    eventually(
        lambda: server.admission.admitted == 0 and server.in_flight == 0 and server.embedder.batcher.waiting == 0
    )


def test_base64_in_the_openai_shape_is_little_endian_float32(client, theta):
    uri = f"data:image/png;base64,{base64.b64encode(photo()).decode()}"
    answer = client.post("/v1/embeddings", json={"model": "test_vit", "input": [uri], "encoding_format": "base64"})
    found = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    assert relative_error(found, theta.embed(theta.pixels(photo()))[0]) < 1e-4


@pytest.mark.parametrize("method", ["PATCH", "POST"])
@pytest.mark.parametrize("path", ["/masks/x", "/cascades/x"])
def test_a_405_names_every_method_that_the_path_takes(client, require_error, method, path):
    answer = client.request(method, path)
    require_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"


# --- nothing of a request is passed over


@pytest.mark.parametrize("cut", [1, 20, 300])
@pytest.mark.parametrize("n_files", [1, 2])
def test_a_multipart_body_that_was_cut_short_is_refused_not_answered_in_part(client, require_error, cut, n_files):
    body, content_type = as_multipart([photo(i) for i in range(n_files)])
    message = require_error(embed(client, body[: -cut - 4], content_type), 400, "invalid_multipart")
    assert "cut short" in message


def test_a_multipart_body_may_have_an_epilogue_and_end_without_a_line_break(client):
    body, content_type = as_multipart([photo()])
    for whole in (body.rstrip(), body + b"and so on\r\n"):
        assert embed(client, whole, content_type).status_code == 200


@pytest.mark.parametrize("field", ["mask", "cascade", "dimensions", "note"])
def test_a_field_that_nobody_reads_is_refused_since_it_may_name_a_mask(client, theta, require_error, field):
    put(client, "named", theta.mask())
    answer = client.post("/embed", files={"image": ("x.png", photo(), PNG)}, data={field: "named"})
    assert "query" in require_error(answer, 400, "unknown_field")
    body = json.dumps({**json.loads(as_json([photo()])), field: "named"}).encode()
    assert "query" in require_error(embed(client, body, "application/json"), 400, "unknown_field")


def test_an_array_in_fortran_order_is_refused_with_that_reason(client, require_error):
    message = require_error(embed(client, as_npy(np.asfortranarray(inputs(2))), NPY), 422, "invalid_tensor")
    assert "Fortran order" in message and "C order" in message


def test_values_that_overflow_on_the_way_give_no_embedding(client, require_error):
    x = inputs(2)
    x[1] = 3e38
    assert "image 1" in require_error(embed(client, as_npy(x), NPY), 422, "not_finite")


def test_warnings_reach_who_asked_for_an_array(client, theta):
    trained = json.dumps({"input_size": [3, 64, 64]})
    put(client, "resized", theta.mask(seed=5, preprocess=trained))
    answer = embed(client, photo(), mask="resized", headers={"Accept": NPY})
    assert "input_size" in answer.headers["x-smn-warnings"]
    assert "x-smn-warnings" not in embed(client, photo(), headers={"Accept": NPY}).headers


TEXTS = {
    "lines of 76": base64.encodebytes,
    "a line break at its end": lambda data: base64.b64encode(data) + b"\r\n",
    "no padding": lambda data: base64.b64encode(data).rstrip(b"="),
    "a data URI in capitals": lambda data: b"DATA:image/PNG;BASE64," + base64.b64encode(data),
    "a data URI with lines": lambda data: b"data:image/png;base64,\n" + base64.encodebytes(data).rstrip(b"=\n"),
}


@pytest.mark.parametrize("size", [(40, 36), (41, 36), (43, 37)])
@pytest.mark.parametrize("form", TEXTS)
def test_base64_is_read_as_clients_of_every_kind_write_it(client, form, size):
    image = photo(size=size)
    image += b"\0" * ((1 - len(image)) % 3)  # so that there is padding to leave out
    plain = client.post("/embed", content=image, headers={"content-type": "image/png"}).json()["embeddings"]
    found = client.post("/embed", json={"images": [TEXTS[form](image).decode()]}).json()["embeddings"]
    assert found == plain


@pytest.mark.parametrize("text", ["AAA=AAAA", "AAAAA", "AA==AAAA", "AAAA====", "A" * 2**20 + "=AAA", "AAé=", "AA-_"])
def test_what_is_not_base64_is_refused(client, require_error, text):
    require_error(client.post("/embed", json={"images": [text]}), 400, "invalid_image_text")


def test_rows_are_in_the_order_of_the_parts_whatever_their_fields_are_called(client):
    images = [photo(seed=seed) for seed in range(4)]
    one = [client.post("/embed", files=[("image", ("a", image))]).json()["embeddings"][0] for image in images]
    names = ["images", "image", "images", "image"]
    parts = [(name, ("a", image)) for name, image in zip(names, images, strict=True)]
    found = client.post("/embed", files=parts).json()["embeddings"]
    assert [relative_error(np.array(a), np.array(b)) < 1e-5 for a, b in zip(found, one, strict=True)] == [True] * 4


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/info", "/masks", "/masks/h", "/masks/h/file", "/v1/models", "/docs"]
)
def test_head_is_answered_as_get_is_without_a_body(client, theta, path):
    client.put("/masks/h", content=theta.mask(3).data)
    get, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"] and head.headers["content-length"] != "0"
    assert client.head("/masks/absent").status_code == 404 and client.head("/embed").status_code == 405


def test_one_model_is_told_of_by_every_reference_that_means_it(client, theta, require_error):
    mask = theta.mask(4)
    client.put("/masks/one", content=mask.data)
    spaces = {"test_vit": client.get("/info").json()["space"]}
    for model in ("one", "one@1", f"one@{mask.digest}", "test_vit"):
        assert client.get(f"/v1/models/{model}").json() == {
            "id": model,
            "object": "model",
            "created": 0,
            "owned_by": "smn",
            "space": spaces.get(model, client.get("/masks/one").json()["space"]),
        }
    for model in ("onee", "one@2", "cascade:one"):
        require_error(client.get(f"/v1/models/{model}"), 404, "not_found")
    require_error(client.get("/v1/models/UPPER"), 400)


def test_a_key_bound_to_a_prefix_is_told_of_near_misses_of_its_own(serve, theta, require_error):
    keys = {"admin_keys": ["admin", "cats=a."], "insecure": True}
    client = serve(**keys)
    for name in ("a.flower", "b.flower"):
        client.put(f"/masks/{name}", content=theta.mask(5).data, headers={"authorization": "Bearer admin"})
    found = {
        key: require_error(client.get("/masks/a.flowers", headers={"authorization": f"Bearer {key}"}), 404)
        for key in ("admin", "cats")
    }
    assert "a.flower, b.flower" in found["admin"]
    assert found["cats"].endswith("near it: a.flower")
