"""Numbering data: `germany` (national ranges), `areas` (area codes), `world` (country codes). `policy.numbers` reads them."""
