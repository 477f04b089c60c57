"""What `eguot-sdk devices` shows: this machine, the phones adb sees, and boards by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eguot_sdk.errors import EguotError
from eguot_sdk.progress import progress_bar

from .schema import to_dict
from .targets import open_target
from .targets.adb import list_phones


def look(names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry each: `device`, and `machine` as in a report, or `error`. Raises UsageError for names that are none."""
    targets = [open_target(name) for name in dict.fromkeys(("local", *list_phones(), *names))]
    found: list[dict[str, Any]] = []
    for target in progress_bar(targets, label="devices"):
        try:
            found.append({"device": target.device, "machine": to_dict(target.look())})
        except EguotError as error:
            found.append({"device": target.device, "error": str(error)})
    return found


def as_text(found: Sequence[dict[str, Any]]) -> str:
    """A few lines a device."""
    lines = []
    for entry in found:
        machine = entry.get("machine")
        if machine is None:
            lines.append(f"{entry['device']}\n  not reachable: {entry['error']}")
            continue
        memory = "unknown memory" if machine["memory_mb"] is None else f"{machine['memory_mb'] / 1e3:.1f} GB"
        runtimes = [f"{k} {v}" for k, v in machine["packages"].items() if k in ("ai-edge-litert", "tflite-runtime")]
        lines += [entry["device"], "  " + ", ".join(dict.fromkeys(filter(None, (machine["soc"], machine["cpu"]))))]
        lines.append(
            f"  {machine['cores']} cores, governor {machine['governor'] or 'n/a'}, {memory}, {machine['system']}"
        )
        lines.append(f"  runtimes: {', '.join(runtimes) or 'none installed'}")
        lines.append(f"  delegates: {', '.join(machine['delegates']) or 'none seen'}")
        if machine["emulated"]:
            lines.append(f"  emulated by {machine['emulated']}: times are no latency")
    return "\n".join(lines)
