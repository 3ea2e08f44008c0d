"""Models of Keras and PyTorch as model folders. The frameworks come with the extra `export`; serving needs none.

`recurra.models.export.keras.export` and `recurra.models.export.torch.export` are the Python functions behind
`recurra export keras` and `recurra export torch`.
"""
