"""Triton's protocol, which is KServe's v2 with sequences: the same engines and sessions as recurra.v1."""
