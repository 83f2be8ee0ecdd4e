"""Exceptions a user can meet; each message names what is wrong and what to do next.

CertifyError
├── UsageError            an option or argument that cannot be used       (exit 2)
│   ├── ModelError        a network that cannot be read or is not supported
│   │   ├── UnsupportedOps    every unsupported node at once
│   │   └── ImportMismatch    our graph and onnxruntime disagree
│   ├── PropertyError     a VNN-LIB file or property that cannot be read
│   ├── DataError         a data set that is missing, broken or of the wrong shape
│   └── DiskError         a place that cannot be written, or results that cannot be read back
├── NoSamples             nothing to do: the selection is empty           (exit 5)
└── SoundnessError        a proof and a witness contradict each other     (exit 3)
"""

from __future__ import annotations


class CertifyError(Exception):
    """Base of all errors that `certify` raises on purpose; `exit_code` is the command's."""

    exit_code = 3


class UsageError(CertifyError):
    """An option or argument that cannot be used."""

    exit_code = 2


class ModelError(UsageError):
    """A network that cannot be read or is not supported."""


class UnsupportedOps(ModelError):
    """The network holds ops that cannot be imported; the message lists all of them."""


class ImportMismatch(ModelError):
    """The imported graph and onnxruntime disagree on some input."""


class PropertyError(UsageError):
    """A VNN-LIB file or property that cannot be read."""


class DataError(UsageError):
    """A data set that is missing, broken or of the wrong shape."""


class DiskError(UsageError):
    """A place that cannot be written (disk full, no permission), or results that cannot be read back."""


class NoSamples(CertifyError):
    """The selection of samples is empty."""

    exit_code = 5


class SoundnessError(CertifyError):
    """A proof and a witness contradict each other: a bug here, never a verdict."""

    exit_code = 3
