"""The CUDA path without a GPU: ONNX Runtime's own CUDA provider on libraries that compute nothing. `make rehearse`.

It shows where nodes run, and which copies, launches and waits a run makes. It shows nothing of numbers, nor of time.
"""
