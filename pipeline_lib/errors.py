"""The exceptions that are meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: the message names the culprit, its value, what is allowed and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """


class NotComputableError(UserError):
    """A method that a model or a data set does not fit, as its own message says: its cells stay empty for this reason,
    and other methods' do not."""
