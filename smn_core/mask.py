"""A task mask in memory: one bit for every maskable weight, the task's normalisation state, and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from numpy import ndarray

from smn_core import bits
from smn_core.affine import Affine
from smn_core.errors import InvalidMask, WeightsNeeded
from smn_core.layout import Layout


@dataclass(frozen=True)
class Head:
    """An optional linear classifier: `logits = embedding @ weight.T + bias`."""

    weight: Float32[ndarray, "c d"]
    bias: Float32[ndarray, "c"]
    classes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Of weights, bias and names."""
        return self.weight.nbytes + self.bias.nbytes + sum(map(len, self.classes))


@dataclass(frozen=True, eq=False)
class TaskMask:
    """`theta'[t] = theta[t] * on[t] / alpha[t]` with `alpha[t] = sqrt(mean(on[t]))` for every tensor t of the layout.

    Immutable. These invariants are checked on construction: `packed` has the layout's length, its padding is 0, and
    every tensor has an ON bit. `state` names buffers of the backbone, with their shapes and finite values. `head` and
    `affine`, the map of the embeddings, are as wide as an embedding. `metadata` are the other texts of the file
    (objective, dataset, ...). `digest` is the file's (`sha256:...`), or None before it is written. `parent` is the
    digest of the mask that the file's bits were coded against, if any; the mask itself is the same without one.

    Raises:
        InvalidMask: an invariant is broken; the message says which, and where.
    """

    layout: Layout
    model: str
    fingerprint: str
    packed: UInt8[ndarray, "n_bytes"]
    state: Mapping[str, Float32[ndarray, ...]] = field(default_factory=dict)
    head: Head | None = None
    affine: Affine | None = None
    preprocess: Mapping[str, object] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None
    parent: str | None = None

    def __post_init__(self) -> None:
        self._check_bits()
        self._check_state()
        if self.head is not None:
            self._check_head(self.head)
        if self.affine is not None and self.affine.n_features != self.layout.n_features:
            raise InvalidMask(
                f"affine.mean has {self.affine.n_features} features, the backbone has {self.layout.n_features}"
            )

    def bits_of(self, name: str) -> Bool[ndarray, "n"]:
        """The ON bits of one tensor, flat, in C order.

        Raises:
            InvalidMask: the layout has no such tensor.
        """
        tensor = next((t for t in self.layout if t.name == name), None)
        if tensor is None:
            raise InvalidMask(f"{name} is not a maskable tensor of this backbone")
        return bits.unpack(self.packed[tensor.bytes], tensor.n_weights)

    @cached_property
    def on_counts(self) -> Int64[ndarray, "n_tensors"]:
        """ON weights of every tensor, in layout order."""
        return np.array([bits.count(self.packed[t.bytes]) for t in self.layout], dtype=np.int64)

    @cached_property
    def densities(self) -> dict[str, float]:
        """Fraction of ON weights by tensor."""
        return {t.name: int(on) / t.n_weights for t, on in zip(self.layout, self.on_counts, strict=True)}

    @property
    def density(self) -> float:
        """Fraction of ON weights of the whole mask."""
        return int(self.on_counts.sum()) / self.layout.n_weights

    @cached_property
    def alphas(self) -> Float32[ndarray, "n_tensors"]:
        """`sqrt(density)` of every tensor, in layout order."""
        return np.sqrt(np.fromiter(self.densities.values(), np.float64)).astype(np.float32)

    @property
    def n_off(self) -> int:
        """OFF weights of the whole mask."""
        return self.layout.n_weights - int(self.on_counts.sum())

    def _check_bits(self) -> None:
        self.packed.setflags(write=False)
        if self.packed.shape != (self.layout.n_bytes,):
            raise InvalidMask(
                f"the mask has {self.packed.size} bytes of bits, the backbone needs {self.layout.n_bytes}"
            )
        for tensor, on in zip(self.layout, self.on_counts, strict=True):
            if not bits.padding_is_clear(self.packed[tensor.bytes], tensor.n_weights):
                raise InvalidMask(f"a padding bit is set after the last weight of {tensor.name}")
            if on == 0:
                raise InvalidMask(f"every weight of {tensor.name} is OFF: its alpha would be 0")

    def _check_state(self) -> None:
        for name, values in self.state.items():
            shape = self.layout.buffers.get(name)
            if shape is None:
                raise InvalidMask(f"state.{name} is not a normalisation statistic of this backbone")
            if values.shape != shape:
                raise InvalidMask(f"state.{name} has shape {list(values.shape)}, the backbone's is {list(shape)}")
            if not np.isfinite(values).all():
                raise InvalidMask(f"state.{name} has a value that is not finite")
            if name.endswith("running_var") and (values < 0).any():
                raise InvalidMask(f"state.{name} has a negative variance")

    def _check_head(self, head: Head) -> None:
        n_classes = len(head.classes)
        if head.weight.shape != (n_classes, self.layout.n_features) or head.bias.shape != (n_classes,):
            raise InvalidMask(
                f"head.weight {list(head.weight.shape)} and head.bias {list(head.bias.shape)} do not fit "
                f"{n_classes} classes of {self.layout.n_features} features"
            )
        if not (np.isfinite(head.weight).all() and np.isfinite(head.bias).all()):
            raise InvalidMask("the head has a value that is not finite")


@dataclass(frozen=True, eq=False)
class CodedMask(TaskMask):
    """A mask of codec `context`, read without the backbone's weights: it has everything but its bits.

    `coded` are the tensors that hold them, `against` the mask that they are coded against, where `parent` names one and
    its file was found. `maskfile.with_bits` decodes them where the weights are.

    Raises:
        WeightsNeeded: when its bits, or what is counted among them, are asked for.
    """

    packed: UInt8[ndarray, "n_bytes"] = field(init=False)
    coded: Mapping[str, ndarray] = field(default_factory=dict)
    against: TaskMask | None = None

    def __getattr__(self, name: str) -> object:
        if name == "packed":
            raise WeightsNeeded("the mask's bits are coded with the backbone's weights: name them with --weights FILE")
        raise AttributeError(name)

    def _check_bits(self) -> None:
        """Nothing to check yet: `with_bits` makes a `TaskMask`, which does."""
