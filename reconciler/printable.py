"""Text of others, for a terminal, a log line and a page: one line, and not for ever. Pure."""

LONGEST = 200  # letters


def printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:LONGEST])
