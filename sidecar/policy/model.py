"""What all models of the policy have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from sidecar.policy.faults import Wrong

FailureChoice: TypeAlias = Literal["deny", "error", "local", "allow"]

T = TypeVar("T")


TAG_MARK = "\0"
"""Starts the tags of forms, which pydantic puts into locations: no key of a document can hold this character."""

TEXT, LIST, MAPPING = Tag(f"{TAG_MARK}text"), Tag(f"{TAG_MARK}list"), Tag(f"{TAG_MARK}mapping")
NUMBER, FLAG = Tag(f"{TAG_MARK}number"), Tag(f"{TAG_MARK}flag")


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return TEXT.tag
    if isinstance(value, list):
        return LIST.tag
    if isinstance(value, bool):
        return FLAG.tag
    if isinstance(value, int):
        return NUMBER.tag
    return MAPPING.tag if isinstance(value, (dict, BaseModel)) else None


BY_KIND = Discriminator(_kind)
"""Tells the forms of a value apart by its kind."""

OneOrMany: TypeAlias = Annotated[Annotated[T, TEXT] | Annotated[list[T], LIST, Field(min_length=1)], BY_KIND]


class Model(BaseModel):
    """Unknown keys are faults, and no value is converted into another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Choice(Model):
    """Exactly one of the keys is given."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self.model_fields_set) != 1:
            given = " and ".join(name for name in type(self).model_fields if name in self.model_fields_set)
            raise Wrong(f"{given} are given together" if given else "it is empty", self.accepted())
        return self

    @classmethod
    def accepted(cls) -> str:
        """The keys, as a message names them."""
        return f"exactly one of {', '.join(cls.model_fields)}"

    @property
    def chosen(self) -> tuple[str, Any]:
        """The key that is given, and its value."""
        (name,) = self.model_fields_set
        return name, getattr(self, name)
