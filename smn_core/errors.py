"""The one exception tree. `code` is the stable word that clients and the HTTP table switch on."""

from __future__ import annotations


class SMNError(Exception):
    """Anything a user can cause or must hear about; `str(error)` is one clear sentence that names the fix."""

    code = "error"


class InvalidArgument(SMNError):
    """An option or parameter that cannot mean anything here."""

    code = "invalid_argument"


class InvalidData(SMNError):
    """A data set that cannot be used: empty, of a wrong shape, without the split asked for."""

    code = "invalid_data"


class InvalidImage(SMNError):
    """Bytes that are not one image this project decodes."""

    code = "invalid_image"


class ImageTooLarge(InvalidImage):
    """An image with more pixels than the limit; refused from its header, before it is decoded."""

    code = "image_too_large"


class UnknownModel(SMNError):
    """A backbone name that timm does not have."""

    code = "unknown_model"


class InvalidWeights(SMNError):
    """A weights file that cannot be read or does not fit the backbone."""

    code = "invalid_weights"


class WeightsUnavailable(SMNError):
    """Pretrained weights that could not be fetched."""

    code = "weights_unavailable"


class InvalidMask(SMNError):
    """A mask or mask file that breaks a rule of smn-mask/1."""

    code = "invalid_mask"


class WeightsNeeded(InvalidMask):
    """The bits of a mask of codec `context` are asked for where the backbone's weights are not."""

    code = "weights_needed"


class MissingParent(InvalidMask):
    """The bits of a mask are asked for, and the mask that they are coded against is not there."""

    code = "missing_parent"


class WrongBackbone(InvalidMask):
    """A sound mask that was made for another backbone, layout or pixel normalisation."""

    code = "wrong_backbone"


class InvalidCascade(SMNError):
    """A cascade or cascade file that breaks a rule of smn-cascade/1, or whose masks are not beside it."""

    code = "invalid_cascade"


class NotReady(SMNError):
    """A mask that the engine does not hold: `prepare` it first."""

    code = "not_ready"


class OverCapacity(SMNError):
    """More distinct masks in one batch than the engine has slots."""

    code = "over_capacity"


class NotFound(SMNError):
    """No mask or cascade of this name, version or digest; the message names near misses."""

    code = "not_found"


class Conflict(SMNError):
    """The registry's state forbids it: the current version alone, or one that a cascade still needs."""

    code = "conflict"


class MissingMasks(Conflict):
    """A cascade whose masks the registry does not hold; the message lists them."""

    code = "missing_masks"


class PreconditionFailed(SMNError):
    """A guard of an upload (`If-Match`, `If-None-Match`) does not hold."""

    code = "precondition_failed"


class OtherSpace(SMNError):
    """Vectors of another space than the one asked for: they cannot be compared with it."""

    code = "other_space"


class Unavailable(SMNError):
    """Something that should come back: the registry is away, the server is draining."""

    code = "unavailable"
