"""How robust is a neural network really? Proofs, witnesses and the bracket between them.

    certify.run(model, data, eps)      the bracket of a network's robust accuracy
    certify.bounds(module, lower, upper)   output bounds for researchers, differentiable
    certify.load_model, certify.from_torch   networks as certify sees them

Names are imported at first use: `import certify` loads neither torch nor onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from certify.version import __version__

if TYPE_CHECKING:
    from certify.api import run
    from certify.bounding.api import bounds
    from certify.errors import CertifyError
    from certify.frontends.onnx_import import load_model
    from certify.frontends.onnx_import import load_model as from_onnx
    from certify.frontends.torch_import import from_torch
    from certify.model import Model
    from certify.report.accounting import Bracket
    from certify.report.result import Report
    from certify.store import SampleResult
    from certify.verdict import Outcome, Verdict, Witness

_HOMES = {
    "run": ("certify.api", "run"),
    "bounds": ("certify.bounding.api", "bounds"),
    "load_model": ("certify.frontends.onnx_import", "load_model"),
    "from_onnx": ("certify.frontends.onnx_import", "load_model"),
    "from_torch": ("certify.frontends.torch_import", "from_torch"),
    "Model": ("certify.model", "Model"),
    "Report": ("certify.report.result", "Report"),
    "Bracket": ("certify.report.accounting", "Bracket"),
    "SampleResult": ("certify.store", "SampleResult"),
    "Outcome": ("certify.verdict", "Outcome"),
    "Verdict": ("certify.verdict", "Verdict"),
    "Witness": ("certify.verdict", "Witness"),
    "CertifyError": ("certify.errors", "CertifyError"),
}

__all__ = [
    "Bracket",
    "CertifyError",
    "Model",
    "Outcome",
    "Report",
    "SampleResult",
    "Verdict",
    "Witness",
    "__version__",
    "bounds",
    "from_onnx",
    "from_torch",
    "load_model",
    "run",
]


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'certify' has no attribute {name!r}") from None
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
