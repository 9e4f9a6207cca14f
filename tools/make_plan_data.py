"""Write policy/plan/area_codes.txt and policy/plan/countries.txt anew from the `phonenumbers` package.

    python tools/make_plan_data.py

A node needs neither this script nor that package: the two files are committed. Run it when a newer version of the package is
pinned, look at the difference, and commit it. Their content is that of Google's libphonenumber, Apache-2.0.
"""

from __future__ import annotations

import itertools
from importlib import metadata
from pathlib import Path

import phonenumbers
from phonenumbers.geodata import GEOCODE_DATA

PLAN = Path(__file__).resolve().parent.parent / "policy" / "plan"
HEAD = """\
# {what}
# From libphonenumber (Google and contributors), by the Python package phonenumbers {version}. Licence: Apache-2.0, see LICENSE.
# Changed: brought into this form by tools/make_plan_data.py. Do not edit by hand.
"""
DEPTH = {39: 5, 44: 5, 61: 5, 590: 5}  # national digits by which the regions of a shared code are told apart; else 4
LENGTHS = {1: (3,)}  # North America shares by whole area codes
FILLERS = "2546"


def write(name: str, what: str, rows: list[str]) -> None:
    head = HEAD.format(what=what, version=metadata.version("phonenumbers"))
    (PLAN / name).write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


def area_codes() -> list[str]:
    """One row per German area code, without its 0, and the name of its main place."""
    return sorted(f"{prefix[2:]}\t{names['de']}" for prefix, names in GEOCODE_DATA.items() if prefix.startswith("49"))


def countries() -> list[str]:
    """One row per country code, with the region (ISO 3166) that is in charge of it, and per part of a shared code."""
    rows = []
    for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items():
        rows.append(f"{code}\t{regions[0]}")
        if len(regions) > 1:
            rows += [f"{code}{prefix}\t{region}" for prefix, region in parts(code, regions)]
    return sorted(rows)


def parts(code: int, regions: tuple[str, ...]) -> list[tuple[str, str]]:
    """The shortest national prefixes behind which there are numbers of one region alone, if that is not the main one."""
    owners: dict[str, set[str]] = {}
    for digits in itertools.product("0123456789", repeat=DEPTH.get(code, 4)):
        prefix = "".join(digits)
        for region in regions_of(code, prefix, regions):
            for length in range(1, len(prefix) + 1):
                owners.setdefault(prefix[:length], set()).add(region)
    found: dict[str, str] = {}
    for prefix in sorted(owners, key=len):
        owner = next(iter(owners[prefix]))
        inside = any(prefix[:length] in found for length in range(1, len(prefix)))
        if len(owners[prefix]) == 1 and len(prefix) in LENGTHS.get(code, range(1, 6)) and not inside:
            found[prefix] = owner
    return [(prefix, owner) for prefix, owner in found.items() if owner != regions[0]]


def regions_of(code: int, prefix: str, regions: tuple[str, ...]) -> set[str]:
    """The regions that some number behind `prefix` belongs to."""
    examples = [phonenumbers.example_number(region) for region in regions]
    lengths = {len(phonenumbers.national_significant_number(example)) for example in examples if example is not None}
    found = set()
    for length, filler in itertools.product(sorted(lengths), FILLERS):
        number = phonenumbers.PhoneNumber(
            country_code=code,
            national_number=int(prefix + filler * (length - len(prefix))),
            italian_leading_zero=prefix.startswith("0") or None,
        )
        region = phonenumbers.region_code_for_number(number)
        if region is not None:
            found.add(region)
    return found


if __name__ == "__main__":
    write("area_codes.txt", "German area codes without their 0, and names", area_codes())
    write("countries.txt", "Country codes of E.164 and parts of the shared ones, and the region", countries())
