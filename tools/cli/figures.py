"""Numbers as a person reads them."""

from __future__ import annotations

BAR_WIDTH = 10
_UNITS = ("KiB", "MiB", "GiB", "TiB")


def span(seconds: float) -> str:
    """A duration with its two largest units: `8 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`."""
    whole = int(seconds)
    for large, small, name, below in ((86_400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= large:
            return f"{whole // large} {name} {whole % large // small} {below}"
    return f"{whole} s"


def byte_size(count: int) -> str:
    """Bytes in units of 1,024: `812 B`, `4.5 KiB`, `53 MiB`."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    size = count / 1024**power
    return f"{size:.1f} {_UNITS[power - 1]}" if size < 10 else f"{size:.0f} {_UNITS[power - 1]}"


def counted(count: int, noun: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def bar(part: int, whole: int, *, unicode: bool) -> str:
    """How full something is; anything above nothing shows at least one block."""
    filled = 0 if part <= 0 or whole <= 0 else min(BAR_WIDTH, max(1, part * BAR_WIDTH // whole))
    full, empty = ("█", "░") if unicode else ("#", ".")
    return full * filled + empty * (BAR_WIDTH - filled)
