"""The official clients of other servers, unchanged, against a real one: vectors, kinds of numbers, their exceptions."""

import io

import azure.ai.inference
import azure.core.credentials
import azure.core.exceptions
import cohere
import httpx
import numpy as np
import openai
import pytest
import tritonclient.http
import voyageai
from PIL import Image
from spellings import BARE, PHOTOS, URIS, floats, part
from tritonclient.utils import InferenceServerException

from service.rounding import round_to

pytestmark = pytest.mark.usefixtures("live_mask")


def bits(rows):
    return np.array(rows, np.float32).tobytes()


@pytest.fixture
def to_cohere(real):
    with httpx.Client() as connections:
        yield cohere.ClientV2(api_key="any", base_url=real.url, httpx_client=connections)


def test_cohere_s_client_gets_every_type(to_cohere, live_wanted):
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    answer = to_cohere.embed(model="dialects", input_type="image", images=URIS, embedding_types=types)
    assert bits(answer.embeddings.float_) == bits(live_wanted)
    assert b"".join(floats(row).tobytes() for row in answer.embeddings.base64) == bits(live_wanted)
    for kind in types[1:5]:
        assert getattr(answer.embeddings, kind) == round_to(live_wanted, kind).tolist()
    assert answer.id and answer.meta.billed_units.images == 2


def test_cohere_s_client_sends_inputs_and_fewer_dimensions(to_cohere, live_wanted):
    inputs = [{"content": [part(text)]} for text in URIS]
    answer = to_cohere.embed(model="dialects", input_type="image", inputs=inputs, output_dimension=3)
    assert bits(answer.embeddings.float_) == bits(live_wanted[:, :3])


def test_cohere_s_client_raises_its_own_errors(to_cohere):
    for error, code, asked in (
        (cohere.NotFoundError, "not_found", {"model": "nowhere", "images": URIS}),
        (cohere.BadRequestError, "text_input", {"model": "dialects", "texts": ["a cat"]}),
        (cohere.BadRequestError, "url_not_fetched", {"model": "dialects", "images": ["http://example.org/a.png"]}),
        (cohere.BadRequestError, "too_many_dimensions", {"model": "dialects", "images": URIS, "output_dimension": 9}),
        (cohere.UnprocessableEntityError, "invalid_image", {"model": "dialects", "images": [URIS[0][:300]]}),
    ):
        with pytest.raises(error) as raised:
            to_cohere.embed(input_type="image", **asked)
        assert raised.value.body["error"]["code"] == code


@pytest.fixture
def to_voyage(real):
    yield voyageai.Client(api_key="any", base_url=f"{real.url}/v1")
    kept = vars(voyageai.api_resources.api_requestor._thread_context)  # the client never closes its connections
    if "session" in kept:
        kept.pop("session").close()


def test_voyage_s_client_gets_embed_s_vectors(real, to_voyage, live_wanted):
    dicts = [{"content": [{"type": "image_base64", "image_base64": text}]} for text in URIS]
    answer = to_voyage.multimodal_embed(dicts, model="dialects")
    assert bits(answer.embeddings) == bits(live_wanted) and answer.total_tokens == 2
    images = [[Image.open(io.BytesIO(data))] for data in PHOTOS]  # sent as lossless WebP
    assert bits(to_voyage.multimodal_embed(images, model="dialects").embeddings) == bits(live_wanted)
    for kind in ("int8", "uint8", "binary", "ubinary"):
        found = to_voyage.multimodal_embed(dicts, model="dialects", output_dtype=kind, output_dimension=3).embeddings
        assert found == round_to(live_wanted[:, :3], kind).tolist()


def test_voyage_s_client_raises_its_own_errors(to_voyage):
    for asked, model, said in (
        ([["a cat"]], "dialects", "text_input"),
        ([{"content": [{"type": "image_url", "image_url": "http://example.org"}]}], "dialects", "url_not_fetched"),
        ([[Image.new("RGB", (8, 8))]], "nowhere", "not_found"),
    ):
        with pytest.raises(voyageai.error.VoyageError, match=said):
            to_voyage.multimodal_embed(asked, model=model)


@pytest.fixture
def to_azure(real):
    credential = azure.core.credentials.AzureKeyCredential("any")
    with azure.ai.inference.ImageEmbeddingsClient(endpoint=real.url, credential=credential) as client:
        yield client


def test_azure_s_client_gets_embed_s_vectors(to_azure, live_wanted):
    images = [azure.ai.inference.models.ImageEmbeddingInput(image=text) for text in URIS]
    answer = to_azure.embed(input=images, model="dialects")
    assert bits([row.embedding for row in answer.data]) == bits(live_wanted) and answer.usage.total_tokens == 2
    answer = to_azure.embed(input=images, model="dialects", encoding_format="int8", dimensions=3)
    assert [row.embedding for row in answer.data] == round_to(live_wanted[:, :3], "int8").tolist()


def test_azure_s_client_raises_its_own_errors(to_azure):
    image = azure.ai.inference.models.ImageEmbeddingInput
    with pytest.raises(azure.core.exceptions.ResourceNotFoundError, match="nowhere"):
        to_azure.embed(input=[image(image=URIS[0])], model="nowhere")
    with pytest.raises(azure.core.exceptions.HttpResponseError, match="embeds images") as raised:
        to_azure.embed(input=[image(image=URIS[0], text="a cat")], model="dialects")
    assert raised.value.status_code == 400 and raised.value.error.code == "text_input"


@pytest.fixture
def to_triton(real):
    with tritonclient.http.InferenceServerClient(real.url.removeprefix("http://")) as client:
        yield client


def tensor(elements, *, binary):
    sent = tritonclient.http.InferInput("image", [len(elements)], "BYTES")
    return [sent.set_data_from_numpy(np.array(elements, np.object_), binary_data=binary)]


def test_triton_s_client_sends_and_gets_tensors_in_json_and_behind_it(to_triton, live_wanted):
    shown = [tritonclient.http.InferRequestedOutput("embedding", binary_data=False)]
    for inputs in (tensor(PHOTOS, binary=True), tensor(BARE, binary=True), tensor(BARE, binary=False)):
        for outputs in (None, shown):
            answer = to_triton.infer("dialects", inputs, outputs=outputs, request_id="7")
            assert bits(answer.as_numpy("embedding")) == bits(live_wanted) and answer.get_response()["id"] == "7"
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    sent = tritonclient.http.InferInput("image", list(x.shape), "FP32")
    found = [
        to_triton.infer("dialects", [sent.set_data_from_numpy(x, binary_data=binary)]).as_numpy("embedding")
        for binary in (True, False)
    ]
    assert found[0].shape == (2, 8) and bits(found[0]) == bits(found[1])
    by_version = to_triton.infer("dialects", tensor(PHOTOS, binary=True), model_version="1")
    assert bits(by_version.as_numpy("embedding")) == bits(live_wanted)


def test_triton_s_client_asks_what_is_there(to_triton):
    assert to_triton.is_server_live() and to_triton.is_server_ready()
    assert to_triton.get_server_metadata()["name"] == "smn"
    assert to_triton.is_model_ready("dialects") and not to_triton.is_model_ready("nowhere")
    assert to_triton.is_model_ready("dialects", "1") and to_triton.get_model_metadata("dialects")["versions"] == ["1"]


def test_triton_s_client_raises_its_own_errors(to_triton):
    wrong = tritonclient.http.InferInput("image", [1, 3, 8, 8], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    for model, inputs, status, said in (
        ("nowhere", tensor(PHOTOS, binary=True), "404", "nowhere"),
        ("dialects", tensor([b"a cat"], binary=True), "400", "embeds images"),
        ("dialects", [wrong], "422", "expected float32"),
    ):
        with pytest.raises(InferenceServerException, match=said) as raised:
            to_triton.infer(model, inputs)
        assert raised.value.status() == status


def test_openai_s_client_sends_jina_s_and_vllm_s_words(real, live_wanted, live_wanted_alone):
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="any", max_retries=0) as client:
        objects = client.embeddings.create(model="dialects@1", input=[{"image": text} for text in BARE])
        assert bits([row.embedding for row in objects.data]) == bits(live_wanted)
        binary = client.embeddings.create(
            model="dialects", input=URIS, encoding_format="float", extra_body={"embedding_type": "float"}
        )
        assert bits([row.embedding for row in binary.data]) == bits(live_wanted)
        messages = [{"role": "user", "content": [part(URIS[0])]}]
        one = client.post("/embeddings", cast_to=object, body={"model": "dialects", "messages": messages})
        assert bits([one["data"][0]["embedding"]]) == bits(live_wanted_alone)
        with pytest.raises(openai.BadRequestError, match="embeds images"):
            client.embeddings.create(model="dialects", input="a cat")
