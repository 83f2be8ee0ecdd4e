"""How robust is a neural network really? Proofs, witnesses and the bracket between them."""

__version__ = "0.1.0"
