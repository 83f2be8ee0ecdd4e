"""The checker: reads the ONNX file, the property and the certificate by itself, and decides.

numpy and onnx only; it imports nothing else of certify, so that a bug cannot hide in both. What it checks is in
docs/certificate.md. To read it in an evening, take the modules in this order: each needs only those above it.

What is stated.
    errors        why a certificate is not accepted
    content       what a certificate says, and what each of its arrays must be
    network       what a model is: tensors, each by one of a dozen operations

The bounds: a mistake here could accept what is false, so this is the part to read with a pencil.
    rounding      float64 whose every rounding is paid for, or fractions
    affine        affine nodes forward, backward, and in absolute values
    relax         lines below and above ReLU and sigmoid
    interval      intervals of all tensors, and what rounding costs
    patches       coefficients that live on a window of an image
    region        the least value of a linear form over the input set
    backward      lower bounds of linear forms of the network's tensors
    single        how far float32 may be off
    steps         the steps of a proof
    caps          planes above ReLUs
    tree          every path must come to a proof

The files: a mistake here would judge another claim, or another network, than the user's.
    archive       the bytes of a certificate
    file          its content, by the rules
    constants     a model's numbers, as stored or enclosed
    sketch        a network being read
    call          an ONNX node with its inputs
    read_moves    ops that move numbers
    read_ops      ops that compute
    read_windows  convolutions and poolings
    read_onnx     the file as a network
    vnnlib        a property's file, and whether a certificate covers it

The verdict.
    checker       accepted, or rejected with the place named
    command       `python -m certify.check`
"""
