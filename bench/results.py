"""What a benchmark gives: its report on standard output, and with --out in files."""

import json


def publish(text, result, out=None):
    """Prints `text` (markdown); writes it to OUT.md and `result` to OUT.json."""
    print("\n" + text)
    if out:
        with open(out + ".md", "w", encoding="utf-8") as file:
            file.write(text)
        with open(out + ".json", "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
