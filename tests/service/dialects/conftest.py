"""A mask behind every dialect, and what /embed says of the same images."""

import numpy as np
import pytest
from spellings import PHOTOS


@pytest.fixture
def wanted(client, theta):
    """`wanted(**query)`: the embeddings of PHOTOS by /embed, float32, through the mask `photos`.

    Those of one photo are asked for alone where one is held against them: sums of other sizes may round otherwise.
    """
    client.put("/masks/photos", content=theta.mask(31).data)

    def embed(photos=PHOTOS, **query):
        parts = [("image", ("a.png", data, "image/png")) for data in photos]
        answer = client.post("/embed", params={"mask": "photos", **query}, files=parts)
        assert answer.status_code == 200, answer.text
        return np.array(answer.json()["embeddings"], np.float32)

    return embed


@pytest.fixture
def live_mask(theta, plain_client):
    """A mask of the real server, `dialects`; its digest."""
    mask = theta.mask(31)
    assert plain_client.put_mask("dialects", mask.data).status in (200, 201)
    return mask.digest


@pytest.fixture
def live_wanted(real, live_mask):
    """The embeddings of PHOTOS by the real server's /embed."""
    return live_embed(real, PHOTOS)


@pytest.fixture
def live_wanted_alone(real, live_mask):
    """The embedding of the first of PHOTOS, asked for alone."""
    return live_embed(real, PHOTOS[:1])


def live_embed(server, photos):
    from service.client import Client

    with Client(server.url) as client:
        return client.embed(photos, mask="dialects").embeddings
