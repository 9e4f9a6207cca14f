"""`python -m tests.fuzz TARGET...`: each target for FUZZ_SECONDS, guided by coverage. Exit status 1 when one was broken.

What breaks a target is kept in `build/fuzz/TARGET/` and named at the end; its bytes become a case in test_fuzz_targets.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sipproxy", "policy", "cdr"]):
    from tests.fuzz.targets import TARGETS
from tests.fuzz.seeds import WORDS

FOUND = Path("build/fuzz")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what reads bytes that others wrote.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "600")), help="for each target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process of one target
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    if given.inside:
        return _fuzz(given.targets[0], given.seconds)
    broken = [name for name in given.targets or TARGETS if _apart(name, given.seconds)]
    print(f"broken: {', '.join(broken)}; see {FOUND}/" if broken else "nothing was broken", flush=True)
    return 1 if broken else 0


def _apart(name: str, seconds: int) -> int:
    """One target in a process of its own, which its findings end."""
    command = [sys.executable, "-m", "tests.fuzz", name, "--inside", "--seconds", str(seconds)]
    print(f"{name}: {seconds} s", flush=True)
    return subprocess.run(command, check=False).returncode


def _fuzz(name: str, seconds: int) -> int:
    target, place = TARGETS[name], FOUND / name
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sipproxy-fuzz-") as work:
        corpus, words = Path(work) / "corpus", Path(work) / "words"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS))
        limits = [f"-max_total_time={seconds}", "-max_len=8192", "-timeout=20", "-rss_limit_mb=3000"]
        said = [f"-dict={words}", f"-artifact_prefix={place}/", "-print_final_stats=1", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *limits, *said, str(corpus)], target.run)
        atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
