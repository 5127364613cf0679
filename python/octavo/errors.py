"""The errors of octavo. Every message names the input and the remedy."""

from __future__ import annotations

__all__ = [
    "AdapterConflictError",
    "AdapterNotFoundError",
    "ContextLengthError",
    "CorruptModelError",
    "DeviceMemoryError",
    "EngineDeadError",
    "ExecutionError",
    "InvalidRequestError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "OctavoError",
    "PackMismatchError",
    "PackNotFoundError",
    "QueueFullError",
    "RequestTimeoutError",
    "UnknownArgumentError",
    "UnsupportedDeviceError",
    "UnsupportedModelError",
]


class OctavoError(Exception):
    """Base of all errors that octavo raises on purpose."""


class ModelNotFoundError(OctavoError):
    """No model, or no tokenizer, is where it was looked for."""


class UnsupportedModelError(OctavoError):
    """The model's architecture, or one of its options, is not supported. Nothing is run approximately."""


class CorruptModelError(OctavoError):
    """A file of the model is damaged, or contradicts another."""


class InvalidRequestError(OctavoError, ValueError):
    """A parameter or prompt that cannot be right."""


class UnknownArgumentError(InvalidRequestError, TypeError):
    """An argument that the function does not have; the message names the nearest, or a remedy."""


class AdapterNotFoundError(InvalidRequestError):
    """No adapter has the name, or it has another generation."""


class AdapterConflictError(InvalidRequestError):
    """The name of an adapter has another generation than was expected: it was changed meanwhile."""


class ContextLengthError(InvalidRequestError):
    """The prompt leaves no room in the context."""


class QueueFullError(OctavoError):
    """As many requests wait as the queue takes: retry later."""


class EngineDeadError(OctavoError):
    """The engine was closed, or could not go on."""


class PackNotFoundError(InvalidRequestError):
    """No pack has this name."""


class PackMismatchError(OctavoError):
    """A pack was made with another model, tokenizer, template or option; the message names the field."""


class ExecutionError(OctavoError):
    """A step failed while the request was in it. The engine goes on."""


class RequestTimeoutError(OctavoError, TimeoutError):
    """The request's own `timeout` passed."""


class MissingDependencyError(OctavoError, ImportError):
    """An optional dependency is needed; the message names the extra that installs it."""


class UnsupportedDeviceError(OctavoError):
    """The device that was asked for is not there, or cannot be used; the message says what to install or change."""


class DeviceMemoryError(OctavoError, MemoryError):
    """The device's memory does not hold what was asked for; the message says what to lower."""


def from_engine(class_name: str, message: str) -> OctavoError:
    """The exception for an error that the engine reported at the end of a request."""
    found = globals().get(class_name)
    if isinstance(found, type) and issubclass(found, OctavoError):
        return found(message)
    return OctavoError(message)
