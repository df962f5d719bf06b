"""Settings that come in kinds: retrievers, encoders, objectives. One class a kind, listed in a literal dict.

    class RetrieverSettings(KindSettings):
        NOUN = "retriever"
        KINDS = {"bm25": "retrieval.bm25_config:BM25Settings", ...}

Whatever is validated against the base becomes an object of its kind's own class, loaded when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import ModelWrapValidatorHandler, model_validator

from sleuth.errors import did_you_mean
from sleuth.plugins import load_object
from sleuth.settings import Settings, validate


class KindSettings(Settings):
    """Base of the kinds; fields are what all of them have. A field of this type is written ``SerializeAsAny[...]``."""

    NOUN: ClassVar[str]
    KINDS: ClassVar[Mapping[str, str]]
    """Name of a kind to the dotted path of its settings class."""
    OUTSIDE: ClassVar[str] = ""
    """Settings class of what is named by dotted path, ``kind: my_package.module:Class``; empty: nothing is."""
    SAVED_TOGETHER: ClassVar[bool] = False
    """Whether configs of earlier versions hold the settings of every kind: those at a default are dropped then."""
    FORMER: ClassVar[Mapping[str, object]] = {}
    """Defaults of earlier versions, which may stand in saved configs of every kind."""

    kind: str

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The settings of the kind that ``values`` are of. Raises ConfigError."""
        return validate(cls, values, cls.NOUN)

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        """``value`` as a mapping with ``kind``, where it may be written more shortly."""
        return value

    @classmethod
    def class_for(cls, value: Any) -> type[Self]:
        """The class of the kind that ``value`` is of; this one where it does not tell."""
        values = cls.spelled_out(value) if cls._is_base() else None
        kind = values.get("kind") if isinstance(values, Mapping) else None
        if isinstance(kind, str) and ":" in kind and cls.OUTSIDE:
            return cls._load(cls.OUTSIDE)
        return cls._load(cls.KINDS[kind]) if isinstance(kind, str) and kind in cls.KINDS else cls

    @classmethod
    def foreign(cls, own: type[KindSettings], values: Mapping[str, Any]) -> str | None:
        """The first setting in ``values`` that only other kinds than ``own`` have, and that says something."""
        return min((name for name in values if cls._is_foreign(own, name, values[name])), default=None)

    @model_validator(mode="wrap")
    @classmethod
    def _as_its_kind(cls, value: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        if not cls._is_base() or isinstance(value, cls):
            return read(value)
        values = cls.spelled_out(value)
        own = cls.class_for(values)
        if not isinstance(values, Mapping):
            return read(values)
        if own is cls:
            raise ValueError(f"unknown kind of {cls.NOUN}; {did_you_mean(str(values.get('kind')), cls.KINDS)}")
        foreign = cls.foreign(own, values)
        if foreign:
            theirs = ", ".join(kind for kind, path in cls.KINDS.items() if foreign in cls._load(path).model_fields)
            raise ValueError(
                f"{foreign} does nothing for a {cls.NOUN} of kind {values['kind']}"
                + (f", only for {theirs}" if theirs else "")
                + "; leave it out"
            )
        # configs of before held the settings of every kind, at their defaults
        kept = {name: values[name] for name in values if name in own.model_fields or not cls._known(name)}
        empty: tuple[Any, ...] = (None, "", [], {})
        absent = [name for name, f in own.model_fields.items() if f.is_required() and kept.get(name) in empty]
        if absent and kept.keys() <= own.model_fields.keys():  # else one of them is mistyped, which says more
            raise ValueError(f"{absent[0]} is missing")
        return own.model_validate(kept)

    @classmethod
    def _is_base(cls) -> bool:
        return "KINDS" in vars(cls)

    @classmethod
    def _load(cls, path: str) -> type[Self]:
        found: type[Self] = load_object(path)
        return found

    @classmethod
    def _classes(cls) -> Iterator[type[Self]]:
        return (cls._load(path) for path in (*cls.KINDS.values(), cls.OUTSIDE) if path)

    @classmethod
    def _known(cls, name: str) -> bool:
        return any(name in kind.model_fields for kind in cls._classes())

    @classmethod
    def _is_foreign(cls, own: type[KindSettings], name: str, value: Any) -> bool:
        if name in own.model_fields:
            return False
        if not cls.SAVED_TOGETHER:
            return cls._known(name)
        if value is None or (name in cls.FORMER and value == cls.FORMER[name]):
            return False
        fields = [kind.model_fields[name] for kind in cls._classes() if name in kind.model_fields]
        defaults = [[] if field.is_required() else field.get_default(call_default_factory=True) for field in fields]
        return bool(fields) and value not in defaults
