"""Everything a server can be told: flags of `smn serve`, or `SMN_` variables. Nothing else reads the environment.

A setting is declared here and nowhere else: `flags.py` makes the flags and their help of these fields, `describe.py`
what docs/configuration.md, .env.example and docker-compose.yml say of them. Those of the backbone are `BackboneSpec`'s.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from smn_core.errors import InvalidArgument
from smn_core.spec import BackboneSpec
from smn_core.verbs.options import DEFAULT_BACKBONE, GROUP, OPTIONS, Option, spec_of, split_list

MIB = 2**20
GIB = 2**30
IMAGES_A_THREAD, MOST_A_FORWARD = 8, 32
Names = Annotated[list[str], NoDecode]


def setting(
    default: Any,
    description: str,
    *,
    short: str = "",
    metavar: str = "",
    otherwise: str | None = None,
    group: str = "",
    repeated: bool = False,
    **more: Any,
) -> Any:
    """A field of the settings.

    Args:
        description: a sentence for docs/configuration.md and .env.example.
        short: the few words that the help has instead.
        metavar: what stands for the value in the help; by default its type.
        otherwise: how the help tells the default, where the value itself does not; "" for not at all.
        group: the panel of the help that it stands in.
        repeated: a list whose flag is repeated; the flag of any other list takes commas, as every variable does.
        more: pydantic's own: bounds, pattern, repr.
    """
    shown: dict[str, Any] = {
        "short": short or description,
        "metavar": metavar,
        "otherwise": otherwise,
        "group": group,
        "repeated": repeated,
    }
    return Field(default, description=description, json_schema_extra=shown, **more)


def _of_backbone(option: Option) -> tuple[Any, Any]:
    """Type and field of the setting that names a part of the backbone."""
    said, many = option.said, option.type == list[str]
    default = DEFAULT_BACKBONE if option.name == "backbone" else [] if many else option.default
    kind = Names if many else option.type if default is not None else option.type | None
    otherwise = None if option.name == "backbone" else said.otherwise or None
    return kind, setting(
        default,
        f"{said.help}{'; several in a variable have commas' if many else f'; else {otherwise}' if otherwise else ''}.",
        short=f"{said.help}.",
        metavar=said.metavar or "",
        otherwise=otherwise,
        group=GROUP,
        repeated=many,
        ge=said.at_least,
    )


if TYPE_CHECKING:
    BackboneSettings = BaseSettings
else:
    BackboneSettings = create_model(
        "BackboneSettings",
        __base__=BaseSettings,
        __module__=__name__,
        **{option.name: _of_backbone(option) for option in OPTIONS},
    )


class Settings(BackboneSettings):
    """One server process. A list is written with commas; sizes are bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="SMN_", extra="ignore", frozen=True, env_ignore_empty=True)

    registry: str = setting("registry", "Folder, or redis:// URL, that holds the masks.", metavar="DIR_OR_URL")
    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    preload: Names = setting(
        [],
        "References that are loaded before the server is ready.",
        short="References that are loaded before the server is ready.",
        metavar="REF,...",
    )
    masks_from: Names = setting(
        [],
        "Masks to pull at start into the registry: hf:user/name or hf:user/name@revision, under the repository's name, "
        "of a private one with HF_TOKEN; or a store's URL, s3://bucket/dir, one file or all *.smn right below it, "
        "under the files' names. Several in a variable have commas.",
        short="Masks to pull into the registry at start; may be repeated.",
        metavar="ADDRESS,...",
        repeated=True,
    )
    pin: Names = setting(
        [],
        "References that stay in host memory whatever the budget; a name through uploads and rollbacks.",
        short="References that stay in memory whatever the budget.",
        metavar="REF,...",
    )

    gallery: str | None = setting(
        None,
        "Folder of pictures that the console shows, by id; links out of it are not followed.",
        short="Folder of pictures that the console shows.",
        metavar="DIR",
    )
    no_console: bool = setting(False, "Serve no console at / and /console.", short="No console at /.")

    on: str = setting(
        "here",
        "here: this process; ray: a Ray cluster (extra ray).",
        short="here, or ray: replicas on a Ray cluster.",
        pattern="here|ray",
    )
    replicas: int = setting(
        1,
        "On Ray: replicas, each with an engine; the fewest when they are scaled.",
        short="On Ray: replicas, or the fewest.",
        ge=1,
    )
    max_replicas: int = setting(
        0,
        "On Ray: most replicas under load; 0: always as many as --replicas.",
        short="On Ray: most replicas under load.",
        otherwise="0, always --replicas",
        ge=0,
    )
    replica_cpus: float = setting(
        1.0, "On Ray: processors that a replica reserves.", short="On Ray: processors a replica.", ge=0
    )
    replica_gpus: float = setting(
        0.0, "On Ray: GPUs, or a part of one, that a replica reserves.", short="On Ray: GPUs a replica.", ge=0
    )
    ingresses: int = setting(
        1, "On Ray: processes that take requests and decode.", short="On Ray: processes that decode.", ge=1
    )

    slots: int = setting(
        0,
        "Masks whose weights are resident at once; 0: as many as slot_bytes holds.",
        short="Masks resident at once.",
        otherwise="by --slot-bytes",
        ge=0,
    )
    slot_bytes: int = setting(
        2 * GIB, "Memory for slots, each as large as the maskable weights.", short="Memory for slots.", ge=MIB
    )
    batch_size: int = setting(
        0,
        "Images in one forward pass, for which all others wait; 0: 8 for each thread, 32 at most, and 32 on a GPU.",
        short="Images in one forward pass.",
        otherwise="0, 8 a thread, 32 at most",
        ge=0,
    )
    threads: int = setting(
        0,
        "torch's threads; 0 takes torch's default.",
        short="torch's threads.",
        otherwise="0, as many as torch takes",
        ge=0,
    )
    decode_workers: int = setting(
        0,
        "Processes that decode images, at least 2, and threads that check uploads; 0: one a core, at most 8.",
        short="Processes that decode.",
        otherwise="0, one a core",
        ge=0,
    )
    decode_bytes: int = setting(
        GIB,
        "Memory that the decode of one image may take; then 422.",
        short="Memory for the decode of one image.",
        ge=16 * MIB,
    )
    decode_cpu_s: float = setting(
        5.0,
        "Processor time that the decode of one image may take, in seconds; then 422.",
        short="Processor time for the decode of one image.",
        gt=0,
    )
    cache_bytes: int = setting(
        GIB,
        "Memory for prepared masks, those in slots too, and for cascades; on a GPU the masks take the GPU's memory.",
        short="Memory for masks and cascades.",
        ge=MIB,
    )
    queue_images: int = setting(
        512,
        "Images admitted at once, from before decode to the answer; then 429.",
        short="Images in work or waiting at once.",
        ge=1,
    )

    max_body_bytes: int = setting(64 * MIB, "Largest request body; then 413.", short="Largest request body.", ge=1024)
    body_bytes: int = setting(
        256 * MIB,
        "Bytes of bodies in flight, claimed before they are read, of all requests; then 429.",
        short="Bytes of request bodies under way at once.",
        ge=1024,
    )
    max_connections: int = setting(
        1024,
        "Connections at once; one more closes the longest idle one. Fewer where few files may be open.",
        short="Connections at once.",
        ge=1,
    )
    head_s: float = setting(
        10.0,
        "Longest wait for a request's head, and for the first byte of a connection; then it is closed.",
        short="Longest wait for a request's head.",
        gt=0,
    )
    keep_alive_s: int = setting(
        75,
        "How long a connection without a request is kept open; more than the proxy in front keeps its own.",
        short="How long an idle connection is kept open.",
        ge=1,
    )
    max_pixels: int = setting(
        51_000_000,
        "Most pixels of one image; then 422.",
        short="Most pixels of an image.",
        otherwise="51 million",
        ge=1,
    )
    max_images: int = setting(64, "Most images of one request; then 413.", short="Most images of a request.", ge=1)
    timeout_ms: int = setting(
        30_000, "Deadline of a request; X-Timeout-Ms may shorten it.", short="Deadline of a request.", ge=1
    )
    drain_s: float = setting(
        20.0, "Longest wait for work in flight after SIGTERM.", short="Longest drain after SIGTERM.", ge=0
    )

    api_keys: Names = setting(
        [],
        "Keys that may embed and read; key=prefix binds one to names.",
        short="Keys that may embed and read.",
        metavar="KEY,...",
        repr=False,
    )
    admin_keys: Names = setting(
        [], "Keys that may change masks too.", short="Keys that may change masks too.", metavar="KEY,...", repr=False
    )
    insecure: bool = setting(
        False, "Listen beyond loopback without an admin key.", short="Serve beyond loopback without keys."
    )
    log_format: str = setting(
        "json",
        "How log lines are written: json, or console for people.",
        short="How log lines are written: json or console.",
        pattern="json|console",
    )
    otlp_endpoint: str | None = setting(
        None,
        "Collector that traces go to over OTLP/HTTP, http://host:4318; needs the extra otel.",
        short="Collector of traces, OTLP/HTTP.",
        metavar="URL",
    )

    @field_validator("preload", "pin", "masks_from", "model_arg", "api_keys", "admin_keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """White space around a part means nothing: a Secret that `echo` made ends in a line break."""
        if not isinstance(value, str) or not value:
            return value or []
        kept = [part.strip() if isinstance(part, str) else part for part in split_list(value.lstrip() or value)]
        # Nothing but white space is no empty list: it would be a server without keys.
        return [part for part in kept if part != ""] or kept[:1]

    @property
    def most_images(self) -> int:
        """Most images of one request: no more than are admitted at once; a larger one would always get 429."""
        return min(self.max_images, self.queue_images)

    def with_batch_size(self, threads: int, *, on_gpu: bool) -> Settings:
        """The settings with a number for `batch_size`: "A batch has 8 images for each thread" in docs/decisions.md.

        Args:
            threads: of a forward.
        """
        fitting = MOST_A_FORWARD if on_gpu else min(MOST_A_FORWARD, IMAGES_A_THREAD * max(1, threads))
        return self if self.batch_size else self.model_copy(update={"batch_size": fitting})

    @property
    def decoders(self) -> int:
        """Processes that decode: "A decode worker a core, 2 to 8" in docs/decisions.md says why."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
        return self.decode_workers or min(8, max(2, cores))

    def spec(self) -> BackboneSpec:
        """The backbone these settings name.

        Raises:
            InvalidArgument: a model argument, mean or std that cannot be read.
        """
        return spec_of({option.name: getattr(self, option.name) for option in OPTIONS})


def secret(text: str | None, flag: str = "--key") -> str | None:
    """A key as it was given by a flag; `env:NAME` is what the environment variable NAME holds.

    Raises:
        InvalidArgument: it is not set.
    """
    if text is None or not text.startswith("env:"):
        return text
    value = os.environ.get(text.removeprefix("env:"), "").strip()
    if not value:
        raise InvalidArgument(f"{flag} {text}: that environment variable is not set")
    return value
