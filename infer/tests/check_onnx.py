"""Checks an ONNX file and runs it: FILE INPUT LOGITS, raw little-endian float32, N images. Prints the largest difference
of the logits relative to the largest logit, for the whole batch and for the first image alone."""
import sys

import numpy as np
import onnx
import onnxruntime

path, images, logits, count = sys.argv[1:]
model = onnx.load(path)
onnx.checker.check_model(model, full_check=True)
assert model.opset_import[0].version == 17, model.opset_import
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
shape = session.get_inputs()[0].shape
x = np.fromfile(images, "<f4").reshape(int(count), *shape[1:])
expected = np.fromfile(logits, "<f4").reshape(int(count), -1)
for n in (int(count), 1):
    got = session.run(["logits"], {"input": x[:n]})[0]
    assert got.shape == (n, expected.shape[1]), got.shape
    print(float(np.abs(got - expected[:n]).max() / np.abs(expected[:n]).max()))
