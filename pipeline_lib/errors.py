"""The exceptions that are meant for the person at the keyboard, and text as a terminal may show it."""

import re

# Control characters but tab and new line; what breaks lines or turns the direction of writing; halves of characters.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with the characters that a terminal would obey, or cannot encode, written as escapes such as \\x1b."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class UserError(Exception):
    """Something the user can mend: the message names the culprit, its value, what is allowed and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 1. The message is `printable`:
    names in it may be anyone's.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class NotComputableError(UserError):
    """A method that a model or a data set does not fit, as its own message says: its cells stay empty for this reason,
    and other methods' do not."""
