"""A trained model at work: encode, decode, sample, traverse, interpolate, and its export to ONNX."""
