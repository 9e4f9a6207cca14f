"""Numbering data: `germany` (national prefixes) and `world` (country codes). Tables only; `policy.numbers` reads them."""
