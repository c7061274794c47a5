"""The official `openai` client, unchanged, against a real server."""

import base64

import numpy as np
import openai
import pytest
from served import photo, relative_error


@pytest.fixture(scope="module")
def official(real):
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def uri(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def mask(theta, plain_client):
    mask = theta.mask(21)
    assert plain_client.put_mask("openai", mask.data).status in (200, 201)
    return mask


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_official_client_gets_the_mask_s_embeddings(official, theta, mask, form):
    files = [photo(1), photo(2)]
    answer = official.embeddings.create(model="openai", input=[uri(file) for file in files], **form)
    found = [
        np.frombuffer(base64.b64decode(e.embedding), "<f4") if isinstance(e.embedding, str) else e.embedding
        for e in answer.data
    ]
    wanted = theta.embed(np.concatenate([theta.pixels(file) for file in files]), mask)
    assert relative_error(np.array(found), wanted) < 1e-4
    assert [e.index for e in answer.data] == [0, 1] and answer.model == "openai"


def test_one_input_and_fewer_dimensions_work(official, theta, mask):
    answer = official.embeddings.create(model=f"openai@{mask.digest}", input=uri(photo()), dimensions=3)
    wanted = theta.embed(theta.pixels(photo()), mask)[0, :3]
    assert relative_error(np.array(answer.data[0].embedding), wanted) < 1e-4


def test_the_backbone_s_name_is_the_untouched_backbone(official, theta):
    answer = official.embeddings.create(model="test_vit", input=uri(photo()))
    assert relative_error(np.array(answer.data[0].embedding), theta.embed(theta.pixels(photo()))[0]) < 1e-4


def test_models_list_the_backbone_and_the_masks(official, mask):
    names = [model.id for model in official.models.list()]
    assert names[0] == "test_vit" and "openai" in names


def test_errors_are_the_official_client_s_own(official):
    with pytest.raises(openai.NotFoundError, match="nowhere"):
        official.embeddings.create(model="nowhere", input=uri(photo()))
    with pytest.raises(openai.UnprocessableEntityError):
        official.embeddings.create(model="test_vit", input=uri(b"text"))
    with pytest.raises(openai.BadRequestError):
        official.embeddings.create(model="test_vit", input=[])
    with pytest.raises(openai.APIStatusError) as refused:
        official.embeddings.create(model="test_vit", input=[uri(photo())] * 9)
    assert refused.value.status_code == 413


def test_another_content_type_than_json_is_415(plain_client):
    answer = plain_client.call("POST", "/v1/embeddings", b"{}", Content_Type="text/plain")
    assert answer.status == 415 and answer.json["error"]["code"] == "unsupported_type"
