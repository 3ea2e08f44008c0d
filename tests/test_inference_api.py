"""Triton's protocol as this project writes it down, beside the one that Triton's client brings."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from recurra.inference import service_pb2 as ours

FILES = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
THEIRS = {name: message for file in FILES for name, message in file.message_types_by_name.items()}
ENUMS = {name: enum for file in FILES for name, enum in file.enum_types_by_name.items()}
MESSAGES = ours.DESCRIPTOR.message_types_by_name


def kind(field: FieldDescriptor) -> tuple[object, ...]:
    """All that decides how a field is written and read."""
    named = field.message_type or field.enum_type
    return (
        field.number,
        field.type,
        field.is_repeated,
        named and named.full_name,
        field.containing_oneof and field.containing_oneof.name,
    )


def values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def agree(mine: Descriptor, other: Descriptor) -> None:
    for name, field in mine.fields_by_name.items():
        assert kind(field) == kind(other.fields_by_name[name]), field.full_name
    for name, enum in mine.enum_types_by_name.items():
        assert values(enum) == values(other.enum_types_by_name[name]), enum.full_name
    for name, nested in mine.nested_types_by_name.items():
        agree(nested, other.nested_types_by_name[name])


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_has_the_numbers_and_types_of_the_protocol(name: str):
    agree(MESSAGES[name], THEIRS[name])


def test_the_types_have_the_numbers_of_the_protocol():
    assert {name: values(enum) for name, enum in ours.DESCRIPTOR.enum_types_by_name.items()} == {
        name: values(ENUMS[name]) for name in ("DataType",)
    }


def test_the_service_has_every_rpc_of_the_protocol():
    [mine], [other] = (file.DESCRIPTOR.services_by_name.values() for file in (ours, service_pb2))
    assert mine.full_name == other.full_name

    def rpcs(service):
        return {
            method.name: (
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        }

    assert rpcs(mine) == rpcs(other)
    assert ours.DESCRIPTOR.package == service_pb2.DESCRIPTOR.package


def test_it_is_in_a_pool_of_its_own():
    assert ours.DESCRIPTOR.pool is not service_pb2.DESCRIPTOR.pool
