"""Write docs/configuration.md from the configuration schema."""

from __future__ import annotations

from pathlib import Path

from regrasp.config.reference import reference_markdown
from regrasp.experiment import ExperimentConfig

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


def main() -> None:
    """Write the reference beside the other documentation."""
    TARGET.write_text(reference_markdown(ExperimentConfig), encoding="utf-8")
    print(f"Wrote {TARGET}")


if __name__ == "__main__":
    main()
