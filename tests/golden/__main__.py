"""Check the library against golden numbers: python -m tests.golden [DIR]"""

import sys
from pathlib import Path

from tests.golden.checks import check_file

NUMBERS = Path(__file__).parent
"""The folder of the golden numbers that come with the repository."""


def main(folder: str | Path = NUMBERS) -> int:
    """Print one line an entry; 1 if any misses its tolerance, or there is none."""
    passed = failed = 0
    for file in sorted(Path(folder).glob("*.npz")):
        for result in check_file(file):
            passed += result.passed
            failed += not result.passed
            verdict = "pass" if result.passed else "FAIL"
            print(
                f"{result.entry:60} error {result.error:.2e}  tolerance {result.tolerance:.0e}  {verdict}", flush=True
            )
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("usage: python -m tests.golden [DIR]")
    sys.exit(main(*sys.argv[1:]))
