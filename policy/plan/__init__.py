"""Numbering data: `germany` (national ranges), `areas` (area codes), `world` (country codes). `policy.numbers` reads them."""

from policy.plan.areas import area_code_of, area_codes, area_name
from policy.plan.world import country_code_of, region_of

__all__ = ["area_code_of", "area_codes", "area_name", "country_code_of", "region_of"]
