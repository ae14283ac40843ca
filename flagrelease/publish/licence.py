"""Licences a release may have, as each hub spells them."""

from __future__ import annotations

from dataclasses import dataclass

from flagrelease.errors import UsageError


@dataclass(frozen=True, slots=True)
class Licence:
    """One licence: its SPDX id, the id of Hugging Face, and the name of ModelScope."""

    spdx: str
    huggingface: str
    modelscope: str


_LICENCES = {
    licence.spdx.lower(): licence
    for licence in (Licence("MIT", "mit", "MIT License"), Licence("Apache-2.0", "apache-2.0", "Apache License 2.0"))
}


def find_licence(name: str | None) -> Licence:
    """The licence of a source, by its SPDX id in any case.

    Raises:
        UsageError: the manifest names none, or one whose spelling on the hubs is not known.
    """
    if name is None:
        raise UsageError("manifest.json: source.license is null; a release without a licence is not published")
    if (licence := _LICENCES.get(name.lower())) is None:
        known = ", ".join(licence.spdx for licence in _LICENCES.values())
        raise UsageError(f"manifest.json: source.license {name!r} has no known spelling on the hubs ({known})")
    return licence
