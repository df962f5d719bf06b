"""Settings of writers: a policy of this project, a server, or a class of one's own. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from agent.config import PolicySettings
from agent.policies.config import OpenAISettings
from sleuth.artifacts import weights_stamp
from sleuth.kinds import KindSettings
from sleuth.plugins import make_object
from sleuth.settings import Address, Count, Seconds

if TYPE_CHECKING:
    from agent.writing.asks import Writer


class WriterSettings(KindSettings):
    """The language model that writes. A policy's settings alone, or the address of a server, will do."""

    NOUN: ClassVar[str] = "writer"
    KINDS: ClassVar[Mapping[str, str]] = {
        "policy": "agent.writing.config:PolicyWriterSettings",
        "server": "agent.writing.config:ServerWriterSettings",
    }
    OUTSIDE: ClassVar[str] = "agent.writing.config:OutsideWriterSettings"
    CHANGES_NO_REPLY: ClassVar[frozenset[str]] = frozenset()
    """Settings that say where a writer is, how fast and how patient: ``section.name`` for one in a section."""

    @property
    def identity(self) -> dict[str, Any]:
        """What replies depend on, as plain values."""
        plain = self.model_dump(mode="json")
        for path in self.CHANGES_NO_REPLY:
            section, _, name = path.rpartition(".")
            (plain[section] if section else plain).pop(name)
        return plain

    def open(self) -> Writer:
        """The writer. Raises PolicyError or ConfigError with a hint."""
        raise NotImplementedError

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            server = value.startswith(("http://", "https://"))
            return {"kind": "server", "base_url": value} if server else {"kind": "policy", "policy": {"model": value}}
        if isinstance(value, Mapping) and "kind" not in value:
            known = {"base_url": "server", "policy": "policy"}
            kind = next((kind for name, kind in known.items() if name in value), None)
            if kind is not None:
                return {"kind": kind, **value}
            if value.keys() and value.keys() <= PolicySettings.model_fields.keys():
                return {"kind": "policy", "policy": dict(value)}
        return value


AnyWriter = SerializeAsAny[WriterSettings]


class PolicyWriterSettings(WriterSettings):
    """Any policy backend: transformers, vLLM, a server of completions, one of one's own."""

    CHANGES_NO_REPLY: ClassVar[frozenset[str]] = frozenset(
        {
            "batch_size",
            *(f"policy.{name}" for name in ("device", "max_rows", "keep_cache", "cache_bytes", "vllm", "openai")),
        }
    )

    kind: Literal["policy"] = "policy"
    policy: PolicySettings
    chat: Literal["auto", "never"] = "auto"
    """auto: in the tokenizer's chat template where it has one. never: as plain text, which base models go on with."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Of the template, such as ``enable_thinking: false``."""
    structured: bool = True
    """Where a step has a JSON schema, an engine that can (vLLM, a server) holds the reply to it, which then begins
    without a thought."""
    batch_size: Count = 64
    """Requests handed to the backend at once; what is written of them is safe before the next are."""

    @property
    def identity(self) -> dict[str, Any]:
        """With a stamp of a local model's weights: trained further, it is another."""
        return {**super().identity, "weights": weights_stamp(self.policy.model)}

    def open(self) -> Writer:
        from agent.policies.backends import open_policy
        from agent.writing.policy_writer import PolicyWriter

        policy, codec = open_policy(self.policy)
        return PolicyWriter(
            policy,
            codec,
            name=self.policy.model,
            chat=self.chat == "auto",
            chat_template_kwargs=self.chat_template_kwargs,
            structured=self.structured,
            batch_size=self.batch_size,
            max_rows=self.policy.max_rows,
        )


class ServerWriterSettings(WriterSettings):
    """A server that speaks OpenAI's chat completions; no tokenizer is needed here.

    ``key_variable`` names the environment variable with the key; if it is not set, no key is sent. ``model`` None:
    the only one that is served. ``structured``: ask for JSON by schema, where a recipe has one, until the server says
    that it cannot. A request is repeated ``retries`` times while the server is busy, away, or cuts its answer off;
    after the pause that it wishes (``Retry-After``), a minute at most.
    """

    CHANGES_NO_REPLY: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "key_variable", "timeout_s", "retries", "concurrency"}
    )

    kind: Literal["server"] = "server"
    base_url: Address
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    structured: bool = True
    timeout_s: Seconds = 120.0
    retries: Annotated[int, Field(ge=0)] = 5
    concurrency: Count = 16
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Sent with every request, such as ``{chat_template_kwargs: {enable_thinking: false}}``."""

    def open(self) -> Writer:
        from agent.writing.server_writer import ServerWriter

        server = OpenAISettings(
            base_url=self.base_url,
            key_variable=self.key_variable,
            timeout_s=self.timeout_s,
            retries=self.retries,
            concurrency=self.concurrency,
        )
        return ServerWriter(server, self.model, structured=self.structured, extra_body=self.extra_body)


class OutsideWriterSettings(WriterSettings):
    """``kind`` is ``package.module:Class``; see `agent.writing.asks.Writer` for what it needs."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the class."""

    def open(self) -> Writer:
        writer: Writer = make_object(
            self.kind, "writer", options=self.options, methods=("write",), attributes=("name", "reserved")
        )
        return writer
