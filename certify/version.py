"""The version, for whoever records it; the package shows it as `certify.__version__`."""

__version__ = "0.1.0"
