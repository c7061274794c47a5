"""A process that arranges vectors: places on a plane, clusters, neighbours. `places.of` starts one and waits for it.

Equal vectors give equal answers: scikit-learn's t-SNE with a fixed seed and start, on one thread. It is a process of
its own because it holds a core for seconds, and so that the deadline of a request can end it.
"""

from __future__ import annotations

import asyncio
import io
import json
import resource
import sys
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from smn_core.errors import Unavailable

MOST_POINTS = 2000
MOST_CLUSTERS, MOST_NEIGHBOURS = 20, 50
FEW = 8
"""With fewer points t-SNE has no neighbourhoods to keep: the plane is then that of the principal components."""
PERPLEXITY, STEPS, COMPONENTS = 30.0, 500, 50
CPU_S = 120
MEMORY_BYTES = 4 * 2**30


async def of(vectors: Float32[ndarray, "n d"], n_clusters: int, n_neighbours: int) -> dict[str, Any]:
    """`places` [n, 2] within 0 to 1, `clusters` [n], `neighbours` [n, k] (nearest first, by cosine) and the `method`.

    When the caller no longer waits, the process is killed.

    Raises:
        Unavailable: the process failed.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(vectors), allow_pickle=False)
    pipe = asyncio.subprocess.PIPE
    arguments = ("-P", "-m", "service.console.places", str(n_clusters), str(n_neighbours))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        out, said = await process.communicate(buffer.getvalue())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(f"the map was not made: {last or f'its process ended with {process.returncode}'}")
    found: dict[str, Any] = json.loads(out)
    return found


def arrange(vectors: Float32[ndarray, "n d"], n_clusters: int, n_neighbours: int) -> dict[str, Any]:
    """What `of` answers. Clusters count down in size from 0."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    x = vectors.astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    n = len(x)
    n_components = min(COMPONENTS, n, x.shape[1])
    flat = PCA(n_components, svd_solver="full").fit_transform(x) if n > 1 else np.zeros((n, 1))
    places, method = np.zeros((n, 2)), "pca"
    places[:, : min(2, flat.shape[1])] = flat[:, :2]
    spread = bool(np.ptp(flat, axis=0).max() > 1e-9)
    if n >= FEW and spread and n_components > 1:
        perplexity = min(PERPLEXITY, (n - 1) / 3)
        tsne = TSNE(perplexity=perplexity, max_iter=STEPS, init="pca", learning_rate="auto", random_state=0, n_jobs=1)
        places, method = tsne.fit_transform(flat), "tsne"
    places = places - places.min(axis=0)
    places = places / max(float(places.max()), 1e-12)
    places = places + (1 - places.max(axis=0)) / 2  # the shorter side in the middle
    n_distinct = len(np.unique(x.round(9), axis=0))
    labels = KMeans(min(n_clusters, n_distinct), n_init=4, random_state=0).fit_predict(x)
    order = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    near = NearestNeighbors(n_neighbors=min(n_neighbours + 1, n), metric="cosine", algorithm="brute").fit(x)
    found = near.kneighbors(x, return_distance=False)
    neighbours = [[int(j) for j in row if j != i][:n_neighbours] for i, row in enumerate(found)]
    return {
        "places": np.round(places, 4).tolist(),
        "clusters": rank[labels].tolist(),
        "neighbours": neighbours,
        "method": method,
    }


def main() -> None:
    """Read an .npy array from stdin, write the arrangement to stdout as JSON."""
    import sklearn.cluster
    import sklearn.manifold  # noqa: F401 - before the limit: it holds for the libraries that are loaded
    from threadpoolctl import threadpool_limits

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    vectors = np.lib.format.read_array(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    with threadpool_limits(1):
        found = arrange(vectors, int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
