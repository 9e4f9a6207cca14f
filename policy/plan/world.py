"""Country codes of ITU-T E.164 and what a call to them is.

An unlisted code is not assigned and refused. No code is the beginning of another one.
Left out: the parts of shared codes (+1, +7, +44, +39), which only tariffs tell apart.
"""

from __future__ import annotations

from policy.model import DestinationClass as Class

__all__ = ["COUNTRY_CODES", "LEAST", "MOST"]

LEAST, MOST = 7, 15  # digits of an international number with its country code; 15 is the bound of E.164 §6.2.1

_COUNTRIES = (
    "1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 "
    "81 82 84 86 90 91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 "
    "231 232 233 234 235 236 237 238 239 240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 "
    "256 257 258 260 261 262 263 264 265 266 267 268 269 290 291 297 298 299 350 351 352 353 354 355 356 "
    "357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 385 386 387 389 420 421 423 500 501 "
    "502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 "
    "678 679 680 681 682 683 685 686 687 688 689 690 691 692 850 852 853 855 856 880 886 960 961 962 963 "
    "964 965 966 967 968 970 971 972 973 974 975 976 977 992 993 994 995 996 998 "
)

COUNTRY_CODES: dict[str, Class] = {
    **dict.fromkeys(_COUNTRIES.split(), Class.INTERNATIONAL),
    "800": Class.FREEPHONE,  # universal international freephone number
    "808": Class.INTERNATIONAL_SPECIAL,  # international shared cost
    "870": Class.INTERNATIONAL_SPECIAL,  # satellite
    "878": Class.INTERNATIONAL_SPECIAL,  # universal personal telecommunications
    "881": Class.INTERNATIONAL_SPECIAL,  # satellite
    "882": Class.INTERNATIONAL_SPECIAL,  # international networks
    "883": Class.INTERNATIONAL_SPECIAL,  # international networks
    "888": Class.INTERNATIONAL_SPECIAL,  # disaster relief
    "979": Class.INTERNATIONAL_SPECIAL,  # international premium rate
}
