"""What an export can be: the words that commands and functions take. Imports no TensorFlow."""

FORMATS = ("saved_model", "litert", "onnx")
QUANTIZATIONS = ("float16", "int8")
QUANTIZABLE = ("litert", "onnx")
SUFFIXES = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
INPUT_DTYPES = ("uint8", "float32")
RESIZES = ("crop", "stretch")
UNSPECIFIED = "unspecified"  # licence
