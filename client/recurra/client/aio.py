"""The client for asyncio."""

# ruff: noqa: ASYNC109 - timeouts are part of every call's surface

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Self, get_args

from numpy.typing import ArrayLike

from recurra.client.arrays import Inputs, lay_out, start_tensors, state_tensors
from recurra.client.batch import AsyncBatch
from recurra.client.channel import GET_MODEL, LIST_MODELS, LIST_SESSIONS, PREDICT, Channel
from recurra.client.chunk import Prediction, both, tensors, to_mask, to_outputs, to_states
from recurra.client.delivery import Context
from recurra.client.grpc_channel import Credentials, GrpcChannel
from recurra.client.model import Model, SessionInfo, read_model, read_session
from recurra.client.patience import Chance, WallClock
from recurra.client.replicas import Replicas
from recurra.client.session import AsyncSession
from recurra.client.standing import CreateOption, Durability
from recurra.client.stream import AsyncStream
from recurra.client.window import Window
from recurra.v1 import inference_pb2, model_pb2, session_pb2
from recurra.wire.errors import InvalidArgument, ModelUnavailable

DEFAULT_TARGET = "127.0.0.1:8500"


class AsyncClient:
    """A client of one server, or of several that share a store. Used on one event loop; as a context manager it closes.

    Raises the classes of recurra.wire.errors, which recurra.client exports.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        timeout: float = 30.0,
        window_bytes: int = 64 << 20,
        credentials: Credentials | None = None,
        channels: Sequence[Channel] | None = None,
        chance: Chance | None = None,
    ) -> None:
        """Connects at the first call.

        Args:
            target: "host:port", or several; the next is asked when one cannot serve.
            timeout: seconds that a call may take, all its attempts together, where it does not say.
            window_bytes: what is kept of recent inputs, to send them again to a store that lost them.
            credentials: for TLS; None: plain text.
            channels: the ways to the servers, instead of gRPC to `target`.
            chance: where time and random bytes come from.

        """
        targets = [target] if isinstance(target, str) else list(target)
        self._context = Context(
            Replicas(channels if channels is not None else [GrpcChannel(one, credentials) for one in targets]),
            chance or Chance(WallClock()),
            Window(window_bytes),
            timeout,
        )
        self._models: dict[str, Model] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Sessions live on, by their time to live."""
        await self._context.replicas.close()

    def session(
        self, model: str, session_id: str, *, create: CreateOption = "if_missing", ttl: float | None = None
    ) -> AsyncSession:
        """A handle on a session, made without a call.

        Args:
            model: the model's name.
            session_id: any text, of the caller's choice.
            create: what its first operation does where the session is missing ("if_missing" creates it, "must_exist"
                raises SessionNotFound) or is there ("must_be_new" raises SessionExists).
            ttl: seconds that the session lives without another operation; None: the model's.

        """
        return AsyncSession(self, self._context, model, session_id, create=_checked(create), ttl=ttl)

    def batch(
        self,
        model: str,
        ids: Sequence[str],
        *,
        create: CreateOption = "if_missing",
        durability: Durability | None = None,
    ) -> AsyncBatch:
        """A handle on k sessions that move together, a row each; made without a call.

        Args:
            model: the model's name.
            ids: the sessions', each once.
            create: as for session.
            durability: as for stream.

        """
        return AsyncBatch(self, self._context, model, ids, create=_checked(create), durability=_level(durability))

    def stream(
        self,
        model: str,
        *,
        create: CreateOption = "if_missing",
        durability: Durability | None = None,
        return_sequences: bool = True,
        linger: float = 0.001,
    ) -> AsyncStream:
        """Predictions of any number of sessions, sent together where they come together; made without a call.

        Args:
            model: the model's name.
            create: as for session.
            durability: when an operation is answered. "committed": once the store has it. "checkpointed": once it is
                computed; the store has it a little later. What a killed server had not written yet is sent again by the
                client, which keeps the inputs for it; so nothing acknowledged is lost as long as either lives. Until
                the stream ends, calls on other servers are told that the session is Owned. "replicated": once as many
                of the store's replicas have it as the server asks for. None: the model's, which is "committed" unless
                its model.toml says otherwise.
            return_sequences: all timesteps of an output; False: the last only.
            linger: seconds that a chunk may wait for others to share its frame.

        """
        return AsyncStream(
            self,
            self._context,
            model,
            create=_checked(create),
            durability=_level(durability),
            return_sequences=return_sequences,
            linger=linger,
        )

    async def predict(
        self,
        model: str,
        x: Inputs,
        *,
        return_states: bool = False,
        return_sequences: bool = True,
        initial_state: Mapping[str, ArrayLike] | None = None,
        start: Inputs | None = None,
        mask: ArrayLike | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """The outputs for a chunk from the fresh state, without a session; as AsyncSession.predict."""
        known = await self.known(model, timeout)
        chunk = lay_out(known, x)
        request = inference_pb2.PredictRequest(
            model=model,
            inputs=tensors(chunk),
            options=inference_pb2.PredictOptions(return_states=return_states, return_sequences=return_sequences),
            initial_state=state_tensors(known, initial_state or {}),
            start_inputs=start_tensors(known, start),
            mask=to_mask(mask, chunk),
        )
        response = await self._context.read(PREDICT, request, timeout)
        outputs = to_outputs(known, response.outputs, single=chunk.single, sequences=return_sequences)
        return both(outputs, to_states(response.states) if return_states else None)

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """All models of the repository, those that failed to load included."""
        response = await self._context.read(LIST_MODELS, model_pb2.ListModelsRequest(), timeout)
        return [read_model(model) for model in response.models]

    async def model(self, name: str, *, timeout: float | None = None) -> Model:
        """What the model takes, gives and remembers, asked anew. Raises ModelNotFound."""
        response = await self._context.read(GET_MODEL, model_pb2.GetModelRequest(model=name), timeout)
        model = read_model(response.model)
        self._models[name] = model
        return model

    async def sessions(self, model: str, *, timeout: float | None = None) -> AsyncGenerator[SessionInfo, None]:
        """The live sessions of a model, in no order; those that come or go meanwhile may be missed or come twice.

        `timeout`: seconds for each page.
        """
        request = session_pb2.ListSessionsRequest(model=model)
        while True:
            page = await self._context.read(LIST_SESSIONS, request, timeout)
            for session in page.sessions:
                yield read_session(session)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def known(self, name: str, timeout: float | None = None) -> Model:
        """The model, asked once. Raises ModelNotFound, or ModelUnavailable for one that failed to load."""
        model = self._models.get(name) or await self.model(name, timeout=timeout)
        if model.status == "failed":
            del self._models[name]  # it may be mended meanwhile
            raise ModelUnavailable(f"model '{name}' failed to load: {model.error}")
        return model


def _checked(create: CreateOption) -> CreateOption:
    if create not in ("if_missing", "must_exist", "must_be_new"):
        raise InvalidArgument(f"create is 'if_missing', 'must_exist' or 'must_be_new', not '{create}'")
    return create


def _level(durability: Durability | None) -> Durability | None:
    if durability not in (None, *get_args(Durability)):
        raise InvalidArgument(f"durability is one of {', '.join(get_args(Durability))}, not '{durability}'")
    return durability
