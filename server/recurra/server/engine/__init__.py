"""From operations to replies: queue, slots, run, commit. No protobuf, no redis, no onnxruntime in here."""
