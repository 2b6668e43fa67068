"""A record with typed fields that is also read as the JSON object that it is written as."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar


class Record(Mapping[str, Any]):
    """Base of frozen dataclasses: `record.field` is `record["field"]`, and None is left out."""

    KEYS: ClassVar[Mapping[str, str]] = {}
    """The keys of fields that have another name than their key."""
    HIDDEN: ClassVar[tuple[str, ...]] = ()
    """Fields that are no part of the JSON object."""

    def __getitem__(self, key: str) -> Any:
        return self._present()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def _present(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]  # every record is a dataclass
        values = {field.name: getattr(self, field.name) for field in fields if field.name not in self.HIDDEN}
        return {self.KEYS.get(name, name): value for name, value in values.items() if value is not None}
