"""The stubs of proto/inference, in a pool of their own: Triton's client registers the same names in the common one."""
