"""What reflection tells of: the descriptors of all services in one pool, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool


def pool(files: Iterable[FileDescriptor]) -> DescriptorPool:
    """These files and all that they import. recurra.inference has a pool of its own; reflection wants one for all."""
    whole, known = DescriptorPool(), set[str]()

    def add(file: FileDescriptor) -> None:
        if file.name in known:
            return
        known.add(file.name)
        for needed in file.dependencies:
            add(needed)
        whole.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    return whole
