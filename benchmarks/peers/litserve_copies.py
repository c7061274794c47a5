"""A LitServe server with one full model a task; it batches what waits, and a batch runs task by task."""

from __future__ import annotations

from typing import Any

import litserve
import torch

from benchmarks.peers.copies import Place, copies_of, place_of_arguments

BATCH = 8


class Tasks(litserve.LitAPI):  # type: ignore[misc,unused-ignore]
    """Batches of (task, image)."""

    def __init__(self, place: Place) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=0.0, api_path="/embed")
        self._place = place

    def setup(self, device: str) -> None:  # noqa: ARG002
        torch.set_num_threads(1)
        self._copies = copies_of(self._place)

    # Without a type at `request`: LitServe would hand it to FastAPI as that of a parameter.
    def decode_request(self, request, **_) -> tuple[str, torch.Tensor]:  # type: ignore[no-untyped-def]
        return request["task"], self._copies.reader(request["image"].file.read())

    def batch(self, inputs: list[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
        return inputs

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        return output

    def predict(self, x: list[tuple[str, torch.Tensor]], **_: Any) -> list[list[float]]:
        rows: dict[int, list[float]] = {}
        for task in dict.fromkeys(task for task, _ in x):
            mine = [index for index, (other, _) in enumerate(x) if other == task]
            rows.update(zip(mine, self._copies.embed(task, [x[index][1] for index in mine]), strict=True))
        return [rows[index] for index in range(len(x))]

    def encode_response(self, output: list[float], **_: Any) -> dict[str, Any]:
        return {"embeddings": [output]}


if __name__ == "__main__":
    place = place_of_arguments()
    server = litserve.LitServer(Tasks(place), accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(host="127.0.0.1", port=place.port, generate_client_file=False, log_level="warning")
