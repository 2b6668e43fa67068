"""Entities with attributes that a model knows, and prompts that ask for them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

from dictionary_learning._border import short
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.downstream._files import rows_of_file

CITY_PROMPTS = {
    "country": "{} is a city in the country of",
    "continent": "{} is a city on the continent of",
    "language": "People in {} mostly speak",
}
"""What asks for each attribute of a city; {} is its name."""

_CITIES = """
Paris France Europe French|Lyon France Europe French|Marseille France Europe French|London England Europe English
Manchester England Europe English|Liverpool England Europe English|Berlin Germany Europe German
Munich Germany Europe German|Hamburg Germany Europe German|Rome Italy Europe Italian|Milan Italy Europe Italian
Naples Italy Europe Italian|Venice Italy Europe Italian|Madrid Spain Europe Spanish|Barcelona Spain Europe Spanish
Seville Spain Europe Spanish|Lisbon Portugal Europe Portuguese|Athens Greece Europe Greek
Moscow Russia Europe Russian|Warsaw Poland Europe Polish|Vienna Austria Europe German|Stockholm Sweden Europe Swedish
Tokyo Japan Asia Japanese|Osaka Japan Asia Japanese|Kyoto Japan Asia Japanese|Hiroshima Japan Asia Japanese
Beijing China Asia Chinese|Shanghai China Asia Chinese|Nanjing China Asia Chinese|Mumbai India Asia Hindi
Delhi India Asia Hindi|Bangkok Thailand Asia Thai|Hanoi Vietnam Asia Vietnamese|Seoul Korea Asia Korean
Tehran Iran Asia Persian|Baghdad Iraq Asia Arabic|Istanbul Turkey Asia Turkish|Cairo Egypt Africa Arabic
Alexandria Egypt Africa Arabic|Nairobi Kenya Africa Swahili|Mombasa Kenya Africa Swahili|Lagos Nigeria Africa English
Casablanca Morocco Africa Arabic|Tunis Tunisia Africa Arabic|Algiers Algeria Africa Arabic
Mexico_City Mexico North_America Spanish|Toronto Canada North_America English|Vancouver Canada North_America English
Montreal Canada North_America French|Havana Cuba North_America Spanish|Chicago America North_America English
Lima Peru South_America Spanish|Bogota Colombia South_America Spanish|Buenos_Aires Argentina South_America Spanish
Rio_de_Janeiro Brazil South_America Portuguese|Brasilia Brazil South_America Portuguese
Santiago Chile South_America Spanish|Caracas Venezuela South_America Spanish|Sydney Australia Australia English
Melbourne Australia Australia English|Perth Australia Australia English
"""


class Entities(NamedTuple):
    """Entities, and how a prompt asks for each attribute of theirs."""

    table: Mapping[str, Mapping[str, str]]
    """For each entity its attributes by name."""
    prompts: Mapping[str, str]
    """For each attribute a prompt that goes on with it; {} stands for the entity."""


EntitiesLike: TypeAlias = str | os.PathLike | Mapping[str, Mapping[str, str]] | Iterable[Mapping[str, Any]]


def cities() -> Entities:
    """Returns 61 cities with their country, continent and language."""
    table: dict[str, dict[str, str]] = {}
    for entry in _CITIES.strip().replace("\n", "|").split("|"):
        name, *values = (word.replace("_", " ") for word in entry.split(" "))
        table[name] = dict(zip(CITY_PROMPTS, values, strict=True))
    return Entities(table, CITY_PROMPTS)


def as_entities(given: Any, prompts: Mapping[str, str] | None) -> Entities:
    """Returns entities from a mapping, rows or a file with a column "entity"; the cities for None.

    Raises:
        ConfigError: there is no prompt for two attributes, or one has no {}.
        DataError: an entity lacks an attribute.
    """
    if given is None:
        given, prompts = cities().table, CITY_PROMPTS if prompts is None else prompts
    if not prompts or len(prompts) < 2:
        raise ConfigError(
            f"Got prompts={short(prompts)}; give one for each of at least two attributes, with {{}} for the entity."
        )
    for attribute, prompt in prompts.items():
        if prompt.count("{}") != 1:
            raise ConfigError(f"Got the prompt {prompt!r} for '{attribute}'; {{}} has to stand once for the entity.")
    rows: Any = rows_of_file(Path(given)) if isinstance(given, (str, os.PathLike)) else given
    if isinstance(rows, Mapping):
        table = {str(name): dict(row) for name, row in cast("Mapping[str, Mapping[str, str]]", rows).items()}
    else:
        table = {}
        for row in rows:
            if not isinstance(row, Mapping) or "entity" not in row:
                raise DataError(f"Got {short(row)} as an entity; give rows with a column 'entity' and its attributes.")
            table[str(row["entity"])] = {key: value for key, value in row.items() if key != "entity"}
    for name, row in table.items():
        for attribute in prompts:
            if not isinstance(row.get(attribute), str) or not row[attribute].strip() or not name.strip():
                raise DataError(f"The entity {name!r} has {row.get(attribute)!r} as '{attribute}'; give a word.")
    return Entities(table, dict(prompts))
