"""A collection remembers its space, and takes no vector of another one."""

import numpy as np
import pytest
from served import photo

from service.client import Client, ServerError
from service.collection import Collection, OtherSpace


def test_a_collection_takes_the_first_space_and_refuses_what_a_push_over_the_name_gives(real, theta):
    with Client(real.url) as client:
        client.push("collected", theta.mask(31).data)
        photos = Collection(client, "collected", normalize=True)
        first = photos.embed([photo(1), photo(2)])
        assert photos.space == first.space == client.embed([photo()], "collected", normalize=True).space
        assert np.allclose(np.linalg.norm(first.embeddings, axis=1), 1, atol=1e-5)
        pushed = client.push("collected", theta.mask(32).data)
        assert pushed["warnings"] == ["vectors embedded through collected@1 are in another space"]
        with pytest.raises(ServerError, match="in the space") as refused:
            photos.embed([photo(3)])
        assert (refused.value.status, refused.value.code) == (412, "other_space")
        assert photos.space == first.space
        again = Collection(client, "collected@1", normalize=True, space=photos.space)
        assert np.allclose(again.embed([photo(1), photo(2)]).embeddings, first.embeddings, atol=1e-6)
        with pytest.raises(OtherSpace, match="in the space"):
            photos.require(f"{photos.space}:d2")
        with pytest.raises(OtherSpace, match="does not name"):
            photos.require("")


def test_the_client_classifies(real, theta):
    head = (np.eye(2, 8, dtype=np.float32), np.zeros(2, np.float32), ["a", "b"])
    with Client(real.url) as client:
        client.push("labelled", theta.mask(33, head=head).data)
        found = client.classify([photo(1), photo(2)], "labelled", top=1)
        space = client.embed([photo()], "labelled").space
        assert [len(row["probs"]) for row in found["data"]] == [1, 1] and found["space"] == space
        with pytest.raises(ServerError, match="expects"):
            client.classify([photo()], "labelled", space="smn1:other")
