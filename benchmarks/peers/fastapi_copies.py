"""A plain FastAPI server with one full model a task; a thread of its pool for each request, one forward at a time."""

from __future__ import annotations

from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form

from benchmarks.peers.copies import Place, copies_of, place_of_arguments


def create_app(place: Place) -> FastAPI:
    app, copies = FastAPI(), copies_of(place)

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/embed")
    def embed(task: Annotated[str, Form()], image: Annotated[bytes, File()]) -> dict[str, Any]:
        return {"embeddings": copies.embed(task, [copies.reader(image)])}

    return app


if __name__ == "__main__":
    place = place_of_arguments()
    uvicorn.run(create_app(place), host="127.0.0.1", port=place.port, log_level="warning")
